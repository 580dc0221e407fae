//! The words of the design as types: one word, one type, no two bare integers in a row.

mod block;
mod change;
mod epoch;
mod id;
mod kept;
mod record;

pub use block::{BLOCK_BYTES, Block, Blocks, Extent, ExtentSize, Extents, SECTOR_BYTES, Span};
pub use change::{Change, ChangeRefused, NewSet, opened_by};
pub use epoch::{Epoch, Generation, Incarnation, Life, Revision, Seq, Starts, Version};
pub use id::{BackendId, BadName, DatacenterName, DiskId, DiskName, HostName, RackName, StoreId};
pub use kept::NotKept;
pub use record::{DiskRecord, Entry, History, MapRange, Owner, RecordFault, State};
