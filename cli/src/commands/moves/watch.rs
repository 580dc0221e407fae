//! Staying with a move: a bar on a terminal, a line now and then elsewhere. Leaving it changes nothing.

use super::describe::{
    finished, headline, is_prepared, near_sentence, rate, state, time_left, total_bytes,
};
use crate::exit::{Code, Failure};
use crate::operator::Service;
use crate::output::{Output, human_bytes, percent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use placement_service::api::{Move, MoveProgress, MoveState, Moves};
use replicator::words::DiskName;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks: what nodes say changes about as often.
const EVERY: Duration = Duration::from_millis(700);
/// Between two lines where nothing is drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// So long a placement service may be away before nobody waits for it any more.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How staying with a move ended.
pub enum Watched {
    /// It has, or it waits for nothing but its VM.
    Ended(Box<Move>),
    /// Somebody pressed ctrl-c.
    Left(DiskName),
}

impl Watched {
    /// The move that has ended; leaving it is said, and is not success: what comes next in a script waits.
    pub fn or_left(self) -> Result<Move, Failure> {
        match self {
            Watched::Ended(one) => Ok(*one),
            Watched::Left(disk) => Err(Failure::new(
                Code::Unreachable,
                format!("left before the move of {disk} has ended; it goes on"),
            )
            .try_next(format!(
                "`ukai moves {disk} --watch` shows it again, `ukai moves cancel {disk}` goes back"
            ))),
        }
    }
}

/// What is wrong with a move that somebody waited for and that has ended, if anything.
pub fn was_cancelled(one: &Move) -> Option<Failure> {
    let disk = &one.disk;
    let cancelled = one.state == MoveState::Cancelled;
    cancelled.then(|| {
        Failure::new(Code::Failed, format!("the move of {disk} was cancelled"))
            .because("an operator said so, or something else is wanted of the disk now")
            .try_next(format!(
                "`ukai disk explain {disk}` says where it stands and why"
            ))
    })
}

/// Shows how far move `number` of `disk` is until it has ended; nothing with `--json`.
pub fn watch(
    disk: &DiskName,
    number: u64,
    service: &Service,
    output: Output,
) -> anyhow::Result<Watched> {
    one(disk, number, service, output, Screen::new(output))
}

/// The same; with `--json` each change is a line of JSON, the last one of what has ended.
pub fn follow(
    disk: &DiskName,
    number: u64,
    service: &Service,
    output: Output,
) -> anyhow::Result<Watched> {
    let watched = one(disk, number, service, output, Screen::streaming(output))?;
    if let Watched::Ended(one) = &watched
        && output.is_json()
    {
        output.stream(one);
    }
    Ok(watched)
}

fn one(
    disk: &DiskName,
    number: u64,
    service: &Service,
    output: Output,
    mut screen: Screen,
) -> anyhow::Result<Watched> {
    let looks = async |screen: &mut Screen| {
        let mut away = Away::default();
        loop {
            match look(disk, number, service).await {
                Ok(one) if one.state.has_ended() || is_prepared(&one) => {
                    return Ok(Watched::Ended(Box::new(one)));
                }
                Ok(one) => {
                    away = Away::default();
                    screen.show(std::slice::from_ref(&one));
                }
                Err(error) => screen.note(&away.bear(error)?),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let watched = service.run(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            watched = looks(&mut screen) => watched,
            _ = interrupted.recv() => Ok(Watched::Left(disk.clone())),
        }
    });
    screen.clear();
    if let Ok(Watched::Ended(one)) = &watched {
        output.say(finished(one));
    }
    watched
}

/// The move, under way or not: another one of the same disk may have begun meanwhile.
async fn look(disk: &DiskName, number: u64, service: &Service) -> anyhow::Result<Move> {
    let last: Move = service.look(&format!("/v1/disks/{disk}/move")).await?;
    if last.number == number {
        return Ok(last);
    }
    let moves: Moves = service.look("/v1/moves").await?;
    // A preparation that gives way to another move of its disk is under way all the same.
    let mut all = moves.under_way.into_iter().chain(moves.ended);
    let ours = all.find(|one| one.number == number);
    ours.ok_or_else(|| {
        let what = format!("move {number} of {disk} is not remembered any more");
        Failure::new(Code::NotFound, what)
            .because("many have ended since")
            .try_next(format!("`ukai moves {disk}` shows its last one"))
            .into()
    })
}

/// Shows all moves that are under way, and those that join them, until somebody leaves.
pub fn all(service: &Service, output: Output) -> anyhow::Result<()> {
    let mut screen = Screen::streaming(output);
    let looks = async |screen: &mut Screen| -> anyhow::Result<()> {
        let mut away = Away::default();
        loop {
            match service.look::<Moves>("/v1/moves").await {
                Ok(moves) => {
                    away = Away::default();
                    screen.show(&moves.under_way);
                    match moves.under_way.len() {
                        0 => screen.note("nothing is moving; ctrl-c leaves"),
                        _ => screen.headline(&headline(&moves.under_way)),
                    }
                }
                Err(error) => screen.note(&away.bear(error)?),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let result = service.run(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = looks(&mut screen) => result,
            _ = interrupted.recv() => Ok(()),
        }
    });
    screen.clear();
    result
}

/// How long the placement service has been away: a move goes on without it, and so does watching.
#[derive(Default)]
struct Away {
    since: Option<Instant>,
}

impl Away {
    /// What to say meanwhile; the error itself, if it is another one or has lasted too long.
    fn bear(&mut self, error: anyhow::Error) -> anyhow::Result<String> {
        let away = matches!(error.downcast_ref::<Failure>(), Some(failure) if failure.code == Code::Unreachable);
        let since = *self.since.get_or_insert_with(Instant::now);
        if !away || since.elapsed() > PATIENCE {
            return Err(error);
        }
        Ok("the placement service does not answer; copying goes on, and so does asking".into())
    }
}

/// What is drawn, or said line by line.
struct Screen {
    output: Output,
    how: How,
    bars: BTreeMap<u64, ProgressBar>,
    note: Option<ProgressBar>,
    said: BTreeMap<u64, (String, Instant)>,
    told: BTreeMap<u64, (String, MoveProgress)>,
    noted: String,
    multi: MultiProgress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Drawn,
    Lines,
    Json,
    Silent,
}

impl Screen {
    fn new(output: Output) -> Screen {
        let how = match (output.is_json(), std::io::stderr().is_terminal()) {
            (true, _) => How::Silent,
            (false, true) => How::Drawn,
            (false, false) => How::Lines,
        };
        Screen {
            output,
            how,
            bars: BTreeMap::new(),
            note: None,
            said: BTreeMap::new(),
            told: BTreeMap::new(),
            noted: String::new(),
            multi: MultiProgress::new(),
        }
    }

    /// One that speaks JSON, too.
    fn streaming(output: Output) -> Screen {
        let screen = Screen::new(output);
        match screen.how {
            How::Silent => Screen {
                how: How::Json,
                ..screen
            },
            _ => screen,
        }
    }

    fn show(&mut self, moves: &[Move]) {
        match self.how {
            How::Drawn => self.draw(moves),
            How::Lines => moves.iter().for_each(|one| self.line(one)),
            How::Json => self.json(moves),
            How::Silent => {}
        }
    }

    /// A line a move, whenever it is not what it was.
    fn json(&mut self, moves: &[Move]) {
        for one in moves {
            let now = (state(&one.state), one.progress);
            if self.told.insert(one.number, now.clone()) != Some(now) {
                self.output.stream(one);
            }
        }
    }

    fn draw(&mut self, moves: &[Move]) {
        let here = |number: &u64| moves.iter().any(|one| one.number == *number);
        self.bars.retain(|number, bar| {
            let stays = here(number);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for one in moves {
            let bar = self
                .bars
                .entry(one.number)
                .or_insert_with(|| self.multi.add(bar(one)));
            let there = one.progress.copied_bytes + one.progress.same_bytes;
            bar.set_length(total_bytes(&one.progress).unwrap_or(there.max(1) * 2));
            bar.set_position(there);
            bar.set_message(beside(one));
        }
    }

    /// A line when something has changed in kind, and now and then.
    fn line(&mut self, one: &Move) {
        let now = Instant::now();
        let kind = state(&one.state);
        let last = self.said.get(&one.number);
        if last.is_none_or(|(said, at)| *said != kind || now - *at >= LINE_EVERY) {
            eprintln!("{}", line(one));
            self.said.insert(one.number, (kind, now));
        }
    }

    /// What is to be known about all of it, once.
    fn note(&mut self, text: &str) {
        if self.how == How::Lines && self.noted != text {
            eprintln!("{text}");
        }
        self.headline(text);
    }

    /// The same, where it is drawn only: for what changes with each look.
    fn headline(&mut self, text: &str) {
        if self.how == How::Drawn {
            let multi = &self.multi;
            let note = self.note.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{msg}");
                let style = style.expect("the template is well formed");
                multi.add(ProgressBar::new_spinner().with_style(style))
            });
            note.set_message(text.to_owned());
            note.tick();
        }
        self.noted = text.to_owned();
    }

    fn clear(&mut self) {
        let _ = self.multi.clear();
    }
}

fn bar(one: &Move) -> ProgressBar {
    let template = "{prefix} {bar:24} {bytes}/{total_bytes} {wide_msg}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    ProgressBar::new(1)
        .with_style(style)
        .with_prefix(one.disk.to_string())
}

/// What stands beside the bar.
fn beside(one: &Move) -> String {
    let progress = &one.progress;
    format!(
        "{}  {}  {}  {}",
        rate(progress),
        time_left(progress),
        near_sentence(progress),
        state(&one.state)
    )
}

fn line(one: &Move) -> String {
    let progress = &one.progress;
    let there = progress.copied_bytes + progress.same_bytes;
    let of = total_bytes(progress).map_or(String::new(), |total| {
        format!(" of {} ({})", human_bytes(total), percent(there, total))
    });
    format!(
        "{}: {}{of}, {}, {}; {}; {}",
        one.disk,
        human_bytes(there),
        rate(progress),
        time_left(progress),
        near_sentence(progress),
        state(&one.state),
    )
}

#[cfg(test)]
mod tests {
    use super::super::describe::tests::under_way;
    use super::*;

    #[test]
    fn a_line_says_bytes_rate_time_left_and_the_share_of_near_reads() {
        assert_eq!(
            line(&under_way()),
            "web1: 4 GiB of 8 GiB (50%), 95 MiB/s, 43s left; 87% of reads near; copying"
        );
    }

    #[test]
    fn a_service_that_is_away_is_waited_for_and_other_errors_are_not() {
        let mut away = Away::default();
        let unreachable = || Failure::new(Code::Unreachable, "away").into();
        assert!(away.bear(unreachable()).is_ok());
        let gone = Failure::new(Code::NotFound, "gone").into();
        assert!(away.bear(gone).is_err());
    }
}
