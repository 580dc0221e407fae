//! A disk's record with what proves to stores that its owner owns it.

use replicator::words::DiskRecord;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::Deref;

/// A record; for the process that owns the disk, with the grant of its epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Granted {
    #[serde(flatten)]
    pub record: DiskRecord,
    #[serde(default, skip_serializing_if = "Grant::is_empty")]
    pub grant: Grant,
}

/// As [`replicator::net::identity::Credentials::grant`] makes it, on the wire in hexadecimal digits;
/// empty for everybody but the disk's owner.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Grant(pub Vec<u8>);

impl Grant {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<DiskRecord> for Granted {
    fn from(record: DiskRecord) -> Granted {
        Granted {
            record,
            grant: Grant::default(),
        }
    }
}

impl Deref for Granted {
    type Target = DiskRecord;

    fn deref(&self) -> &DiskRecord {
        &self.record
    }
}

impl fmt::Debug for Grant {
    /// It opens a door: not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} bytes)", self.0.len())
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Grant, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.as_bytes();
        let digit = |digit: u8| (digit as char).to_digit(16).map(|digit| digit as u8);
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect();
        let bytes = bytes.ok_or_else(|| D::Error::custom("a grant is hexadecimal digits"))?;
        Ok(Grant(bytes))
    }
}
