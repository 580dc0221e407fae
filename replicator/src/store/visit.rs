//! Who is inside a store: so that a thread that stands still there can be given up.
//!
//! A reactor calls the store as a function. Where the media hang within that call (a frozen file system, say) the thread
//! hangs with them, and nothing wakes it. Whoever watches over the reactors sees a visit that does not end, gives the thread
//! up, and has another one do its work. From that moment on the thread must touch nothing of what is the other's now: it
//! does not return from the visit but unwinds, and what else runs on it is not polled any more ([`unless_given_up`]).
//!
//! Only threads that have [entered their name](Visitor::sign_in) are watched.

use std::cell::OnceCell;
use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

thread_local! {
    static ME: OnceCell<Visitor> = const { OnceCell::new() };
}

/// Threads that are given up and still inside.
static STUCK: AtomicUsize = AtomicUsize::new(0);

const GIVEN_UP: u64 = u64::MAX;

/// A thread, as others see it. Clones are of the same one.
#[derive(Clone, Default, Debug)]
pub struct Visitor {
    /// Odd: inside. Only the thread itself changes it, but for [`GIVEN_UP`], which takes the place of an odd one.
    visits: Arc<AtomicU64>,
}

/// One stay of one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit(u64);

impl Visitor {
    pub fn new() -> Visitor {
        Visitor::default()
    }

    /// This thread is it, from now on.
    ///
    /// # Panics
    /// If the thread has signed in before.
    pub fn sign_in(&self) {
        ME.with(|me| me.set(self.clone()))
            .expect("a thread signs in once");
    }

    /// The stay that has not ended, if there is one. The same one, look after look: the thread stands still.
    pub fn inside(&self) -> Option<Visit> {
        let visits = self.visits.load(Ordering::Acquire);
        (visits % 2 == 1 && visits != GIVEN_UP).then_some(Visit(visits))
    }

    /// Gives the thread up, if it is still within that stay: then it does nothing any more.
    pub fn give_up(&self, visit: Visit) -> bool {
        // Before: it may be back at once.
        STUCK.fetch_add(1, Ordering::Relaxed);
        let stands =
            self.visits
                .compare_exchange(visit.0, GIVEN_UP, Ordering::AcqRel, Ordering::Relaxed);
        if stands.is_err() {
            STUCK.fetch_sub(1, Ordering::Relaxed);
        }
        stands.is_ok()
    }

    pub fn is_given_up(&self) -> bool {
        self.visits.load(Ordering::Acquire) == GIVEN_UP
    }
}

/// Somebody who was given up is still inside: no place to go into.
pub fn somebody_is_stuck() -> bool {
    STUCK.load(Ordering::Relaxed) > 0
}

/// Polls `future` until the thread that it runs on is given up: then it stays as it is until it is dropped.
pub async fn unless_given_up<F: Future>(future: F) -> F::Output {
    let me = ME.with(|me| me.get().cloned());
    let mut future = pin!(future);
    poll_fn(|context| match &me {
        Some(me) if me.is_given_up() => Poll::Pending,
        _ => future.as_mut().poll(context),
    })
    .await
}

/// The thread is inside until this is dropped. Then, if it was given up meanwhile, it unwinds.
pub struct Inside(());

/// What it unwinds with: no panic, and nothing to report.
struct GivenUp;

impl Inside {
    /// # Panics
    /// If the thread is inside already: it would seem to be outside then, and be given up where it is not. It unwinds where the
    /// thread has been given up.
    pub fn enter() -> Inside {
        ME.with(|me| {
            let Some(me) = me.get() else { return };
            let visits = me.visits.load(Ordering::Relaxed);
            if visits == GIVEN_UP {
                resume_unwind(Box::new(GivenUp));
            }
            assert!(visits % 2 == 0, "a thread goes in once at a time");
            // What this thread did before is seen by whoever gives it up.
            me.visits.store(visits + 1, Ordering::Release);
        });
        Inside(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        ME.with(|me| {
            let Some(me) = me.get() else { return };
            let visit = me.visits.load(Ordering::Relaxed);
            let left = visit != GIVEN_UP
                && me
                    .visits
                    .compare_exchange(visit, visit + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            if left {
                return;
            }
            STUCK.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("the media go on: a thread that was given up for them ends");
            if !std::thread::panicking() {
                resume_unwind(Box::new(GivenUp));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::channel;

    /// A thread that goes in, and stays until it is let go; then what came of it.
    fn visit(visitor: &Visitor, give_up: bool) -> (bool, bool) {
        let (let_go, held) = channel::<()>();
        let (entered, is_in) = channel();
        let me = visitor.clone();
        let thread = std::thread::spawn(move || {
            me.sign_in();
            let mut came_back = false;
            let first = catch_unwind(AssertUnwindSafe(|| {
                let inside = Inside::enter();
                entered.send(()).unwrap();
                held.recv().unwrap();
                drop(inside);
                came_back = true;
            }));
            assert_eq!(first.is_ok(), came_back);
            let again = catch_unwind(|| drop(Inside::enter())).is_ok();
            (came_back, again)
        });
        is_in.recv().unwrap();
        let stay = visitor.inside().expect("it is inside");
        assert_eq!(visitor.inside(), Some(stay), "still");
        if give_up {
            assert!(visitor.give_up(stay));
            assert!(!visitor.give_up(stay), "once");
            assert!(visitor.is_given_up() && visitor.inside().is_none());
        }
        let_go.send(()).unwrap();
        let came = thread.join().unwrap();
        assert!(visitor.inside().is_none());
        assert!(!visitor.give_up(stay), "it is out");
        came
    }

    #[test]
    fn who_is_given_up_comes_back_to_nothing_and_goes_in_no_more() {
        assert_eq!(visit(&Visitor::new(), false), (true, true));
        let stuck = Visitor::new();
        assert_eq!(visit(&stuck, true), (false, false));
        assert!(stuck.is_given_up(), "for ever");
    }

    #[test]
    fn threads_that_have_not_signed_in_are_not_watched() {
        let inside = Inside::enter();
        let _twice = Inside::enter();
        drop(inside);
    }

    #[test]
    fn who_is_inside_does_not_go_in_again() {
        let visitor = Visitor::new();
        let me = visitor.clone();
        let thread = std::thread::spawn(move || {
            me.sign_in();
            let _inside = Inside::enter();
            assert!(catch_unwind(Inside::enter).is_err());
            assert!(me.inside().is_some());
        });
        thread.join().unwrap();
        assert!(visitor.inside().is_none());
    }

    #[test]
    fn what_runs_on_a_thread_that_is_given_up_stands_still() {
        let visitor = Visitor::new();
        let me = visitor.clone();
        let thread = std::thread::spawn(move || {
            me.sign_in();
            let mut polled = 0;
            let mut task = Box::pin(unless_given_up(poll_fn(|_| {
                polled += 1;
                Poll::<()>::Pending
            })));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(task.as_mut().poll(&mut context).is_pending());
            let stuck = catch_unwind(AssertUnwindSafe(|| {
                let _inside = Inside::enter();
                assert!(me.give_up(me.inside().unwrap()));
            }));
            assert!(stuck.is_err());
            assert!(task.as_mut().poll(&mut context).is_pending());
            drop(task);
            polled
        });
        assert_eq!(thread.join().unwrap(), 1);
    }
}
