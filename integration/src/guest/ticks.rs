//! The host's ear for the guest's ticks (drawn in `guest-tools/src/ticks.rs`): when each of its
//! operations began and ended, by the host's clock, which goes on while the guest is moved.
//!
//! Every QEMU of one guest sends its ticks to one socket, a datagram each, and the kernel notes when it
//! came: the timing does not depend on when our thread gets to run.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

/// Where guests find the debug console.
pub const PORT: u16 = 0xe9;
/// An hour of a guest without KVM; 80 MB.
const MAX_TICKS: usize = 5_000_000;
const THREADS: usize = 32;
const OPERATIONS: usize = 3;
/// No guest says this: an operation that there is not.
const GONE: u8 = 3 << 1;
const POLL: Duration = Duration::from_millis(100);

/// A moment by the host's clock, in nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp(pub u64);

impl Stamp {
    pub fn now() -> Stamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Stamp(since.expect("after 1970").as_nanos() as u64)
    }

    pub fn since(self, earlier: Stamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn plus(self, later: Duration) -> Stamp {
        Stamp(self.0 + later.as_nanos() as u64)
    }

    /// Seconds from `origin`, negative before it.
    pub fn seconds_from(self, origin: Stamp) -> f64 {
        (self.0 as i128 - origin.0 as i128) as f64 / 1e9
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    Write,
    Read,
    Flush,
}

/// One operation of a guest's thread, from just before the system call to just after it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub doing: Doing,
    pub begun: Stamp,
    pub ended: Stamp,
}

impl Operation {
    pub fn took(&self) -> Duration {
        self.ended.since(self.begun)
    }
}

pub struct Ticks {
    at: u16,
    heard: Arc<Mutex<Vec<(Stamp, u8)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticks {
    pub fn listen() -> Result<Ticks> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(POLL))?;
        let on: libc::c_int = 1;
        let large: libc::c_int = 8 << 20;
        for (option, value) in [(libc::SO_TIMESTAMPNS, on), (libc::SO_RCVBUF, large)] {
            // SAFETY: both options take an int, which outlives the call.
            let status = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            ensure!(status == 0, "a socket with time stamps");
        }
        let at = socket.local_addr()?.port();
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (to, ending) = (Arc::clone(&heard), stop.clone());
        let thread = thread::spawn(move || hear(&socket, &to, &ending));
        Ok(Ticks {
            at,
            heard,
            stop,
            thread: Some(thread),
        })
    }

    /// QEMU's arguments.
    pub fn device(&self) -> [String; 4] {
        [
            "-chardev".to_owned(),
            format!("udp,id=ticks,host=127.0.0.1,port={}", self.at),
            "-device".to_owned(),
            format!("isa-debugcon,iobase={PORT},chardev=ticks"),
        ]
    }

    /// All operations that have ended, in the order of their ends.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        Ok(pair(&self.heard.lock().expect("no panic while held"))?.0)
    }

    /// The guest was killed: what it had begun has no end, and another one may be heard here.
    pub fn guest_is_gone(&self) {
        // What it said last is on its way to us, and comes before this.
        thread::sleep(POLL);
        let mut heard = self.heard.lock().expect("no panic while held");
        heard.push((Stamp::now(), GONE));
    }

    /// Since when the guest has been waiting for the oldest operation that has not ended.
    pub fn waiting_since(&self) -> Result<Option<Stamp>> {
        let heard = self.heard.lock().expect("no panic while held");
        Ok(pair(&heard)?.1)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hear(socket: &UdpSocket, to: &Mutex<Vec<(Stamp, u8)>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(tick) = receive(socket) {
            let mut heard = to.lock().expect("no panic while held");
            if heard.len() < MAX_TICKS {
                heard.push(tick);
            }
        }
    }
}

/// One tick with the time when the kernel took it in; `None` after a while without one.
fn receive(socket: &UdpSocket) -> Option<(Stamp, u8)> {
    let mut byte = 0_u8;
    // Large enough for one header and one timespec, and aligned as a header must be.
    let mut control = [0_u64; 16];
    let mut piece = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: the message points to one byte and to `control`, both alive and as long as it says; the
    // kernel says in msg_controllen how much of it holds headers, and the macros stay within that.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        if libc::recvmsg(socket.as_raw_fd(), &mut message, 0) != 1 {
            return None;
        }
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(header)
                    .cast::<libc::timespec>()
                    .read_unaligned();
                let nanos = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
                return Some((Stamp(nanos), byte));
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
        Some((Stamp::now(), byte))
    }
}

/// A guest that was killed leaves a beginning without an end, and so does what failed; anything else that does
/// not fit says that ticks were lost, and that no figure can be had from them.
fn pair(heard: &[(Stamp, u8)]) -> Result<(Vec<Operation>, Option<Stamp>)> {
    ensure!(heard.len() < MAX_TICKS, "more ticks than are kept");
    let mut begun = [[None; OPERATIONS]; THREADS];
    let mut operations = Vec::with_capacity(heard.len() / 2);
    for &(stamp, byte) in heard {
        if byte == GONE {
            begun = Default::default();
            continue;
        }
        let (thread, operation, end) = (byte >> 3, byte >> 1 & 3, byte & 1 == 1);
        let doing = match operation {
            0 => Doing::Write,
            1 => Doing::Read,
            2 => Doing::Flush,
            _ => bail!("tick {byte:#x} is none of ours"),
        };
        let open = &mut begun[usize::from(thread)][usize::from(operation)];
        if end {
            let begun = open.take().context("an end without a beginning")?;
            operations.push(Operation {
                doing,
                begun,
                ended: stamp,
            });
        } else {
            ensure!(open.is_none(), "two beginnings without an end");
            *open = Some(stamp);
        }
    }
    let oldest = begun.iter().flatten().copied().flatten().min();
    Ok((operations, oldest))
}

#[cfg(test)]
mod tests {
    use super::{Doing, GONE, Stamp, pair};

    #[test]
    fn beginnings_and_ends_of_threads_are_paired() {
        let write_of_3 = 3 << 3;
        let flush_of_0 = 2 << 1;
        let heard = [
            (Stamp(10), write_of_3),
            (Stamp(20), flush_of_0),
            (Stamp(30), flush_of_0 | 1),
            (Stamp(45), write_of_3 | 1),
            (Stamp(50), write_of_3),
        ];
        let (operations, waiting_since) = pair(&heard).unwrap();
        assert_eq!(waiting_since, Some(Stamp(50)));
        assert_eq!(operations.len(), 2, "the last one has no end");
        assert_eq!(operations[0].doing, Doing::Flush);
        assert_eq!(operations[1].took().as_nanos(), 35);
        assert!(pair(&heard[2..]).is_err(), "an end without a beginning");
    }

    #[test]
    fn another_guest_begins_anew() {
        let write_of_0 = 0;
        let heard = [
            (Stamp(10), write_of_0),
            (Stamp(20), GONE),
            (Stamp(30), write_of_0),
            (Stamp(35), write_of_0 | 1),
        ];
        let (operations, waiting_since) = pair(&heard).unwrap();
        assert_eq!(waiting_since, None);
        assert_eq!(operations.len(), 1);
        assert_eq!(operations[0].took().as_nanos(), 5);
    }
}
