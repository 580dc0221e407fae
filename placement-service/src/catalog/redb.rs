//! The catalog in a file: redb, one copy-on-write B-tree, each commit synced before it returns.
//!
//! ```text
//! table "keys":  key -> revision (u64, little-endian), then the value
//! table "meta":  "format" -> 1, "revision" -> the last transaction's number
//! ```

use super::{Catalog, CatalogError, KeyRevision, PAGE_KEYS, Stored, Transaction};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::fs::File;
use std::ops::Bound;
use std::path::Path;

const KEYS: TableDefinition<&str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// Enough for the hot keys of thousands of disks.
const CACHE_BYTES: usize = 64 << 20;

pub struct RedbCatalog {
    database: Database,
}

impl RedbCatalog {
    /// Opens the catalog at `path`, or makes an empty one there. A second process is refused.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let failed = |why: String| CatalogError::Open {
            path: path.to_path_buf(),
            why,
        };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        }
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => {
                    failed("another placement service has it open; stop that one first".into())
                }
                error => failed(format!("{error}; if it is damaged, restore a backup")),
            })?;
        let catalog = RedbCatalog { database };
        catalog
            .prepare()
            .map_err(|error| failed(error.to_string()))?
            .map_err(|found| {
                failed(format!(
                    "its format is {found}, this program knows {FORMAT}: use the program that wrote it, or a newer one"
                ))
            })?;
        // The file's name has to last as well as its content.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(|error| failed(error.to_string()))?;
        Ok(catalog)
    }

    /// Makes the tables where there are none. The inner error is a format that is not ours.
    fn prepare(&self) -> Result<Result<(), u64>, redb::Error> {
        let write = self.begin()?;
        {
            let mut meta = write.open_table(META)?;
            let format = meta.get("format")?.map(|format| format.value());
            match format {
                Some(FORMAT) => {}
                Some(other) => return Ok(Err(other)),
                None => {
                    meta.insert("format", FORMAT)?;
                }
            }
            write.open_table(KEYS)?;
        }
        write.commit()?;
        Ok(Ok(()))
    }

    fn begin(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        Ok(write)
    }

    fn read(&self, key: &str) -> Result<Option<Stored>, redb::Error> {
        let keys = self.database.begin_read()?.open_table(KEYS)?;
        let found = keys.get(key)?;
        Ok(found.map(|bytes| stored(bytes.value())))
    }

    fn read_page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, redb::Error> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let keys = self.database.begin_read()?.open_table(KEYS)?;
        let mut page = Vec::new();
        for entry in keys.range::<&str>((from, Bound::Unbounded))? {
            let (key, value) = entry?;
            if page.len() == PAGE_KEYS || !key.value().starts_with(prefix) {
                break;
            }
            page.push((key.value().to_owned(), stored(value.value())));
        }
        Ok(page)
    }

    fn try_commit(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, redb::Error> {
        let write = self.begin()?;
        let revision = {
            let mut keys = write.open_table(KEYS)?;
            for (key, expect) in &transaction.expect {
                let current = keys
                    .get(key.as_str())?
                    .map(|bytes| stored(bytes.value()).revision);
                if !expect.holds(current) {
                    return Ok(None);
                }
            }
            let mut meta = write.open_table(META)?;
            let last = meta.get("revision")?.map_or(0, |last| last.value());
            let revision = last + 1;
            meta.insert("revision", revision)?;
            for (key, value) in &transaction.write {
                match value {
                    Some(value) => {
                        let mut bytes = revision.to_le_bytes().to_vec();
                        bytes.extend_from_slice(value);
                        keys.insert(key.as_str(), bytes.as_slice())?;
                    }
                    None => {
                        keys.remove(key.as_str())?;
                    }
                }
            }
            KeyRevision(revision)
        };
        write.commit()?;
        Ok(Some(revision))
    }
}

#[cfg(test)]
impl RedbCatalog {
    pub(super) fn database_for_tests(&self) -> &Database {
        &self.database
    }
}

impl Catalog for RedbCatalog {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        self.read(key).map_err(failed)
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        self.read_page(prefix, after).map_err(failed)
    }

    /// One transaction that reads: it sees one commit's state for as long as it lasts.
    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let opened = self.database.begin_read().map_err(redb::Error::from);
        let keys = opened.and_then(|read| Ok(read.open_table(KEYS)?));
        let keys = keys.map_err(failed)?;
        for entry in keys.iter().map_err(|error| failed(error.into()))? {
            let (key, value) = entry.map_err(|error| failed(error.into()))?;
            each(key.value(), &stored(value.value()))?;
        }
        Ok(())
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        transaction.check()?;
        self.try_commit(transaction).map_err(failed)
    }
}

fn stored(bytes: &[u8]) -> Stored {
    let (revision, value) = bytes
        .split_first_chunk()
        .expect("every value was written with its revision, and redb checks its pages");
    Stored {
        revision: KeyRevision(u64::from_le_bytes(*revision)),
        value: value.to_vec().into(),
    }
}

fn failed(error: redb::Error) -> CatalogError {
    CatalogError::Failed(error.to_string())
}
