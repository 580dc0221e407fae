//! The control thread: accepts one front-end after another and runs the vhost-user handler for it.

use super::config_space::ConfigSpace;
use super::handler::Handler;
use super::message::{Mailbox, Message};
use super::{Options, Shared};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use vhost::vhost_user::{BackendReqHandler, Error};

/// The thread, and how to end it.
pub struct Control {
    thread: Option<JoinHandle<()>>,
    end: Arc<End>,
}

/// What ends the thread, wherever it stands.
pub struct End {
    over: AtomicBool,
    /// The socket is another device's now, by its name.
    replaced: Mutex<bool>,
    listener: UnixListener,
    /// Wakes it from waiting for a front-end.
    bell: (UnixStream, UnixStream),
    /// Its connection is what wakes it from waiting for a message.
    shared: Arc<Shared>,
}

impl Control {
    pub fn spawn(
        listener: UnixListener,
        mailbox: Mailbox,
        shared: Arc<Shared>,
        config: ConfigSpace,
        options: &Options,
    ) -> io::Result<Control> {
        let end = Arc::new(End {
            over: AtomicBool::new(false),
            replaced: Mutex::new(false),
            listener: listener.try_clone()?,
            bell: UnixStream::pair()?,
            shared: Arc::clone(&shared),
        });
        let server = Server {
            listener,
            path: options.socket.clone(),
            end: Arc::clone(&end),
            mailbox,
            shared,
            config: Arc::new(std::sync::Mutex::new(config)),
            options: options.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || server.serve())?;
        Ok(Control {
            thread: Some(thread),
            end,
        })
    }

    /// Makes the thread end: it disconnects, and waits until the device has settled.
    pub fn end(&self) {
        self.end.end();
    }

    /// The way to do so from another thread.
    pub fn handle(&self) -> Weak<End> {
        Arc::downgrade(&self.end)
    }

    /// Waits for the thread. Only after the device has ended: the thread may wait for its answer.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a control thread had panicked");
        }
    }
}

impl End {
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.bell.0.shutdown(Shutdown::Both);
        if let Some(connection) = &*self.shared.connection.lock() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// The device does not answer any more, so the thread may never end: from now on the front-end is disconnected, and
    /// the socket's name is free for another device.
    pub fn give_up(&self) {
        *self.replaced.lock() = true;
        self.over.store(true, Ordering::SeqCst);
        // Nobody who tries is accepted any more, by a thread that still has it open; nor is who has tried already.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::error!(%error, "a socket cannot be given up");
        }
        while self.listener.accept().is_ok() {}
        self.end();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

struct Server {
    listener: UnixListener,
    path: PathBuf,
    end: Arc<End>,
    mailbox: Mailbox,
    shared: Arc<Shared>,
    config: Arc<std::sync::Mutex<ConfigSpace>>,
    options: Options,
}

impl Server {
    fn serve(self) {
        while let Some(stream) = self.accept() {
            self.shared.connected.store(true, Ordering::Relaxed);
            let clean = self.converse(stream);
            self.shared.connected.store(false, Ordering::Relaxed);
            if let Err(error) = clean {
                tracing::warn!(socket = %self.path.display(), %error, "gave a front-end up");
            }
            // Settled: all that was in flight has ended, the disk is stopped. The next front-end may
            // have connected meanwhile; it waits in the backlog.
            if self.mailbox.ask(Message::Settle).is_err() {
                break;
            }
        }
        // While the listener is still open, so that nobody takes the name for stale and puts a socket
        // of its own there, which we would then remove.
        let replaced = self.end.replaced.lock();
        if !*replaced {
            let _ = std::fs::remove_file(&self.path);
        }
        drop(replaced);
        drop(self.listener);
    }

    fn accept(&self) -> Option<UnixStream> {
        loop {
            let mut waiting = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.end.bell.1, PollFlags::IN),
            ];
            if let Err(error) = rustix::event::poll(&mut waiting, None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "cannot wait for a front-end");
                return None;
            }
            if self.end.over.load(Ordering::SeqCst) {
                return None;
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Out of descriptors, most likely: it may pass.
                        tracing::warn!(%error, "cannot accept a front-end");
                        std::thread::sleep(std::time::Duration::from_millis(200));
                    }
                },
            }
        }
    }

    /// Handles messages until the front-end goes, or says what cannot be.
    fn converse(&self, stream: UnixStream) -> Result<(), Error> {
        stream.set_nonblocking(false).map_err(Error::SocketError)?;
        *self.shared.connection.lock() = Some(stream.try_clone().map_err(Error::SocketError)?);
        tracing::info!(socket = %self.path.display(), "a front-end has connected");
        let handler = Handler::new(
            self.mailbox.clone(),
            Arc::clone(&self.config),
            &self.options,
        );
        let mut requests =
            BackendReqHandler::from_stream(stream, Arc::new(std::sync::Mutex::new(handler)));
        let ended = loop {
            if self.end.over.load(Ordering::SeqCst) {
                break Ok(());
            }
            match requests.handle_request() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(Error::Disconnected) => break Ok(()),
                // The front-end may have been told (REPLY_ACK) or may not: it may rely on what was
                // refused, so there is no going on.
                Err(error) => break Err(error),
            }
        };
        // No ring is touched from here on, and only then the front-end sees the end: QEMU reads the
        // used index at that moment and counts on it.
        let _ = self.mailbox.ask(Message::Detach);
        *self.shared.connection.lock() = None;
        drop(requests);
        ended
    }
}
