//! What a second copy costs at least on this machine: the data of a 4 KiB write goes to another thread on loopback, is
//! appended to a file there, and is answered. One exchange at a time; medians of rounds by turns.
//!
//! - Over UDP: no QUIC, no TLS, no event loop, nothing decided. Whoever writes it, and in whatever protocol, it takes that.
//! - Over QUIC with certificates at both ends, as we send it ([`Links`], [`Server`]), to a store that keeps nothing.
//!
//! Who asks sleeps until the answer is there, or looks for it all the while (UDP only). Where a wake-up is cheap depends on
//! the processor that the other thread sleeps on: `taskset -c 0` shows what it is without that.
//!
//! `cargo run --release -p replicator --example round_trip [DIRECTORY]`

use bytes::Bytes;
use replicator::message::{Asker, Content, Payload, Reach, Reply, Request};
use replicator::net::identity::{Credentials, DEFAULT_VALIDITY, Pki, Role};
use replicator::net::{LinkEvent, Links, Place, Serve, Server};
use replicator::words::{Block, Blocks, DiskId, Epoch, HostName, Incarnation, Seq, StoreId};
use replicator::writer::CallId;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

/// As large as they are with us: a write's packet, its answer, its header and block in the log.
const WRITE: usize = 4236;
const ANSWER: usize = 79;
const FRAME: usize = 4160;

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(300);
/// The first byte of a packet that wants its data appended, and of the last one.
const APPEND: u8 = 1;
const END: u8 = 2;

const WAYS: [&str; 5] = [
    "over UDP",
    "over UDP, looking for the answer",
    "over UDP, with the append",
    "over UDP, with the append, looking for the answer",
    "over QUIC with mTLS",
];

fn main() {
    let parent = std::env::args().nth(1).unwrap_or(".".into());
    let file = tempfile::tempfile_in(&parent).expect("a directory to write to");
    let [near, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    near.connect(far.local_addr().expect("bound"))
        .expect("connected");
    far.connect(near.local_addr().expect("bound"))
        .expect("connected");
    let server = std::thread::spawn(move || serve(&far, &file));
    let mut quic = Quic::connect(Path::new(&parent));

    let mut rounds = WAYS.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for turn in 0..WAYS.len() {
            let way = (round + turn) % WAYS.len();
            rounds[way].push(match way {
                4 => measure(|| quic.ask()),
                _ => over_udp(&near, way / 2 == 1, way % 2 == 1),
            });
        }
    }
    near.send(&[END]).expect("sent");
    server.join().expect("it ends");
    for (what, rounds) in WAYS.into_iter().zip(rounds) {
        let [p50, cpu] = [0, 1].map(|figure| median(rounds.iter().map(|round| round[figure])));
        println!(
            "4 KiB there and an answer back, {what}: p50 {p50:.1} us, {cpu:.1} us of CPU at both ends"
        );
    }
}

fn serve(socket: &UdpSocket, file: &File) {
    let mut packet = [0; WRITE];
    let mut end = 0;
    loop {
        socket.recv(&mut packet).expect("received");
        if packet[0] == END {
            return;
        }
        if packet[0] == APPEND {
            file.write_all_at(&packet[..FRAME], end).expect("appended");
            end = (end + FRAME as u64) % (1 << 30);
        }
        socket.send(&packet[..ANSWER]).expect("sent");
    }
}

fn over_udp(socket: &UdpSocket, append: bool, looks: bool) -> [f64; 2] {
    let mut packet = [7; WRITE];
    packet[0] = u8::from(append) * APPEND;
    let mut answer = [0; WRITE];
    socket.set_nonblocking(looks).expect("a socket");
    let figures = measure(|| {
        socket.send(&packet).expect("sent");
        while let Err(error) = socket.recv(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "answered");
        }
    });
    socket.set_nonblocking(false).expect("a socket");
    figures
}

/// A link to a store that keeps nothing, which a thread of its own serves.
struct Quic {
    runtime: Runtime,
    link: replicator::net::Link,
    heard: UnboundedReceiver<LinkEvent>,
    seq: u64,
}

const STORE: StoreId = StoreId::from_u128(1);
const DISK: DiskId = DiskId::from_u128(1);

struct Nothing;

impl Serve for Nothing {
    fn submit(&self, _: Request, done: impl FnOnce(Reply) + Send + 'static) {
        done(Reply::Written(Reach::UNKNOWN));
    }

    fn shown_by(&self, _: DiskId) -> (Epoch, Bytes) {
        (Epoch::from_u64(1), Bytes::new())
    }
}

impl Quic {
    fn connect(parent: &Path) -> Quic {
        let keys = tempfile::tempdir_in(parent).expect("a directory to write to");
        let host = HostName::new("far").expect("a name");
        let pki = Pki::init(keys.path()).expect("a new authority");
        pki.issue(Role::Node, &host, DEFAULT_VALIDITY)
            .expect("a certificate");
        let credentials = Credentials::load(keys.path(), Role::Node, &host).expect("just made");
        let addr = listening(&credentials);
        let runtime = thread_runtime();
        let (link, heard) = runtime.block_on(async {
            let place = Place { addr, host };
            let links = Links::new(&credentials, move |_| Some(place.clone())).expect("a socket");
            let (tell, mut heard) = tokio::sync::mpsc::unbounded_channel();
            let link = links.link(STORE, move |event| drop(tell.send(event)));
            assert_eq!(heard.recv().await, Some(LinkEvent::Connected));
            (link, heard)
        });
        Quic {
            runtime,
            link,
            heard,
            seq: 0,
        }
    }

    fn ask(&mut self) {
        self.seq += 1;
        let data = Bytes::from_static(&[7; 4096]);
        let write = Request::Write {
            asker: Asker {
                disk: DISK,
                epoch: Epoch::from_u64(1),
                incarnation: Incarnation(1),
            },
            seq: Seq(self.seq),
            watermark: Seq(self.seq - 1),
            blocks: Blocks::new(Block(0), 1),
            content: Content::Data(Payload::new(data)),
        };
        self.link.send(CallId(self.seq), &write);
        let heard = self.runtime.block_on(self.heard.recv());
        let written = |event| {
            matches!(
                event,
                LinkEvent::Reply {
                    reply: Reply::Written(_),
                    ..
                }
            )
        };
        assert!(heard.is_some_and(written), "answered");
    }
}

/// Serves until the process ends; where.
fn listening(credentials: &Credentials) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    let credentials = credentials.clone();
    std::thread::spawn(move || {
        thread_runtime().block_on(async {
            let any = (Ipv4Addr::LOCALHOST, 0).into();
            let server = Server::bind(any, &credentials, |_| Some(Nothing)).expect("a socket");
            tell.send(server.local_addr().expect("bound"))
                .expect("waited for");
            server.accept_ungranted(true).run().await;
        });
    });
    told.recv().expect("it listens")
}

fn thread_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Median time and mean CPU time of an exchange, in us.
fn measure(mut exchange: impl FnMut()) -> [f64; 2] {
    let mut times = Vec::new();
    let (began, cpu) = (Instant::now(), cpu_us());
    while began.elapsed() < ROUND {
        let asked = Instant::now();
        exchange();
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let cpu = (cpu_us() - cpu) / times.len() as f64;
    [median(times.into_iter()), cpu]
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of all threads.
fn cpu_us() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills what it is given.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(done, 0, "Linux has that clock");
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}
