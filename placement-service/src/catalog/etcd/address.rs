//! Where an etcd cluster is: `etcd://h1:2379,h2:2379,h3:2379/folder`, or `etcds://…` over TLS.

use std::fmt;
use std::str::FromStr;

const DEFAULT_PORT: u16 = 2379;
/// All keys begin with this and a slash, unless something else was said: others may use the same etcd.
const DEFAULT_FOLDER: &str = "ukai";
/// More members than any etcd has.
const MAX_MEMBERS: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdAddress {
    /// Host names or addresses, with ports; never none.
    pub members: Vec<String>,
    /// Of this cluster within etcd.
    pub folder: String,
    pub tls: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}: {why}; use for example etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379")]
pub struct BadEtcdAddress {
    text: String,
    why: String,
}

impl EtcdAddress {
    /// Whether `text` is meant to be one, rather than a file.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("etcd://") || text.starts_with("etcds://")
    }
}

impl FromStr for EtcdAddress {
    type Err = BadEtcdAddress;

    fn from_str(text: &str) -> Result<Self, BadEtcdAddress> {
        let bad = |why: &str| BadEtcdAddress {
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let (tls, rest) = match text.split_once("://") {
            Some(("etcd", rest)) => (false, rest),
            Some(("etcds", rest)) => (true, rest),
            _ => return Err(bad("it does not begin with etcd:// or etcds://")),
        };
        let (members, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let folder = match folder.trim_end_matches('/') {
            "" => DEFAULT_FOLDER,
            folder => folder,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if folder.len() > 64 || !folder.chars().all(plain) {
            return Err(bad(
                "the folder is no path of at most 64 letters, digits, - and _",
            ));
        }
        let members: Vec<String> = members.split(',').map(with_port).collect();
        if members.len() > MAX_MEMBERS {
            return Err(bad("it names more members than an etcd has"));
        }
        if !members.iter().all(|member| is_host_and_port(member)) {
            return Err(bad("a member is not HOST or HOST:PORT"));
        }
        Ok(EtcdAddress {
            members,
            folder: folder.to_owned(),
            tls,
        })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}/{}", self.members.join(","), self.folder)
    }
}

fn with_port(member: &str) -> String {
    let bare_v6 = member.starts_with('[') && member.ends_with(']');
    match member.contains(':') && !bare_v6 {
        true => member.to_owned(),
        false => format!("{member}:{DEFAULT_PORT}"),
    }
}

fn is_host_and_port(member: &str) -> bool {
    member.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_get_a_port_and_keys_a_folder() {
        let address: EtcdAddress = "etcd://a,10.0.0.2:1,[::1]".parse().unwrap();
        assert_eq!(address.members, ["a:2379", "10.0.0.2:1", "[::1]:2379"]);
        assert_eq!(address.folder, "ukai");
        assert!(!address.tls);
        let address: EtcdAddress = "etcds://a:5/east/disks/".parse().unwrap();
        assert_eq!(address.to_string(), "etcds://a:5/east/disks");
    }

    #[test]
    fn what_is_no_address_is_said() {
        for text in [
            "catalog.redb",
            "etcd://",
            "etcd://a:b",
            "etcd://a,,b",
            "etcd://a/x y",
            "etcd://:2379",
            "http://a",
        ] {
            let error = text.parse::<EtcdAddress>().unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
