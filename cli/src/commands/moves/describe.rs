//! Moves in words: a line each, or all about one.

use crate::output::{counted, human_bytes, human_rate, human_time, percent, table};
use placement_service::api::{
    Control, Move, MoveBrief, MoveKind, MoveProgress, MoveState, MoveWhy, Moves,
};
use replicator::words::DatacenterName;
use std::time::Duration;

/// So many of those that ended are listed.
const ENDED_SHOWN: usize = 10;

pub fn list(moves: &Moves) -> String {
    let mut parts = Vec::new();
    if moves.under_way.is_empty() {
        parts.push("nothing is moving".to_owned());
    } else {
        parts.push(rows(&moves.under_way));
    }
    if !moves.ended.is_empty() {
        let shown = &moves.ended[..moves.ended.len().min(ENDED_SHOWN)];
        let more = moves.ended.len() - shown.len();
        let more = match more {
            0 => String::new(),
            more => format!("\nand {more} more before them: --json lists them all"),
        };
        parts.push(format!("ended, the last first:\n{}{more}", ended(shown)));
    }
    parts.join("\n\n")
}

fn rows(moves: &[Move]) -> String {
    let rows = moves.iter().map(|one| {
        let progress = &one.progress;
        [
            one.number.to_string(),
            one.disk.to_string(),
            what(one.kind, &one.from, &one.to),
            state(&one.state),
            done(progress),
            rate(progress),
            left(progress),
            near(progress),
        ]
    });
    table(
        [
            "NO",
            "DISK",
            "WHAT",
            "STATE",
            "DONE",
            "RATE",
            "LEFT",
            "NEAR READS",
        ],
        rows,
    )
}

fn ended(moves: &[Move]) -> String {
    let rows = moves.iter().map(|one| {
        [
            one.number.to_string(),
            one.disk.to_string(),
            what(one.kind, &one.from, &one.to),
            state(&one.state),
            human_bytes(one.progress.copied_bytes),
            took(one).map_or("-".into(), human_time),
            one.ended.map_or("-".into(), |at| at.to_string()),
        ]
    });
    table(
        ["NO", "DISK", "WHAT", "STATE", "COPIED", "TOOK", "ENDED"],
        rows,
    )
}

/// All about one move, but for its plan.
pub fn one(one: &Move) -> String {
    let progress = &one.progress;
    let mut lines = vec![
        format!(
            "move      {} of {}: {}",
            one.number,
            one.disk,
            what(one.kind, &one.from, &one.to)
        ),
        format!("because   {}", why(&one.why)),
        format!("state     {}", state(&one.state)),
        format!(
            "copied    {} ({} on links), {} were there already, {} left",
            human_bytes(progress.copied_bytes),
            human_bytes(progress.link_bytes),
            human_bytes(progress.same_bytes),
            progress
                .left_bytes
                .map_or("an amount not yet known".into(), human_bytes),
        ),
    ];
    if progress.read_through_bytes > 0 {
        let bytes = human_bytes(progress.read_through_bytes);
        lines.push(format!("          {bytes} of it because the guest read it"));
    }
    if progress.extents > 0 {
        lines.push(format!(
            "extents   {} of {} done",
            progress.extents_done, progress.extents
        ));
    }
    if !one.state.has_ended() {
        lines.push(format!(
            "rate      {}, {}; {}",
            rate(progress),
            limit(one),
            time_left(progress)
        ));
        lines.push(format!("near      {}", near_sentence(progress)));
    }
    let ended = match (one.ended, took(one)) {
        (Some(at), Some(took)) => format!(", ended {at} after {}", human_time(took)),
        _ => String::new(),
    };
    lines.push(format!("began     {}{ended}", one.began));
    lines.join("\n")
}

/// What an operator's word has come to.
pub fn controlled(one: &Move, control: Control) -> String {
    let name = &one.disk;
    match control {
        Control::Pause => format!(
            "the move of {name} is paused: only what its guest reads is copied; `ukai moves resume {name}` goes on"
        ),
        Control::Resume => format!("the move of {name} goes on, {}", limit(one)),
        Control::Cancel => match one.state {
            MoveState::Cancelled => format!("the move of {name} is cancelled"),
            _ => format!("the move of {name} goes back: {}", state(&one.state)),
        },
        Control::Limit(_) | Control::NoLimit => {
            format!("the move of {name} goes on, {}", limit(one))
        }
    }
}

/// A move in one line, its disk first.
pub fn brief(brief: &MoveBrief) -> [String; 6] {
    let progress = &brief.progress;
    [
        brief.disk.to_string(),
        what(brief.kind, &brief.from, &brief.to),
        state(&brief.state),
        done(progress),
        rate(progress),
        left(progress),
    ]
}

pub fn what(kind: MoveKind, from: &[DatacenterName], to: &[DatacenterName]) -> String {
    let names = |names: &[DatacenterName]| {
        let names: Vec<&str> = names.iter().map(DatacenterName::as_str).collect();
        names.join(", ")
    };
    match (kind, from, to) {
        (MoveKind::Prepare, _, to) => format!("prepare in {}", names(to)),
        (_, [], []) => "within".into(),
        (_, [], to) => format!("to {}", names(to)),
        (_, from, []) => format!("out of {}", names(from)),
        (_, from, to) if from == to => format!("within {}", names(to)),
        (_, from, to) => format!("{} -> {}", names(from), names(to)),
    }
}

fn why(why: &MoveWhy) -> String {
    match why {
        MoveWhy::Arrival(host) => format!("its VM came to {host}"),
        MoveWhy::Policy => "policy, or what the fleet can give, has changed".into(),
        MoveWhy::Repair => "copies are missing".into(),
        MoveWhy::Evacuation(store) => format!("store {store} is being emptied"),
        MoveWhy::Rebalance(store) => format!("store {store} is fuller than others"),
        MoveWhy::Order(order) => order.clone(),
    }
}

pub fn state(state: &MoveState) -> String {
    match state {
        MoveState::Planned { waits_for } => format!("waits for {waits_for}"),
        MoveState::Switching => "switching the write set".into(),
        MoveState::Filling => "copying".into(),
        MoveState::Completing => "recording that all is copied".into(),
        MoveState::Dropping => "deleting what nobody needs any more".into(),
        MoveState::Paused => "paused".into(),
        MoveState::Stuck { why } => format!("stuck: {why}"),
        MoveState::Done => "done".into(),
        MoveState::Cancelled => "cancelled".into(),
    }
}

/// All bytes that it is about, when that is known; before anything was looked at it is not.
pub fn total_bytes(progress: &MoveProgress) -> Option<u64> {
    let there = progress.copied_bytes + progress.same_bytes;
    let total = progress.left_bytes.map(|left| there + left);
    total.filter(|total| *total > 0)
}

fn done(progress: &MoveProgress) -> String {
    let there = progress.copied_bytes + progress.same_bytes;
    match total_bytes(progress) {
        Some(total) => percent(there, total),
        None => human_bytes(there),
    }
}

pub fn rate(progress: &MoveProgress) -> String {
    match progress.bytes_per_second {
        0 => "-".into(),
        rate => human_rate(rate),
    }
}

fn left(progress: &MoveProgress) -> String {
    let seconds = progress.seconds_left.map(Duration::from_secs);
    seconds.map_or("-".into(), human_time)
}

pub fn time_left(progress: &MoveProgress) -> String {
    let total = total_bytes(progress);
    match (progress.seconds_left, progress.left_bytes) {
        (_, Some(0)) if total.is_some() => "nothing left to copy".into(),
        (Some(0), _) if total.is_none() => "time left not known yet".into(),
        (Some(seconds), _) => format!("{} left", human_time(Duration::from_secs(seconds))),
        (None, _) => "time left not known yet".into(),
    }
}

fn near(progress: &MoveProgress) -> String {
    match progress.near_reads_permille {
        Some(permille) => format!("{}%", permille / 10),
        None => "-".into(),
    }
}

pub fn near_sentence(progress: &MoveProgress) -> String {
    match progress.near_reads_permille {
        Some(permille) => format!("{}% of reads near", permille / 10),
        None => "no reads lately".into(),
    }
}

fn limit(one: &Move) -> String {
    match (one.own_limit, one.limit) {
        (Some(own), _) => format!("at most {} as you said", human_rate(own)),
        (None, Some(limit)) => format!("at most {}", human_rate(limit)),
        (None, None) => "as fast as it goes".into(),
    }
}

fn took(one: &Move) -> Option<Duration> {
    one.ended.map(|ended| ended.since(one.began))
}

/// Whether all is copied ahead that there is: it goes on with what is written, until the VM comes.
pub fn is_prepared(one: &Move) -> bool {
    let waits = matches!(one.state, MoveState::Planned { .. });
    let MoveProgress {
        extents,
        extents_done,
        ..
    } = one.progress;
    one.kind == MoveKind::Prepare && waits && extents > 0 && extents == extents_done
}

/// What a finished move came to.
pub fn finished(one: &Move) -> String {
    let progress = &one.progress;
    let mut text = match one.state {
        _ if is_prepared(one) => {
            let what = what(one.kind, &one.from, &one.to);
            format!("{}: {what}, ready for its VM", one.disk)
        }
        MoveState::Cancelled => format!("the move of {} was cancelled", one.disk),
        _ => format!("{}: {}, done", one.disk, what(one.kind, &one.from, &one.to)),
    };
    text += &format!(
        "; {} copied, {} on links",
        human_bytes(progress.copied_bytes),
        human_bytes(progress.link_bytes)
    );
    if progress.same_bytes > 0 {
        let same = human_bytes(progress.same_bytes);
        text += &format!(", {same} were there already");
    }
    if let Some(took) = took(one) {
        text += &format!("; it took {}", human_time(took));
    }
    text
}

/// How many moves, and what they have left, in a headline.
pub fn headline(moves: &[Move]) -> String {
    let left: u64 = moves.iter().filter_map(|one| one.progress.left_bytes).sum();
    let rate: u64 = moves.iter().map(|one| one.progress.bytes_per_second).sum();
    format!(
        "{} under way, {} left, {}",
        counted(moves.len() as u64, "move"),
        human_bytes(left),
        human_rate(rate)
    )
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::commands::plan::tests::plan;
    use placement_service::policy::UnixSeconds;
    use replicator::words::{DiskId, DiskName, HostName};

    pub fn under_way() -> Move {
        let dc = |name: &str| DatacenterName::new(name).unwrap();
        Move {
            number: 7,
            disk: DiskName::new("web1").unwrap(),
            id: DiskId::from_u128(1),
            kind: MoveKind::Move,
            from: vec![dc("tokyo")],
            to: vec![dc("osaka")],
            why: MoveWhy::Arrival(HostName::new("osaka-1").unwrap()),
            state: MoveState::Filling,
            paused: false,
            own_limit: None,
            limit: Some(100 << 20),
            began: UnixSeconds(1_795_298_400),
            ended: None,
            progress: MoveProgress {
                copied_bytes: 3 << 30,
                same_bytes: 1 << 30,
                left_bytes: Some(4 << 30),
                link_bytes: 2 << 30,
                read_through_bytes: 12 << 20,
                extents: 32,
                extents_done: 15,
                bytes_per_second: 95 << 20,
                seconds_left: Some(43),
                near_reads_permille: Some(874),
            },
            plan: plan(),
        }
    }

    fn done_move() -> Move {
        let mut one = under_way();
        one.state = MoveState::Done;
        one.ended = Some(UnixSeconds(one.began.0 + 125));
        one.progress.left_bytes = Some(0);
        one
    }

    #[test]
    fn what_is_under_way_comes_first() {
        let moves = Moves {
            under_way: vec![under_way()],
            ended: vec![done_move()],
        };
        assert_eq!(
            list(&moves),
            "NO  DISK  WHAT            STATE    DONE  RATE      LEFT  NEAR READS
7   web1  tokyo -> osaka  copying  50%   95 MiB/s  43s   87%

ended, the last first:
NO  DISK  WHAT            STATE  COPIED  TOOK   ENDED
7   web1  tokyo -> osaka  done   3 GiB   2m 5s  2026-11-21 22:02 UTC"
        );
        let none = Moves {
            under_way: Vec::new(),
            ended: Vec::new(),
        };
        assert_eq!(list(&none), "nothing is moving");
    }

    #[test]
    fn one_move_tells_all_that_is_known() {
        assert_eq!(
            one(&under_way()),
            "move      7 of web1: tokyo -> osaka
because   its VM came to osaka-1
state     copying
copied    3 GiB (2 GiB on links), 1 GiB were there already, 4 GiB left
          12 MiB of it because the guest read it
extents   15 of 32 done
rate      95 MiB/s, at most 100 MiB/s; 43s left
near      87% of reads near
began     2026-11-21 22:00 UTC"
        );
        let over = one(&done_move());
        assert!(
            over.contains("ended 2026-11-21 22:02 UTC after 2m 5s"),
            "{over}"
        );
        assert!(!over.contains("rate"), "{over}");
    }

    #[test]
    fn a_move_that_has_just_begun_promises_no_time() {
        let mut one = under_way();
        one.progress = MoveProgress::default();
        assert_eq!(time_left(&one.progress), "time left not known yet");
        one.progress.left_bytes = Some(0);
        assert_eq!(time_left(&one.progress), "time left not known yet");
        assert_eq!(done(&one.progress), "0 B");
        assert_eq!(near_sentence(&one.progress), "no reads lately");
    }

    #[test]
    fn a_prepared_disk_waits_for_its_vm_only() {
        let mut one = under_way();
        one.kind = MoveKind::Prepare;
        one.state = MoveState::Planned {
            waits_for: "its VM: what it had is copied".into(),
        };
        assert!(!is_prepared(&one), "half of it is copied");
        one.progress.extents_done = one.progress.extents;
        assert!(is_prepared(&one));
        assert!(finished(&one).starts_with("web1: prepare in osaka, ready for its VM; 3 GiB"));
    }

    #[test]
    fn steering_says_what_holds_now() {
        let mut one = under_way();
        one.own_limit = Some(20 << 20);
        let said = controlled(&one, Control::Limit(20 << 20));
        assert_eq!(
            said,
            "the move of web1 goes on, at most 20 MiB/s as you said"
        );
        assert!(controlled(&one, Control::Pause).contains("ukai moves resume web1"));
    }

    #[test]
    fn where_it_goes() {
        let dc = |name: &str| vec![DatacenterName::new(name).unwrap()];
        let says = |from: &[_], to: &[_]| what(MoveKind::Move, from, to);
        assert_eq!(says(&dc("tokyo"), &dc("tokyo")), "within tokyo");
        assert_eq!(says(&[], &dc("osaka")), "to osaka");
        assert_eq!(says(&dc("tokyo"), &[]), "out of tokyo");
        assert_eq!(
            what(MoveKind::Prepare, &dc("tokyo"), &dc("osaka")),
            "prepare in osaka"
        );
    }
}
