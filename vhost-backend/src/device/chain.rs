//! From a head to the pieces of guest memory that its descriptors name.
//!
//! Each descriptor is read once and judged on that copy: the guest may change the table while we
//! read it, and only hurts itself. `virtio_queue::DescriptorChain` ends quietly where a chain is
//! malformed, and then looks like a shorter one; here that is an error.

use super::memory::{Memory, Piece};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

const DESCRIPTOR_BYTES: u64 = 16;
/// Descriptors of one chain, whatever tables they stand in: far more than SEGMENTS_MAX allows.
const CHAIN_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainFault {
    #[error("a descriptor points beyond its table")]
    BeyondTable,
    #[error("the chain is longer than the ring, or a circle")]
    TooLong,
    #[error("a descriptor table lies outside of guest memory")]
    OutOfMemory,
    #[error("an indirect table of a forbidden shape")]
    Indirect,
}

/// The pieces of one request; kept and filled anew for each.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the driver wrote for us.
    pub readable: Vec<Piece>,
    /// What we write for the driver.
    pub writable: Vec<Piece>,
    /// A readable piece came after a writable one, which the driver must not do.
    pub misordered: bool,
}

impl Chain {
    /// Reads the chain that begins at `head` of a ring of `size` descriptors at `table`.
    pub fn read(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), ChainFault> {
        self.readable.clear();
        self.writable.clear();
        self.misordered = false;
        match self.follow(memory, table, size, head)? {
            None => Ok(()),
            Some(indirect) => {
                let table_bytes = u64::from(indirect.len());
                let count = table_bytes / DESCRIPTOR_BYTES;
                if !table_bytes.is_multiple_of(DESCRIPTOR_BYTES)
                    || !(1..=CHAIN_MAX as u64).contains(&count)
                {
                    return Err(ChainFault::Indirect);
                }
                match self.follow(memory, indirect.addr(), count as u16, 0)? {
                    None => Ok(()),
                    Some(_) => Err(ChainFault::Indirect),
                }
            }
        }
    }

    /// Follows one table to the end of the chain, or to the descriptor that names another table.
    fn follow(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        size: u16,
        first: u16,
    ) -> Result<Option<Descriptor>, ChainFault> {
        let mut index = first;
        for _ in 0..size {
            if index >= size {
                return Err(ChainFault::BeyondTable);
            }
            let descriptor: Descriptor = table
                .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
                .and_then(|addr| memory.guest().read_obj(addr).ok())
                .ok_or(ChainFault::OutOfMemory)?;
            if descriptor.refers_to_indirect_table() {
                if descriptor.has_next() {
                    return Err(ChainFault::Indirect);
                }
                return Ok(Some(descriptor));
            }
            self.push(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(None);
            }
            index = descriptor.next();
        }
        Err(ChainFault::TooLong)
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainFault> {
        if self.readable.len() + self.writable.len() >= CHAIN_MAX {
            return Err(ChainFault::TooLong);
        }
        let piece = Piece {
            addr: descriptor.addr().raw_value(),
            len: descriptor.len(),
        };
        if piece.len == 0 {
            return Ok(());
        }
        if descriptor.is_write_only() {
            self.writable.push(piece);
        } else {
            self.misordered |= !self.writable.is_empty();
            self.readable.push(piece);
        }
        Ok(())
    }
}
