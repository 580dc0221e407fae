//! Why a store's directory cannot be used: one variant for each thing that somebody can do about it.

use std::io;

/// Says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{dir} is not a store (it has no file UKAI-STORE): name a store's directory; `ukai node --store` makes a new store where there is an empty directory or none"
    )]
    NotAStore { dir: String },
    #[error(
        "{dir} is not empty (it holds {found:?}): a store is only made in an empty directory, choose another one"
    )]
    NotEmpty { dir: String, found: String },
    #[error(
        "{dir} has format {found}, and this program knows formats up to {known}: use the newer program that wrote it"
    )]
    Newer { dir: String, found: u32, known: u32 },
    #[error(
        "{dir} is in use by another process (file `lock` is locked): stop that one first, two would destroy the data"
    )]
    InUse { dir: String },
    #[error(
        "{dir} has too little space to open: free at least {needed} bytes on its file system ({free} are free)"
    )]
    Full { dir: String, free: u64, needed: u64 },
    #[error(
        "{dir} is damaged: {what} ({place}). Nothing was changed. `ukai store check` lists all damage; its replicas \
         stand on other stores too: keep this directory, and give the node an empty one instead"
    )]
    Damaged {
        dir: String,
        what: String,
        place: String,
    },
    #[error(
        "segments of {bytes} bytes are not possible: use a multiple of 4096 from 64 KiB to 4 GiB"
    )]
    Options { bytes: u64 },
    #[error("{dir}: {doing} failed: {error}")]
    Io {
        dir: String,
        doing: &'static str,
        #[source]
        error: io::Error,
    },
}

/// Adds where and what to an I/O error.
pub(super) trait Doing<T> {
    fn doing(self, dir: &str, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, dir: &str, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io {
            dir: dir.into(),
            doing,
            error,
        })
    }
}
