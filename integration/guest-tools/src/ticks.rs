//! What lets the host time this guest's operations: a byte to an I/O port as each begins and ends.
//!
//! The guest's own clock cannot: it stops while the guest is moved. QEMU's debug console hands the byte
//! to the host before the `out` instruction returns: no driver, no interrupt and no queue on the way,
//! and nothing that would have to be migrated.
//!
//! ```text
//! bit  7..3 thread   2..1 operation (0 write, 1 read, 2 flush)   0 (0 begins, 1 ends)
//! ```

use crate::Result;

/// What five bits tell apart.
const MAX_THREADS: u64 = 32;

#[derive(Clone, Copy)]
pub enum Doing {
    Write = 0,
    Read = 1,
    Flush = 2,
}

/// Of one thread: the permission to use the port is the thread's.
pub struct Ticks {
    port: Option<u16>,
    thread: u8,
}

impl Ticks {
    /// Without a port nothing is said.
    pub fn open(port: Option<u64>, thread: u64) -> Result<Ticks> {
        let Some(number) = port else {
            let (port, thread) = (None, 0);
            return Ok(Ticks { port, thread });
        };
        let port = u16::try_from(number).map_err(|_| format!("--ticks {number}: not a port"))?;
        if thread >= MAX_THREADS {
            return Err(format!("--ticks tells at most {MAX_THREADS} threads apart"));
        }
        // SAFETY: a plain system call.
        if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("I/O port {port}: {error}"));
        }
        let thread = thread as u8;
        Ok(Ticks {
            port: Some(port),
            thread,
        })
    }

    pub fn begins(&self, doing: Doing) {
        self.say(doing, 0);
    }

    pub fn ends(&self, doing: Doing) {
        self.say(doing, 1);
    }

    fn say(&self, doing: Doing, end: u8) {
        let Some(port) = self.port else { return };
        let byte = self.thread << 3 | (doing as u8) << 1 | end;
        // SAFETY: `open` was granted the port; whoever starts the program says what listens there.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") port, in("al") byte,
                options(nomem, nostack, preserves_flags));
        }
    }
}
