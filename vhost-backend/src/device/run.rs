//! The device on the reactor: one task that takes kicks, completions and messages in turn.

use super::blk::{Blk, Outcome, Wait};
use super::message::{Answer, Letter, Message, ToRing};
use super::watch::Watch;
use super::{Options, Refused, Shared, event};
use crate::disk::{Disk, Failure, RequestId};
use std::cell::Cell;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Completions taken at once, so that their answers share an interrupt: what a ring usually holds.
const BATCH: usize = 128;

/// How often one who waits for requests to end is looked after: whether anybody is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Serves until nobody can send messages any more; then gives the disk back.
pub async fn run<D: Disk>(
    disk: D,
    options: Options,
    letters: mpsc::UnboundedReceiver<Letter>,
    shared: Arc<Shared>,
) -> D {
    let mut device = Device {
        blk: Blk::new(&options, &disk),
        disk,
        kicks: Vec::new(),
        kicks_most: usize::from(options.queues),
        waiting: Vec::new(),
        letters,
        shared,
        drain_timeout: options.drain_timeout,
        watch: Watch::new(),
        looking: None,
    };
    device.serve().await;
    device.disk
}

struct Device<D> {
    blk: Blk,
    disk: D,
    /// Up to the last ring that has had one.
    kicks: Vec<Option<AsyncFd<File>>>,
    kicks_most: usize,
    waiting: Vec<Waiting>,
    letters: mpsc::UnboundedReceiver<Letter>,
    shared: Arc<Shared>,
    drain_timeout: Duration,
    watch: Watch,
    looking: Option<Looking>,
}

/// The one device of its thread that looks for its disk's answers.
struct Looking;

thread_local! {
    static SOMEBODY_LOOKS: Cell<bool> = const { Cell::new(false) };
}

impl Looking {
    /// Unless another one does.
    fn alone() -> Option<Looking> {
        let another = SOMEBODY_LOOKS.replace(true);
        (!another).then(|| Looking)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        SOMEBODY_LOOKS.set(false);
    }
}

/// A message that is not answered yet.
struct Waiting {
    wait: Wait,
    answer: oneshot::Sender<Answer>,
    since: Instant,
    /// None: it waits for as long as it takes.
    look: Option<Instant>,
    /// How often the log has said that it waits.
    said: u32,
}

enum Event {
    Letter(Option<Letter>),
    Completed(RequestId, Result<(), Failure>),
    Kicked,
    Overdue,
    More,
}

impl<D: Disk> Device<D> {
    async fn serve(&mut self) {
        // Since the guest asked or the disk answered last.
        let mut waited = false;
        loop {
            let before = self.blk.in_flight();
            let more = self.blk.turn(&mut self.disk);
            self.blk.interrupt();
            self.settle().await;
            self.show();
            let now = std::time::Instant::now();
            if self.blk.in_flight() > before {
                self.watch.asked(now);
                waited = false;
            }
            let worth_it = self.watch.goes_on(self.blk.in_flight(), now);
            let watching = self.looks(worth_it);
            // Nobody sleeps before the guest has been asked to kick again.
            let again = self.blk.watch(watching);
            let event = self.event(more || watching || again);
            match noting_waits(event, &mut waited).await {
                Event::Letter(None) => return,
                Event::Letter(Some(letter)) => self.read(letter),
                Event::Completed(id, result) => {
                    let waited = std::mem::take(&mut waited);
                    let in_flight = self.blk.in_flight();
                    self.watch
                        .answered(in_flight, waited, std::time::Instant::now());
                    self.blk.complete(id, result, &mut self.disk);
                    self.complete_more().await;
                }
                Event::Kicked | Event::More => {}
                Event::Overdue => self.look_after_waiting(),
            }
        }
    }

    /// Whether it is us who look, where that is worth it. A guest can only be looked for by its own device; but one that looks for
    /// its disk's answers keeps the thread awake for those of all others.
    fn looks(&mut self, worth_it: bool) -> bool {
        let for_answers = worth_it && self.blk.in_flight() > 0 && self.watch.is_for_answers();
        self.looking = match for_answers {
            true => self.looking.take().or_else(Looking::alone),
            false => None,
        };
        worth_it && (!for_answers || self.looking.is_some())
    }

    async fn event(&mut self, more: bool) -> Event {
        let overdue = self.waiting.iter().filter_map(|waiting| waiting.look).min();
        let (blk, kicks) = (&mut self.blk, &mut self.kicks);
        tokio::select! {
            biased;
            letter = self.letters.recv() => Event::Letter(letter),
            // Also before it is started: it stands by.
            (id, result) = self.disk.completed() => Event::Completed(id, result),
            () = poll_fn(|context| poll_kicks(kicks, blk, context)) => Event::Kicked,
            () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => Event::Overdue,
            () = tokio::task::yield_now(), if more => Event::More,
        }
    }

    /// What has completed besides, without waiting.
    async fn complete_more(&mut self) {
        for _ in 1..BATCH {
            let next = {
                let mut completed = pin!(self.disk.completed());
                poll_fn(|context| Poll::Ready(completed.as_mut().poll(context))).await
            };
            match next {
                Poll::Ready((id, result)) => self.blk.complete(id, result, &mut self.disk),
                Poll::Pending => return,
            }
        }
    }

    fn read(&mut self, letter: Letter) {
        let Letter { message, answer } = letter;
        let message = match message {
            Message::Ring(index, ToRing::Kick(Some(kick))) => match self.listen(index, kick) {
                Ok(message) => message,
                Err(refused) => {
                    let _ = answer.send(Err(refused));
                    return;
                }
            },
            Message::Detach => {
                // It asks again for what was not begun, if it comes back.
                self.disk.give_back();
                self.kicks.iter_mut().for_each(|kick| *kick = None);
                // Whoever waited has gone with the connection.
                self.waiting
                    .retain(|waiting| matches!(waiting.wait, Wait::Quiesced));
                Message::Detach
            }
            other => other,
        };
        match self.blk.apply(message, &mut self.disk) {
            Outcome::Done(done) => {
                let _ = answer.send(done);
            }
            Outcome::After(wait) => {
                // A front-end that has gone waits for nothing: that may take as long as it takes.
                let looked_after = wait != Wait::Settled;
                let since = Instant::now();
                self.waiting.push(Waiting {
                    wait,
                    answer,
                    since,
                    look: looked_after.then(|| since + LOOK.min(self.drain_timeout)),
                    said: 0,
                });
            }
        }
    }

    fn listen(&mut self, index: u16, kick: File) -> Result<Message, Refused> {
        let ring = usize::from(index);
        if ring >= self.kicks_most {
            return Err(Refused::new("no such ring"));
        }
        let slots = self.kicks.len().max(ring + 1);
        self.kicks.resize_with(slots, || None);
        let slot = &mut self.kicks[ring];
        // The old one first: it may be the same file, which can be registered but once.
        *slot = None;
        *slot = Some(event::waited_for(kick)?);
        Ok(Message::Ring(index, ToRing::Kick(None)))
    }

    /// Answers whoever has waited long enough.
    async fn settle(&mut self) {
        while let Some(index) = self
            .waiting
            .iter()
            .position(|waiting| self.blk.is_over(waiting.wait))
        {
            let Waiting { wait, answer, .. } = self.waiting.swap_remove(index);
            let value = self.blk.conclude(wait, &mut self.disk);
            if let Wait::Stopped(ring) = wait
                && let Some(kick) = self.kicks.get_mut(usize::from(ring))
            {
                *kick = None;
            }
            let last = matches!(wait, Wait::Stopped(_) | Wait::Settled);
            if last && self.blk.disk_is_idle() {
                // It takes its time: others may look meanwhile.
                self.looking = None;
                self.disk.stop().await;
                self.blk.disk_stopped();
                self.show();
            }
            let _ = answer.send(Ok(value));
        }
    }

    /// A front-end whose ring ends or pauses is not answered while a request of it may still land in its guest's memory,
    /// however long that takes: QEMU would go on as if there were none, and before 10.1 even migrate the guest at an index
    /// that skips some of them.
    fn look_after_waiting(&mut self) {
        let now = Instant::now();
        for index in (0..self.waiting.len()).rev() {
            let waiting = &mut self.waiting[index];
            if waiting.look.is_none_or(|look| look > now) {
                continue;
            }
            let long = now - waiting.since >= self.drain_timeout * (waiting.said + 1);
            let begun = self.disk.has_begun();
            let refused = match waiting.wait {
                Wait::Settled => None,
                Wait::Quiesced if !begun => Some("the disk is not open"),
                Wait::Quiesced => long.then_some("requests in flight did not end in time"),
                _ if self.shared.front_end_has_gone() => Some("the front-end has gone"),
                // None of them was begun, so that it may go on at the used index.
                _ if !begun => long.then_some("the disk was not opened in time"),
                _ => None,
            };
            if let Some(why) = refused {
                let Waiting { wait, answer, .. } = self.waiting.swap_remove(index);
                tracing::warn!(
                    ?wait,
                    in_flight = self.blk.in_flight(),
                    "requests are open: {why}"
                );
                let _ = answer.send(Err(Refused::new(why)));
                continue;
            }
            if long {
                waiting.said += 1;
                let waited_s = (now - waiting.since).as_secs();
                tracing::warn!(wait = ?waiting.wait, in_flight = self.blk.in_flight(), waited_s, "requests do not end: the front-end is not answered before they do");
            }
            waiting.look = Some(now + LOOK.min(self.drain_timeout));
        }
    }

    fn show(&self) {
        let Shared {
            connected: _,
            connection: _,
            rings_running,
            rings_broken,
            requests_in_flight,
            disk_started,
        } = &*self.shared;
        rings_running.store(self.blk.rings_running(), Ordering::Relaxed);
        rings_broken.store(self.blk.rings_broken(), Ordering::Relaxed);
        requests_in_flight.store(self.blk.in_flight(), Ordering::Relaxed);
        disk_started.store(self.blk.disk_started(), Ordering::Relaxed);
    }
}

/// The same, and whether it had to be waited for.
async fn noting_waits<T>(what: impl Future<Output = T>, waited: &mut bool) -> T {
    let mut what = pin!(what);
    poll_fn(|context| {
        let polled = what.as_mut().poll(context);
        *waited |= polled.is_pending();
        polled
    })
    .await
}

/// Ready once any ring has been kicked; all that have been are known to `blk` then.
fn poll_kicks(
    kicks: &mut [Option<AsyncFd<File>>],
    blk: &mut Blk,
    context: &mut Context<'_>,
) -> Poll<()> {
    let mut any = Poll::Pending;
    for (index, slot) in kicks.iter_mut().enumerate() {
        let Some(kick) = slot else { continue };
        let Poll::Ready(ready) = kick.poll_read_ready(context) else {
            continue;
        };
        let read = ready.and_then(|mut guard| {
            let read = kick.get_ref().read_exact(&mut [0; 8]);
            guard.clear_ready();
            read
        });
        match read {
            Ok(_) => {
                blk.kicked(index as u16);
                any = Poll::Ready(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                // Somebody else has read it. Look again whether there is more.
                context.waker().wake_by_ref();
            }
            Err(error) => {
                tracing::warn!(ring = index, fd = kick.as_raw_fd(), %error, "a kick descriptor is broken");
                *slot = None;
            }
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::Looking;

    #[test]
    fn one_at_a_time_looks_for_answers_on_a_thread() {
        let one = Looking::alone();
        assert!(one.is_some());
        assert!(Looking::alone().is_none() && Looking::alone().is_none());
        let elsewhere = std::thread::spawn(|| Looking::alone().is_some());
        assert!(elsewhere.join().unwrap());
        drop(one);
        assert!(Looking::alone().is_some());
    }
}
