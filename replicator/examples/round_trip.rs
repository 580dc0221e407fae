//! What a second copy costs at least on this machine, whoever writes it and in whatever protocol: the data of a 4 KiB write
//! goes to another thread over UDP on loopback, is appended to a file there, and is answered. Two wake-ups, no QUIC, no TLS, no event loop,
//! nothing decided. By turns with and without the append; medians of the rounds.
//!
//! `cargo run --release -p replicator --example round_trip [DIRECTORY]`

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// As large as they are with us: a write's packet, its answer, its frame in the log.
const WRITE: usize = 4236;
const ANSWER: usize = 79;
const FRAME: usize = 4160;

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(500);
/// The first byte of a packet that wants its data appended, and of the last one.
const APPEND: u8 = 1;
const END: u8 = 2;

fn main() {
    let parent = std::env::args().nth(1).unwrap_or(".".into());
    let file = tempfile::tempfile_in(parent).expect("a directory to write to");
    let [near, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    near.connect(far.local_addr().expect("bound"))
        .expect("connected");
    far.connect(near.local_addr().expect("bound"))
        .expect("connected");
    let server = std::thread::spawn(move || serve(&far, &file));

    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for which in [round % 2, 1 - round % 2] {
            rounds[which].push(ask(&near, which as u8 * APPEND));
        }
    }
    near.send(&[END]).expect("sent");
    server.join().expect("it ends");
    for (what, rounds) in ["nothing more", "an append"].into_iter().zip(rounds) {
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

/// Median time and mean CPU time of a round trip, in us.
fn ask(socket: &UdpSocket, kind: u8) -> [f64; 2] {
    let mut packet = [7; WRITE];
    packet[0] = kind;
    let mut answer = [0; WRITE];
    let mut times = Vec::new();
    let (began, cpu) = (Instant::now(), cpu_us());
    while began.elapsed() < ROUND {
        let asked = Instant::now();
        socket.send(&packet).expect("sent");
        socket.recv(&mut answer).expect("answered");
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
