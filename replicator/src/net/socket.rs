//! The UDP socket under QUIC, with as few wake-ups and calls of the kernel as it allows.
//!
//! It differs from quinn's own in two ways, and in nothing else:
//!
//! - It listens for what arrives only. A UDP socket tells that it may be written to whenever a packet that it sent has left the
//!   machine or reached its reader: an event for each packet, which woke the thread for nothing. Who finds it full
//!   listens for that, until it is not.
//! - A call that brings fewer packets than there was room for has emptied it: no second one asks whether that is so.

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tokio as quinn uses it, but for its sockets.
#[derive(Debug)]
pub struct QuietRuntime;

impl Runtime for QuietRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(QuietSocket::new(socket)?))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct QuietSocket {
    /// What the kernel offers for it.
    state: UdpSocketState,
    socket: AsyncFd<UdpSocket>,
    /// The last packet found no room in it.
    full: AtomicBool,
}

impl QuietSocket {
    fn new(socket: UdpSocket) -> io::Result<QuietSocket> {
        // Sets it to be asked without waiting, too.
        let state = UdpSocketState::new((&socket).into())?;
        Ok(QuietSocket {
            state,
            socket: listen(socket, Interest::READABLE)?,
            full: AtomicBool::new(false),
        })
    }
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(RoomPoller {
            socket: self,
            listening: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(would_block) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            // Seen before the kernel is asked: what arrives later counts as new.
            let mut readable = ready!(self.socket.poll_read_ready(context))?;
            match self.state.recv(self.socket.get_ref().into(), into, meta) {
                Ok(packets) => {
                    if packets < into.len() {
                        readable.clear_ready();
                    }
                    return Poll::Ready(Ok(packets));
                }
                Err(error) if would_block(&error) => readable.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Tells one connection when there is room in the socket again.
#[derive(Debug)]
struct RoomPoller {
    socket: Arc<QuietSocket>,
    /// The same socket by another descriptor, while it is full.
    listening: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for RoomPoller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.socket.full.load(Ordering::Acquire) {
            this.listening = None;
            return Poll::Ready(Ok(()));
        }
        if this.listening.is_none() {
            let again = OwnedFd::from(this.socket.socket.get_ref().try_clone()?);
            this.listening = Some(listen(again, Interest::WRITABLE)?);
        }
        let listening = this.listening.as_ref().expect("just made");
        drop(ready!(listening.poll_write_ready(context))?);
        this.socket.full.store(false, Ordering::Release);
        this.listening = None;
        Poll::Ready(Ok(()))
    }
}

fn listen<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a socket owns its descriptor, and it is the same as long as the socket lives.
    let listening = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(listening?)
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn socket() -> Arc<QuietSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Arc::new(QuietSocket::new(socket).unwrap())
    }

    fn packet(to: &QuietSocket, contents: &[u8]) -> impl Fn(&QuietSocket) -> io::Result<()> {
        let (destination, contents) = (to.local_addr().unwrap(), contents.to_vec());
        move |from| {
            from.try_send(&Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: None,
            })
        }
    }

    async fn received(socket: &QuietSocket, room: usize) -> usize {
        let mut memory = vec![[0; 2048]; room];
        let mut into: Vec<IoSliceMut<'_>> =
            memory.iter_mut().map(|at| IoSliceMut::new(at)).collect();
        let mut meta = vec![RecvMeta::default(); room];
        let got = poll_fn(|context| socket.poll_recv(context, &mut into, &mut meta));
        tokio::time::timeout(PATIENCE, got).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn all_that_arrives_is_received_however_little_is_taken_at_once() {
        let (from, to) = (socket(), socket());
        let send = packet(&to, b"a packet");
        for round in 0..50usize {
            let sent = 1 + round * 7 % 40;
            for _ in 0..sent {
                send(&from).unwrap();
            }
            let mut got = 0;
            while got < sent {
                got += received(&to, 1 + round % 16).await;
            }
            assert_eq!(got, sent, "round {round}");
            // The sender is not told of what has left: it has nothing to hear.
            let mut memory = [0; 16];
            let mut into = [IoSliceMut::new(&mut memory)];
            let heard = poll_fn(|context| {
                Poll::Ready(from.poll_recv(context, &mut into, &mut [RecvMeta::default()]))
            });
            assert!(heard.await.is_pending());
        }
    }

    #[tokio::test]
    async fn a_packet_that_comes_while_one_waits_wakes_it() {
        let (from, to) = (socket(), socket());
        let send = packet(&to, b"a packet");
        for _ in 0..20 {
            let (sent, got) = tokio::join!(
                async {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    send(&from)
                },
                received(&to, 32)
            );
            sent.unwrap();
            assert_eq!(got, 1);
        }
    }

    #[tokio::test]
    async fn who_finds_the_socket_full_is_woken_when_it_is_not() {
        // A socket of the kernel's that is full until its peer reads: as UDP is, but told from outside when.
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while near.send(&[0; 1024]).is_ok() {
            sent += 1;
        }
        assert!(sent > 0);
        let quiet = Arc::new(QuietSocket {
            state: socket().state_of_another(),
            socket: listen(UdpSocket::from(OwnedFd::from(near)), Interest::READABLE).unwrap(),
            full: AtomicBool::new(true),
        });
        let mut poller = quiet.clone().create_io_poller();
        let ready = poll_fn(|context| Poll::Ready(poller.as_mut().poll_writable(context)));
        assert!(ready.await.is_pending());
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            for _ in 0..sent {
                far.recv(&mut [0; 1024]).unwrap();
            }
            far
        });
        let room = poll_fn(|context| poller.as_mut().poll_writable(context));
        tokio::time::timeout(PATIENCE, room).await.unwrap().unwrap();
        assert!(!quiet.full.load(Ordering::Acquire));
        reader.join().unwrap();
    }

    impl QuietSocket {
        fn state_of_another(&self) -> UdpSocketState {
            UdpSocketState::new(self.socket.get_ref().into()).unwrap()
        }
    }
}
