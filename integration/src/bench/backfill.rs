//! A disk's blocks on their way to another datacenter: how much of the link they use, and what the guest
//! notices of it.
//!
//! ```text
//!  node tokyo-1 ── link: 100 MB/s, 1 ms ──> node osaka-1
//!  raw stream:  quinn ── the same link ──> quinn
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use replicator::net::identity::{Credentials, DEFAULT_VALIDITY, Dial, Expected, Gate, Pki, Role};
use replicator::net::transport;
use replicator::words::HostName;

use super::compare::{Compared, Row, rows};
use super::job::{Metric, goal};
use super::load::{Data, Doing, Load, MIB, Time};
use super::measure::{Target, measure};
use super::side::{FAR, HOSTS, Kind, NEAR, Own, Stage};
use super::statistics::Figures;
use crate::cluster::{NodeSpec, TOKYO_AND_OSAKA};
use crate::migration::figures::Bound;
use crate::migration::ours::wait_near;
use crate::relay::{Conditions, Link, Meter, Way};

/// What the link carries in a second, in bytes.
const LINK: u64 = 100_000_000;
const DELAY: Duration = Duration::from_millis(1);
const POLL: Duration = Duration::from_millis(5);
const BOUND: Duration = Duration::from_secs(120);
const PROTOCOL: &[u8] = b"ukai-bench";
/// No limit but the link's: the default one is 100 MiB/s.
pub const UNLIMITED: &str = "[copy]\nlimit = \"unlimited\"\n";

static ACROSS: [NodeSpec; 2] = [TOKYO_AND_OSAKA[0], TOKYO_AND_OSAKA[2]];

fn link() -> Link {
    Link::new(Conditions::fixed(DELAY).limited(LINK))
}

/// Data that cannot be compressed, against a raw stream; data of which half remains, against the link.
pub fn over_a_link(stage: &mut Stage, pairs: usize, _time: Time) -> Result<Vec<Compared>> {
    let (mut random, mut half) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let [ours, ours_half] = copied(stage)?;
        random.push((ours, raw_stream(stage.disk_bytes())?));
        half.push((ours_half, LINK as f64 / 1e6));
    }
    Ok(vec![Compared {
        name: "backfill",
        what: "backfill over 100 MB/s: incompressible, 2:1",
        sides: ["Ukai, a move", "a raw quinn stream; the link"],
        pairs: Vec::new(),
        rows: vec![
            Row::new(Metric::Copied, &random, Some(Bound::AtLeast(0.9))),
            Row::new(Metric::Copied, &half, Some(Bound::AtLeast(1.8))),
        ],
    }])
}

/// MB of disk a second of a move, of both kinds of data.
fn copied(stage: &Stage) -> Result<[f64; 2]> {
    let own = stage.own_cluster(&ACROSS, Some(link()))?;
    own.cluster.apply_policy("tokyo", UNLIMITED)?;
    own.cluster.apply_policy("osaka", UNLIMITED)?;
    let mut rates = [0.0; 2];
    for (rate, (name, data)) in rates
        .iter_mut()
        .zip([("random", Data::Random), ("half", Data::Half)])
    {
        fill(&own, name, 1, stage.disk_bytes(), data)?;
        own.cluster.detach(name)?;
        let meter = own.cluster.link()?.datagrams();
        let over = AtomicBool::new(false);
        let took = thread::scope(|scope| {
            let watcher = scope.spawn(|| busy_time(&meter, &over));
            let moved = own
                .cluster
                .ukai(&["disk", "move", name, "--to", "osaka", "--leave"])
                .and_then(|_| wait_near(&own.cluster, name, "osaka"));
            over.store(true, Ordering::Release);
            let took = watcher.join().expect("no panic in it");
            moved.map(|_| took)
        })?;
        ensure!(!took.is_zero(), "nothing crossed the link");
        *rate = stage.disk_bytes() as f64 / 1e6 / took.as_secs_f64();
    }
    Ok(rates)
}

/// From the first data on the link to the last: heartbeats are less than this.
fn busy_time(meter: &Meter, over: &AtomicBool) -> Duration {
    const STEP: u64 = 64 << 10;
    let (mut first, mut last) = (None, Instant::now());
    let mut seen = meter.carried().both();
    while !over.load(Ordering::Acquire) {
        let before = Instant::now();
        thread::sleep(POLL);
        let now = meter.carried().both();
        if now - seen > STEP {
            first.get_or_insert(before);
            last = Instant::now();
        }
        seen = now;
    }
    first.map_or(Duration::ZERO, |first| last - first)
}

/// A disk with that data all over, attached near.
pub fn fill(
    own: &Own,
    name: &str,
    copies: u8,
    bytes: u64,
    data: Data,
) -> Result<std::path::PathBuf> {
    own.cluster
        .create_disk(name, &bytes.to_string(), copies, NEAR)?;
    let socket = own.cluster.attach(name, NEAR)?;
    let load = Load::sequential(Doing::Write, MIB, 4)
        .through()
        .of_data(data);
    let time = Time {
        warm_up: Duration::ZERO,
        measured: BOUND,
    };
    let target = Target {
        sockets: std::slice::from_ref(&socket),
        bytes,
        pids: &[],
    };
    let sample = measure(&target, &load, time, 0)?;
    ensure!(sample.bytes == bytes, "the disk is not full in time");
    Ok(socket)
}

/// MB a second of one stream over the same link, with our settings of QUIC, without all the rest.
fn raw_stream(bytes: u64) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async { tokio::time::timeout(BOUND, stream(bytes)).await? })
}

async fn stream(bytes: u64) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::init(&dir.path().join("pki"))?;
    let credentials = |host: &str| -> Result<Credentials> {
        let host = HostName::new(host)?;
        pki.issue(Role::Node, &host, DEFAULT_VALIDITY)?;
        Ok(Credentials::load(pki.dir(), Role::Node, &host)?)
    };
    let gate = Gate::new(&credentials("far")?, &[Role::Node], &[PROTOCOL])
        .with_transport(transport::config(4));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = socket.local_addr()?;
    let server = transport::listening(gate.quic(), socket, [0; 32])?;
    let link = link();
    let through: SocketAddr = link.udp(Way::There, at)?.address;
    let receiver = tokio::spawn(async move {
        let incoming = server.accept().await.context("the endpoint closed")?;
        let connection = gate.admit(incoming).await?.connection;
        let (mut answer, mut stream) = connection.accept_bi().await?;
        let mut received = 0;
        while let Some(chunk) = stream.read_chunk(MIB as usize, true).await? {
            received += chunk.bytes.len() as u64;
        }
        answer.write_all(&[1]).await?;
        answer.finish()?;
        connection.closed().await;
        anyhow::Ok(received)
    });
    let endpoint = transport::connecting(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    let dial = Dial::new(
        &credentials("near")?,
        Expected::host(Role::Node, HostName::new("far")?),
        &[PROTOCOL],
    )
    .with_transport(transport::config(4));
    let connection = dial.connect(&endpoint, through).await?;
    let (mut stream, mut answer) = connection.open_bi().await?;
    let piece = vec![0x5a; MIB as usize];
    let begun = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let now = left.min(u64::from(MIB)) as usize;
        stream.write_all(&piece[..now]).await?;
        left -= now as u64;
    }
    stream.finish()?;
    answer.read_exact(&mut [0]).await?;
    let took = begun.elapsed();
    connection.close(0u32.into(), b"");
    ensure!(receiver.await?? == bytes, "not all of the stream arrived");
    Ok(bytes as f64 / 1e6 / took.as_secs_f64())
}

/// A disk gets a second copy under its guest, within the default limits; compared with a disk that has
/// two all along.
pub fn under_a_guest(stage: &mut Stage, pairs: usize, time: Time) -> Result<Vec<Compared>> {
    let load = Load::random(Doing::Mixed(70), 32).at_rate(2000);
    let goals = [goal(Metric::P99, Bound::AtMost(2.0))];
    let mut own = stage.own_cluster(&HOSTS, None)?;
    let pids = own.cluster.pids();
    let bytes = stage.disk_bytes();
    let mut figures = Vec::new();
    for pair in 0..pairs {
        let name = format!("grows-{pair}");
        let socket = fill(&own, &name, 1, bytes, Data::Random)?;
        let target = Target {
            sockets: std::slice::from_ref(&socket),
            bytes,
            pids: &pids,
        };
        own.cluster
            .ukai(&["disk", "add-copy", &name, "--store", FAR, "--leave"])?;
        let disturbed = Figures::of(&measure(&target, &load, time, pair as u64)?);
        let map = own.cluster.ukai(&["disk", "map", &name])?;
        ensure!(
            map["ranges"].to_string().contains("\"whole\":false"),
            "the copy was complete before the load was over: take larger disks\n{map}"
        );
        own.cluster.detach(&name)?;
        let calm = measure(&stage.target(Kind::TwoCopies)?, &load, time, pair as u64)?;
        figures.push([disturbed, Figures::of(&calm)]);
    }
    Ok(vec![Compared {
        name: "during-backfill",
        what: "4 KiB random, 70 % reads, 2,000 a second, during backfill and not",
        sides: ["Ukai, a second copy is made", Kind::TwoCopies.name()],
        rows: rows(&figures, &goals),
        pairs: figures,
    }])
}
