//! How QUIC is set up, for both sides, in one place.

use super::congestion::PatientConfig;
use super::socket::QuietRuntime;
use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use ring::hmac;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// The largest UDP payload that is tried. A 4 KiB block with its header fits in one datagram then,
/// wherever the path allows it (loopback, jumbo frames), which doubles the throughput there. Not
/// more: quinn sends up to 10 datagrams in one system call, and 10 times this is just below the
/// 64 KiB that the kernel takes; beyond that they would vanish without an error.
const MTU: u16 = 6400;

/// How much a peer may have sent that was not read yet, and we that was not acknowledged: what fits
/// in flight at 80 MB/s over 100 ms. It bounds the memory that one connection can cost.
pub const WINDOW_BYTES: u32 = 8 << 20;

/// A silent peer is given up after this. A node that was started anew says so itself ([`listening`]).
pub const IDLE: Duration = Duration::from_secs(3);

/// How far a peer is as long as nobody has measured it: who does not answer the first packet is asked again
/// after three times this, because it is just being started anew.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Keeps an idle connection open, and finds out within [`IDLE`] when it is not.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The settings of a connection that the other side may open `bidirectional` streams on.
///
/// Each was measured; what was tried and made things worse (BBR, more streams, no segmentation
/// offload) is not here.
pub fn config(bidirectional: u32) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(bidirectional.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(WINDOW_BYTES.into())
        .receive_window(WINDOW_BYTES.into())
        .send_window(WINDOW_BYTES.into())
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE).expect("3 s fit in a VarInt"),
        ))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_ROUND_TRIP);
    few_packets(&mut config);
    Arc::new(config)
}

/// As few packets as the path allows, and as few wake-ups: for all connections between daemons.
pub fn few_packets(config: &mut TransportConfig) {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU);
    let mut acks = AckFrequencyConfig::default();
    // Fewer acknowledgements cost fewer wake-ups where one request is under way at a time.
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    let mut congestion = CubicConfig::default();
    // The default of 12,000 bytes is less than two datagrams of our size, and with some settings
    // a connection never gets going from there.
    congestion.initial_window(256 << 10);
    config
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(PatientConfig(Arc::new(congestion))));
}

/// An endpoint on the runtime of the calling thread, only to connect.
pub fn connecting(socket: UdpSocket) -> io::Result<Endpoint> {
    endpoint(EndpointConfig::default(), None, socket)
}

/// One that answers whoever connects.
pub fn answering(server: ServerConfig, socket: UdpSocket) -> io::Result<Endpoint> {
    endpoint(EndpointConfig::default(), Some(server), socket)
}

/// The same for one that may be started anew. With the same `seed` as its predecessor on this address it tells the peers of that one
/// at their next packet that the connection is gone (stateless reset); otherwise they would only find out
/// after [`IDLE`], and eject a store that is back for long.
pub fn listening(server: ServerConfig, socket: UdpSocket, seed: [u8; 32]) -> io::Result<Endpoint> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &seed);
    let mut config = EndpointConfig::new(Arc::new(key));
    config.cid_generator(|| Box::new(AnyId));
    endpoint(config, Some(server), socket)
}

/// Ids that tell nothing: quinn's own are signed with a key of their process, and packets with those of a
/// predecessor would be dropped without a word.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = Uuid::new_v4();
        ConnectionId::new(&random.as_bytes()[..self.cid_len()])
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn endpoint(
    mut config: EndpointConfig,
    server: Option<ServerConfig>,
    socket: UdpSocket,
) -> io::Result<Endpoint> {
    config
        .max_udp_payload_size(MTU)
        .expect("within what QUIC allows");
    enlarge_buffers(&socket);
    Endpoint::new(config, server, socket, Arc::new(QuietRuntime))
}

/// A socket to connect from, to IPv6 and IPv4 alike where the host has both.
pub fn any_socket() -> io::Result<UdpSocket> {
    // Linux makes wildcard IPv6 sockets dual-stack unless it was told not to.
    UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
}

/// A socket at `at`, beside others of this user there: the kernel gives all that comes from one peer's socket to
/// the same of them.
pub fn shared_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    net::bind(&socket, &at)?;
    Ok(socket.into())
}

/// A burst of 1 MiB writes from a few peers does not fit in the default of 200 KiB. As much as the
/// system allows; less is slower, not wrong.
fn enlarge_buffers(socket: &UdpSocket) {
    use rustix::net::sockopt;
    const BYTES: usize = 4 << 20;
    if sockopt::set_socket_recv_buffer_size_force(socket, BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, BYTES);
    }
    let _ = sockopt::set_socket_send_buffer_size(socket, BYTES);
}
