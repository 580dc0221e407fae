//! What comes in for a disk from links, store threads and the placement service, in order of arrival.

use parking_lot::Mutex;
use replicator::writer::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Cheap to clone; filled from any thread, emptied by the disk's own. It holds no more than answers
/// to what the writer has asked, and a few words about sessions.
#[derive(Clone, Default)]
pub(super) struct Inbox {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Set only while the disk sleeps, so that a near answer given inside the call wakes nobody.
    waker: Option<Waker>,
}

impl Inbox {
    pub fn push(&self, event: Event) {
        let waker = {
            let mut state = self.state.lock();
            state.events.push_back(event);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn pop(&self) -> Option<Event> {
        self.state.lock().events.pop_front()
    }

    /// The disk's task is running and will look again before it sleeps: no need to wake it.
    pub fn stay_awake(&self) {
        self.state.lock().waker = None;
    }

    /// Ready when there is something to pop; otherwise the task is woken when there is.
    pub fn poll_filled(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.events.is_empty() {
            state.waker = Some(context.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}
