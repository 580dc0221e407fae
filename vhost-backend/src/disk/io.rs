//! A disk without a guest: what import, export and tests read and write through.

use super::{Disk, Failure, Landing, Op, ReplicatedDisk, RequestId};
use bytes::Bytes;
use replicator::words::{SECTOR_BYTES, Span};
use replicator::writer::NotStarted;
use std::collections::{HashMap, HashSet};

/// The disk's writer, for as long as this lives. Several requests may be under way at once.
pub struct DiskIo {
    disk: ReplicatedDisk,
    last_id: u64,
    open: HashSet<RequestId>,
    ended: HashMap<RequestId, Result<(), Failure>>,
}

#[derive(Debug, thiserror::Error)]
pub enum IoError {
    #[error("{offset}+{len} is not a range of whole sectors of a disk of {disk_bytes} bytes")]
    Range {
        offset: u64,
        len: u64,
        disk_bytes: u64,
    },
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl DiskIo {
    /// Becomes the writer, or says why not. The disk's orders hold, but it is tried only once.
    pub async fn open(mut disk: ReplicatedDisk) -> Result<DiskIo, NotStarted> {
        disk.orders().change(|orders| orders.persist = false);
        disk.start();
        match disk.started().await {
            Ok(()) => Ok(DiskIo {
                disk,
                last_id: 0,
                open: HashSet::new(),
                ended: HashMap::new(),
            }),
            Err(why) => {
                disk.stop().await;
                Err(why)
            }
        }
    }

    /// The disk's size in bytes.
    pub fn len(&self) -> u64 {
        self.disk.geometry().bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn disk(&mut self) -> &mut ReplicatedDisk {
        &mut self.disk
    }

    pub async fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, IoError> {
        let (id, into) = self.begin_read(offset, len)?;
        self.end(id).await?;
        Ok(into.to_vec())
    }

    pub async fn write(&mut self, offset: u64, data: impl Into<Bytes>) -> Result<(), IoError> {
        let id = self.begin_write(offset, data.into()).await?;
        self.end(id).await
    }

    /// The range reads as zeroes afterwards; what it held takes no space any more.
    pub async fn zero(&mut self, offset: u64, len: u64) -> Result<(), IoError> {
        let span = self.span(offset, len)?;
        let id = self.begin(Op::Zero { span });
        self.end(id).await
    }

    /// All that was written before is safe against power loss of every host.
    pub async fn flush(&mut self) -> Result<(), IoError> {
        let id = self.begin(Op::Flush);
        self.end(id).await
    }

    /// Waits for what is under way, syncs and closes the epoch. Look at the status for whether that went well.
    pub async fn close(mut self) -> ReplicatedDisk {
        while !self.open.is_empty() {
            self.step().await;
        }
        self.disk.stop().await;
        self.disk
    }

    /// Begins a read; its bytes are in the landing once [`DiskIo::end`] has said so.
    pub fn begin_read(&mut self, offset: u64, len: u64) -> Result<(RequestId, Landing), IoError> {
        let span = self.span(offset, len)?;
        let into = Landing::owned(len as usize);
        let id = self.begin(Op::Read {
            span,
            into: into.clone(),
        });
        Ok((id, into))
    }

    /// Begins a write as soon as there is room for it.
    pub async fn begin_write(&mut self, offset: u64, data: Bytes) -> Result<RequestId, IoError> {
        let span = self.span(offset, data.len() as u64)?;
        while self.disk.room() < span.len && !self.open.is_empty() {
            self.step().await;
        }
        Ok(self.begin(Op::Write { span, data }))
    }

    pub fn begin_zero(&mut self, offset: u64, len: u64) -> Result<RequestId, IoError> {
        let span = self.span(offset, len)?;
        Ok(self.begin(Op::Zero { span }))
    }

    /// Waits for one request to end. To be called once for each that was begun.
    pub async fn end(&mut self, id: RequestId) -> Result<(), IoError> {
        loop {
            if let Some(result) = self.ended.remove(&id) {
                return result.map_err(IoError::from);
            }
            assert!(self.open.contains(&id), "a request ends once");
            self.step().await;
        }
    }

    fn begin(&mut self, op: Op) -> RequestId {
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.open.insert(id);
        self.disk.submit(id, op);
        id
    }

    async fn step(&mut self) {
        let (id, result) = self.disk.completed().await;
        self.open.remove(&id);
        self.ended.insert(id, result);
    }

    fn span(&self, offset: u64, len: u64) -> Result<Span, IoError> {
        let disk_bytes = self.len();
        let whole = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        let inside = offset.checked_add(len).is_some_and(|end| end <= disk_bytes);
        if whole && inside && len > 0 {
            Ok(Span::new(offset, len))
        } else {
            Err(IoError::Range {
                offset,
                len,
                disk_bytes,
            })
        }
    }
}
