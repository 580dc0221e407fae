//! A backend on a reactor of its own, in a thread, as a node has it.

use super::eventually;
use crate::device::{Backend, Lifeline, Options, Status};
use crate::disk::MemDisk;
use replicator::store::visit::Visitor;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

enum Order {
    Status(mpsc::Sender<Status>),
    Shutdown,
    Kill,
}

pub struct Server {
    socket: PathBuf,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
    visitor: Visitor,
    lifeline: Lifeline,
}

impl Server {
    pub fn start(disk: MemDisk, options: Options) -> Server {
        let (orders, mut inbox) = tokio::sync::mpsc::unbounded_channel();
        let (started, ready) = oneshot::channel();
        let socket = options.socket.clone();
        let visitor = Visitor::new();
        let me = visitor.clone();
        let thread = std::thread::spawn(move || {
            me.sign_in();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let backend = Backend::spawn(disk, options).expect("a backend");
                let told = started.send(backend.lifeline());
                assert!(told.is_ok(), "somebody waits");
                while let Some(order) = inbox.recv().await {
                    match order {
                        Order::Status(to) => to.send(backend.status()).expect("somebody waits"),
                        Order::Shutdown => {
                            backend.shutdown().await;
                            return;
                        }
                        // Leaving drops the reactor with all that is in it, at once.
                        Order::Kill => return,
                    }
                }
            });
        });
        let lifeline = ready.blocking_recv().expect("the backend has started");
        Server {
            socket,
            orders,
            thread: Some(thread),
            visitor,
            lifeline,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn status(&self) -> Status {
        let (to, from) = mpsc::channel();
        // Where the server is gone, so is the other end of this.
        let _ = self.orders.send(Order::Status(to));
        from.recv().expect("a status")
    }

    pub fn shutdown(mut self) {
        self.end(Order::Shutdown);
    }

    /// Ends it between two of its steps, as near as a test in the same process can come to kill -9.
    pub fn kill(mut self) {
        self.end(Order::Kill);
        // Its control thread is the last to go, and takes the socket with it.
        eventually("the socket is gone", || !self.socket.exists());
    }

    /// Its thread stands still within the disk: its socket is another's now. What it does later shows when this is dropped.
    pub fn give_up(&self) {
        eventually("the thread stands still", || {
            let visit = self.visitor.inside();
            visit.is_some_and(|visit| self.visitor.give_up(visit))
        });
        self.lifeline.cut();
    }

    fn end(&mut self, order: Order) {
        let _ = self.orders.send(order);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reactor did not panic");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.orders.send(Order::Kill);
            let _ = thread.join();
        }
    }
}
