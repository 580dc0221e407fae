//! Parts of the index that nobody needs any more: of a deleted disk, or of replicas that were dropped.
//!
//! To let go of them is quick; to find out what of which segment they referred to takes its time, and some of
//! them have to be read for it. So they wait here, and housekeeping takes them out of the counts of what is live
//! (live.rs), a chunk at a time, however large the disk was. Until that is done the counts are too high: no checkpoint
//! notes them, and the cleaner, which finds nothing that refers to those frames, waits.

use super::Store;
use super::disk::Slot;
use super::holdings::{Holdings, LoadFault, blob_weight, read_blob};
use super::index::blocks_of;
use super::live::Live;
use super::media::Media;
use super::segment::Files;
use crate::words::{DiskId, StoreId};

/// A chunk of the index that counts, and for nothing.
pub struct Gone {
    disk: DiskId,
    chunk: u64,
    slot: Slot,
}

impl Holdings {
    /// Nothing that this chunk refers to is needed any more.
    pub(super) fn let_go(&mut self, disk: DiskId, chunk: u64, mut slot: Slot) {
        self.dirty_bytes -= std::mem::take(&mut slot.counted);
        // A checkpoint that saw it gone had not counted it.
        if self.counting {
            self.gone.push_back(Gone { disk, chunk, slot });
        }
    }

    fn uncount<M: Media>(
        &mut self,
        gone: Gone,
        files: &mut Files<M>,
        store: StoreId,
    ) -> Result<(), LoadFault> {
        let Gone {
            disk,
            chunk: number,
            mut slot,
        } = gone;
        let chunk = match slot.chunk.take() {
            Some(chunk) => chunk,
            None => {
                let (chunk, bytes) = read_blob(files, store, disk, number, &slot.blob)?;
                slot.blob_weight = blob_weight(bytes, slot.blob.len());
                Box::new(chunk)
            }
        };
        for place in &slot.blob {
            self.live.sub(place.segment, slot.blob_weight);
        }
        let mut sum = Sum::default();
        chunk.each_reference(|entry| {
            sum.add(&mut self.live, entry.place.segment, entry.weight());
        });
        sum.end(&mut self.live);
        Ok(())
    }
}

/// What is taken out of a segment, summed up while it is the same one: neighbours often stand together.
#[derive(Default)]
struct Sum {
    segment: u32,
    weight: u64,
}

impl Sum {
    fn add(&mut self, live: &mut Live, segment: u32, weight: u64) {
        if segment != self.segment {
            std::mem::replace(self, Sum { segment, weight: 0 }).end(live);
        }
        self.weight += weight;
    }

    fn end(self, live: &mut Live) {
        live.sub(self.segment, self.weight);
    }
}

impl<M: Media> Store<M> {
    /// Takes one chunk that was let go of out of the counts. False: there is none.
    pub(super) fn uncount_gone(&mut self) -> bool {
        let Some(gone) = self.holdings.gone.pop_front() else {
            return false;
        };
        let (disk, blocks) = (gone.disk, blocks_of(gone.chunk));
        let uncounted = self.holdings.uncount(gone, &mut self.log.files, self.id);
        if let Err(fault) = uncounted {
            tracing::warn!(
                store = %self.id, %disk, %blocks, ?fault,
                "the index of deleted blocks cannot be read: the cleaner looks for itself what is live"
            );
            self.holdings.live.doubt_all();
            self.cleaning.try_damaged_again();
        }
        true
    }
}
