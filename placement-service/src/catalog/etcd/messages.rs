//! What etcd's gateway is asked and answers: the messages of etcd's v3 API as JSON. Bytes are base64,
//! 64-bit numbers are text, and what is zero is left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, as base64.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(&*text).map(Bytes).map_err(D::Error::custom)
    }
}

/// A 64-bit number, as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Number(pub i64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map(Number).map_err(D::Error::custom)
    }
}

pub const RANGE: &str = "/v3/kv/range";
pub const TXN: &str = "/v3/kv/txn";
pub const GRANT: &str = "/v3/lease/grant";
pub const KEEP_ALIVE: &str = "/v3/lease/keepalive";
pub const REVOKE: &str = "/v3/lease/revoke";

#[derive(Serialize, Default)]
pub struct Range {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number>,
    /// None: the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Number>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Ranged {
    pub header: Header,
    pub kvs: Vec<KeyValue>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Header {
    pub revision: Number,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Number,
    pub mod_revision: Number,
    pub lease: Number,
}

#[derive(Serialize, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Operation>,
    pub failure: Vec<Operation>,
}

#[derive(Serialize)]
pub struct Compare {
    pub key: Bytes,
    pub target: &'static str,
    pub result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mod_revision: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<Number>,
}

impl Compare {
    /// Zero: there is no such key.
    pub fn changed_at(key: String, revision: i64) -> Self {
        Compare {
            key: Bytes(key.into_bytes()),
            target: "MOD",
            result: "EQUAL",
            mod_revision: Some(Number(revision)),
            create_revision: None,
        }
    }

    /// Zero: there is no such key.
    pub fn created_at(key: String, revision: i64) -> Self {
        Compare {
            key: Bytes(key.into_bytes()),
            target: "CREATE",
            result: "EQUAL",
            mod_revision: None,
            create_revision: Some(Number(revision)),
        }
    }
}

#[derive(Serialize)]
pub enum Operation {
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_delete_range")]
    DeleteRange(Delete),
    #[serde(rename = "request_range")]
    Range(Range),
}

#[derive(Serialize)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Number>,
}

#[derive(Serialize)]
pub struct Delete {
    pub key: Bytes,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Txned {
    pub header: Header,
    pub succeeded: bool,
    pub responses: Vec<Outcome>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Outcome {
    pub response_range: Option<Ranged>,
}

#[derive(Serialize)]
pub struct Grant {
    #[serde(rename = "TTL")]
    pub ttl: Number,
}

#[derive(Serialize)]
pub struct OfLease {
    #[serde(rename = "ID")]
    pub id: Number,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Granted {
    #[serde(rename = "ID")]
    pub id: Number,
}

/// A stream's first, and for us only, message.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct KeptAlive {
    pub result: Lease,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Lease {
    /// Zero: there is no such lease any more.
    #[serde(rename = "TTL")]
    pub ttl: Number,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct Revoked {}
