//! How those who look for a placement service name it: by an address, or by a name that is looked up when it
//! is wanted, since hosts move, and one name that cannot be found is no reason not to ask the others.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// A name that is not found by then is passed over for now.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceName {
    At(SocketAddr),
    Named { host: String, port: u16 },
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{port:?} in {text} is not a port")]
pub struct NoPort {
    text: String,
    port: String,
}

impl ServiceName {
    /// Reads `HOST[:PORT]`.
    pub fn parse(text: &str, default_port: u16) -> Result<ServiceName, NoPort> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(ServiceName::At(addr));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(ServiceName::At(SocketAddr::new(ip, default_port)));
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, default_port),
            Some((host, port)) => match port.parse() {
                Ok(port) => (host, port),
                Err(_) => {
                    return Err(NoPort {
                        text: text.into(),
                        port: port.into(),
                    });
                }
            },
        };
        Ok(ServiceName::Named {
            host: host.into(),
            port,
        })
    }

    /// The same host at another port.
    pub fn at_port(self, port: u16) -> ServiceName {
        match self {
            ServiceName::At(addr) => ServiceName::At(SocketAddr::new(addr.ip(), port)),
            ServiceName::Named { host, .. } => ServiceName::Named { host, port },
        }
    }

    /// All addresses that it has now, in the order to try them: at least one.
    pub async fn find(&self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = match self {
            ServiceName::At(addr) => return Ok(vec![*addr]),
            ServiceName::Named { host, port } => (host.as_str(), *port),
        };
        let found: Vec<SocketAddr> = match timeout(PATIENCE, lookup_host((host, port))).await {
            Ok(found) => found?.collect(),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        match found.is_empty() {
            true => Err(io::Error::other("it has no address")),
            false => Ok(found),
        }
    }

    /// Whether it may be found at an address of IPv6.
    pub(crate) fn may_be_ipv6(&self) -> bool {
        match self {
            ServiceName::At(addr) => addr.is_ipv6(),
            ServiceName::Named { .. } => true,
        }
    }
}

impl From<SocketAddr> for ServiceName {
    fn from(addr: SocketAddr) -> Self {
        ServiceName::At(addr)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceName::At(addr) => addr.fmt(f),
            ServiceName::Named { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        let named = |host: &str, port| ServiceName::Named {
            host: host.into(),
            port,
        };
        for (text, means) in [
            ("10.0.0.1", ServiceName::At(([10, 0, 0, 1], 7400).into())),
            ("10.0.0.1:9", ServiceName::At(([10, 0, 0, 1], 9).into())),
            (
                "::1",
                ServiceName::At((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), 7400).into()),
            ),
            ("control-1", named("control-1", 7400)),
            ("control-1:9", named("control-1", 9)),
        ] {
            assert_eq!(ServiceName::parse(text, 7400).unwrap(), means);
        }
        assert!(ServiceName::parse("control-1:nine", 7400).is_err());
        let moved = named("control-1", 9).at_port(10);
        assert_eq!(moved.to_string(), "control-1:10");
    }
}
