//! A copy of the whole catalog in a file of text: one line for the copy itself, one a key.
//!
//! A copy is taken of one moment, from a running service or a stopped one's catalog, of either kind. Put
//! back, it is a catalog of the next generation: its epochs are later than all that the copied one had
//! issued (I4). What that one had issued after the copy was taken, the stores know ([`crate::service`],
//! doubt): the catalog counts as unverified until it has been compared with them.

use crate::catalog::{Catalog, CatalogError, Committed, Expect, MAX_TRANSACTION_KEYS, Transaction};
use crate::model::{Unverified, generation, json, key};
use crate::policy::UnixSeconds;
use replicator::message::checksum;
use replicator::words::Generation;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
/// Well below what a transaction takes, in bytes and in keys.
const BATCH_BYTES: usize = 400 << 10;
const BATCH_KEYS: usize = MAX_TRANSACTION_KEYS - 4;

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// "ukai catalog", so that other files are told apart.
    pub kind: String,
    pub format: u32,
    pub taken: UnixSeconds,
    pub generation: Generation,
    pub keys: u64,
    /// CRC-32C of all lines behind this one.
    pub sum: u32,
}

/// A line of a key. Values are text: JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    value: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("this is no backup of a catalog: {0}")]
    NotOne(String),
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    #[error("the backup's format is {found}, this program knows {FORMAT}: use a newer one")]
    Format { found: u32 },
    #[error("the catalog there is not empty: move it away first, or restore to another place")]
    NotEmpty,
    #[error("somebody else writes to the catalog: stop the placement service first")]
    Contended,
}

/// What was put back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Restored {
    pub taken: UnixSeconds,
    pub keys: u64,
    /// In which epochs are issued from now on.
    pub generation: Generation,
}

/// The catalog as it stands at one moment.
pub fn take(catalog: &dyn Catalog, now: UnixSeconds) -> Result<String, CatalogError> {
    let mut lines = String::new();
    let mut keys = 0;
    catalog.snapshot(&mut |key, stored| {
        let value = std::str::from_utf8(&stored.value);
        let value = value.map_err(|error| CatalogError::Malformed {
            key: key.to_owned(),
            why: error.to_string(),
        })?;
        let line = Line {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        lines += &serde_json::to_string(&line).expect("text");
        lines.push('\n');
        keys += 1;
        Ok(())
    })?;
    let head = Head {
        kind: KIND.into(),
        format: FORMAT,
        taken: now,
        generation: generation(catalog)?,
        keys,
        sum: checksum(lines.as_bytes()),
    };
    let head = serde_json::to_string(&head).expect("plain data");
    Ok(format!("{head}\n{lines}"))
}

const KIND: &str = "ukai catalog";

/// Whether a text is a whole backup, and of what.
pub fn head(text: &str) -> Result<Head, BackupError> {
    let (first, lines) = text.split_once('\n').unwrap_or((text, ""));
    let head: Head =
        serde_json::from_str(first).map_err(|error| BackupError::NotOne(error.to_string()))?;
    if head.kind != KIND {
        return Err(BackupError::NotOne(format!("it says {:?}", head.kind)));
    }
    if head.format != FORMAT {
        return Err(BackupError::Format { found: head.format });
    }
    if head.sum != checksum(lines.as_bytes()) {
        return Err(BackupError::Damaged(
            "its checksum does not fit; was it cut short?",
        ));
    }
    if head.keys != lines.lines().count() as u64 {
        return Err(BackupError::Damaged(
            "it has another number of keys than it says",
        ));
    }
    Ok(head)
}

/// Puts a backup into an empty catalog, as the next generation. `at_least`: what is known of generations
/// that were in use since. One that was interrupted is no catalog; a service refuses it.
pub fn restore(
    text: &str,
    catalog: &dyn Catalog,
    at_least: Generation,
) -> Result<Restored, BackupError> {
    let head = head(text)?;
    if !catalog.page("", None)?.is_empty() {
        return Err(BackupError::NotEmpty);
    }
    let begin = Transaction::new()
        .expect(key::RESTORING, Expect::Absent)
        .put(key::RESTORING, json(&head.taken));
    must(catalog.commit(&begin)?)?;
    let mut batch = Transaction::new();
    let mut bytes = 0;
    for line in text.lines().skip(1) {
        let line: Line = serde_json::from_str(line)
            .map_err(|_| BackupError::Damaged("a line of it makes no sense"))?;
        if bytes + line.value.len() > BATCH_BYTES || batch.write.len() == BATCH_KEYS {
            must(catalog.commit(&std::mem::take(&mut batch))?)?;
            bytes = 0;
        }
        bytes += line.value.len() + line.key.len();
        batch = batch.put(line.key, line.value.into_bytes());
    }
    must(catalog.commit(&batch)?)?;
    let generation = Generation(head.generation.max(at_least).0 + 1);
    let unverified = Unverified {
        why: format!("restored from a backup of {}", head.taken),
    };
    let end = Transaction::new()
        .put(key::GENERATION, json(&generation))
        .put(key::UNVERIFIED, json(&unverified))
        .delete(key::RESTORING);
    must(catalog.commit(&end)?)?;
    Ok(Restored {
        taken: head.taken,
        keys: head.keys,
        generation,
    })
}

fn must(committed: Committed) -> Result<(), BackupError> {
    match committed {
        Committed::Yes => Ok(()),
        Committed::No => Err(BackupError::Contended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::MemoryCatalog;

    fn full() -> MemoryCatalog {
        let catalog = MemoryCatalog::new();
        for i in 0..500 {
            let value = format!("{{\"i\":{i},\"text\":\"{}\"}}", "x".repeat(i * 10));
            let put = Transaction::new().put(format!("key/{i:04}"), value.into_bytes());
            assert_eq!(catalog.commit(&put).unwrap(), Committed::Yes);
        }
        let put = Transaction::new().put(key::GENERATION, json(&Generation(4)));
        assert_eq!(catalog.commit(&put).unwrap(), Committed::Yes);
        catalog
    }

    #[test]
    fn what_is_put_back_is_all_of_it_in_the_next_generation() {
        let before = full();
        let text = take(&before, UnixSeconds(77)).unwrap();
        let after = MemoryCatalog::new();
        let restored = restore(&text, &after, Generation(0)).unwrap();
        assert_eq!(restored.generation, Generation(5));
        assert_eq!(restored.keys, 501);
        assert_eq!(generation(&after).unwrap(), Generation(5));
        before
            .snapshot(&mut |key, stored| {
                if key != key::GENERATION {
                    assert_eq!(after.get(key)?.unwrap().value, stored.value);
                }
                Ok(())
            })
            .unwrap();
        assert!(after.get(key::UNVERIFIED).unwrap().is_some());
        assert!(after.get(key::RESTORING).unwrap().is_none());
        let again = restore(&text, &after, Generation(0));
        assert!(matches!(again, Err(BackupError::NotEmpty)));
        let later = restore(&text, &MemoryCatalog::new(), Generation(9)).unwrap();
        assert_eq!(later.generation, Generation(10));
    }

    #[test]
    fn what_is_cut_short_or_changed_is_refused() {
        let text = take(&full(), UnixSeconds(77)).unwrap();
        for at in [0, 1, 40, text.len() / 2, text.len() - 1] {
            assert!(head(&text[..at]).is_err(), "cut at {at}");
        }
        let changed = text.replacen("\\\"i\\\":7", "\\\"i\\\":8", 1);
        assert_ne!(changed, text);
        assert!(matches!(head(&changed), Err(BackupError::Damaged(_))));
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        assert!(matches!(
            head(&newer),
            Err(BackupError::Format { found: 2 })
        ));
        assert!(matches!(head("{}"), Err(BackupError::NotOne(_))));
    }
}
