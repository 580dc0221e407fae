//! Datagrams across a link: one socket that stands for the far side, and one more for each peer that
//! sends to it, so that answers find their way back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use super::lane::Lane;
use super::{POLL, Shared, Traffic};

const LARGEST: usize = 65_536;
/// A burst of ten segments from each of a few senders fits.
static SOCKET_BYTES: libc::c_int = 8 << 20;
/// Peers at once: the nodes of a test, each with a socket a thread.
const MAX_PEERS: usize = 256;

struct Parcel {
    data: Box<[u8]>,
    from: Arc<UdpSocket>,
    /// `None`: the socket is connected.
    to: Option<SocketAddr>,
}

pub fn relay(traffic: Traffic, to: SocketAddr) -> Result<SocketAddr> {
    let near = Arc::new(socket()?);
    let address = near.local_addr()?;
    let (there, back) = (Arc::new(Lane::default()), Arc::new(Lane::default()));
    for (traffic, lane) in [
        (traffic.clone(), there.clone()),
        (traffic.reverse(), back.clone()),
    ] {
        thread::spawn(move || deliver(&traffic, &lane));
    }
    thread::spawn(move || {
        let mut peers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        receive(&traffic.link, &near, |peer, data| {
            let far = match peers.get(&peer) {
                Some(far) => far.clone(),
                None if peers.len() == MAX_PEERS => return,
                None => {
                    let Ok(far) = answering(traffic.reverse(), to, &near, peer, &back) else {
                        return;
                    };
                    peers.insert(peer, far.clone());
                    far
                }
            };
            let parcel = Parcel {
                data: data.into(),
                from: far,
                to: None,
            };
            send(&traffic, &there, parcel);
        });
    });
    Ok(address)
}

/// A socket to the far side for one peer; what comes back on it goes to that peer.
fn answering(
    traffic: Traffic,
    to: SocketAddr,
    near: &Arc<UdpSocket>,
    peer: SocketAddr,
    lane: &Arc<Lane<Parcel>>,
) -> Result<Arc<UdpSocket>> {
    let far = Arc::new(socket()?);
    far.connect(to)?;
    let (near, lane, hears) = (near.clone(), lane.clone(), far.clone());
    thread::spawn(move || {
        receive(&traffic.link, &hears, |_, data| {
            let parcel = Parcel {
                data: data.into(),
                from: near.clone(),
                to: Some(peer),
            };
            send(&traffic, &lane, parcel);
        });
    });
    Ok(far)
}

fn receive(link: &Shared, socket: &UdpSocket, mut each: impl FnMut(SocketAddr, &[u8])) {
    let mut buffer = vec![0; LARGEST];
    while !link.ended() {
        match socket.recv_from(&mut buffer) {
            Ok((bytes, peer)) => each(peer, &buffer[..bytes]),
            // Time to look at the link; or the far side's process is away, which is its own affair.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ) => {}
            Err(_) => return,
        }
    }
}

fn send(traffic: &Traffic, lane: &Lane<Parcel>, parcel: Parcel) {
    let bytes = parcel.data.len();
    if let Some(due) = traffic.link.admit_datagram(traffic.way, bytes) {
        lane.offer(due, bytes, parcel);
    }
}

fn deliver(traffic: &Traffic, lane: &Lane<Parcel>) {
    while let Some((bytes, parcel)) = lane.take(&traffic.link) {
        // Whoever has it finds it counted. One that cannot be delivered is lost at the far end, as on any network.
        traffic.arrived(bytes);
        let _ = match parcel.to {
            Some(to) => parcel.from.send_to(&parcel.data, to),
            None => parcel.from.send(&parcel.data),
        };
    }
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(POLL))?;
    // The forced one last: it goes beyond what the system allows everybody.
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
        // SAFETY: the option takes an int, which outlives the call. A refusal costs speed only.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const SOCKET_BYTES).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
    Ok(socket)
}
