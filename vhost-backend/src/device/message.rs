//! What the control thread asks of the device, one message at a time, each answered when it is done.

use super::Refused;
use super::dirty_log::DirtyLog;
use super::features::Features;
use super::inflight::Inflight;
use super::memory::NewRegion;
use super::ring::Addresses;
use std::fs::File;
use tokio::sync::{mpsc, oneshot};
use vmm_sys_util::event::EventNotifier;

#[derive(Debug)]
pub enum Message {
    SetFeatures(Features),
    SetWriteCache(bool),
    SetMemory(Vec<NewRegion>),
    AddRegion(NewRegion),
    RemoveRegion {
        guest_addr: u64,
        bytes: u64,
        user_addr: u64,
    },
    SetInflight(Inflight),
    SetLog(DirtyLog),
    Ring(u16, ToRing),
    /// The connection is lost or has been given up: at once, no ring is touched any more.
    Detach,
    /// After [`Message::Detach`]: wait for what is in flight, stop the disk, forget the front-end.
    Settle,
    /// The backend is about to end, in good order: take nothing more, answer what is in flight.
    Quiesce,
}

#[derive(Debug)]
pub enum ToRing {
    Size(u16),
    Addresses(Addresses),
    Base(u16),
    /// The descriptor stays with the event loop.
    Kick(Option<File>),
    /// Like the next, it never blocks.
    Call(Option<File>),
    Error(Option<EventNotifier>),
    Enable(bool),
    /// GET_VRING_BASE: answered with the index at which another may go on.
    Stop,
}

pub type Answer = Result<u64, Refused>;

#[derive(Debug)]
pub struct Letter {
    pub message: Message,
    pub answer: oneshot::Sender<Answer>,
}

/// The way to a device.
#[derive(Clone, Debug)]
pub struct Mailbox(mpsc::UnboundedSender<Letter>);

impl Mailbox {
    /// Not bounded by itself: the control thread waits for each answer, so there are never more
    /// than two letters in it (the other one being a shutdown).
    pub fn new() -> (Mailbox, mpsc::UnboundedReceiver<Letter>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Mailbox(sender), receiver)
    }

    fn post(&self, message: Message) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        // Where nobody reads, the answer's sender is dropped with the letter.
        let _ = self.0.send(Letter { message, answer });
        receiver
    }

    /// Waits, on a thread of its own, until the device has done it.
    pub fn ask(&self, message: Message) -> Answer {
        self.post(message)
            .blocking_recv()
            .unwrap_or_else(|_| Err(Refused::gone()))
    }

    pub async fn ask_async(&self, message: Message) -> Answer {
        self.post(message)
            .await
            .unwrap_or_else(|_| Err(Refused::gone()))
    }
}
