//! A small file system under a store, so that it can be full, or frozen: ext4 in a sparse file.
//!
//! It is mounted where only this thread and what it starts can see it: when they are gone, however that
//! comes, so is the mount.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::processes::ask;

const BOUND: Duration = Duration::from_secs(60);
/// Left over by [`Room::fill`]: no segment fits in it.
const CRUMB: u64 = 1 << 20;
const BALLAST: &str = "ballast";
/// linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

pub struct Room {
    at: PathBuf,
}

impl Room {
    /// From here on what this thread mounts, it and its children see, and nobody else.
    pub fn keep_mounts_to_ourselves() -> Result<()> {
        // SAFETY: plain system calls; only this thread gets another view of the file system.
        unsafe {
            let root = c"/".as_ptr();
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let none = std::ptr::null();
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, root, none, flags, none.cast()) != 0
            {
                return Err(io::Error::last_os_error()).context("mounts of our own");
            }
        }
        Ok(())
    }

    /// A file system of so many bytes at `at`, kept in `image`.
    pub fn new(image: &Path, at: &Path, bytes: u64) -> Result<Room> {
        File::create(image)?.set_len(bytes)?;
        Room::on(image, at)
    }

    /// The same, kept in an image that is there.
    pub fn on(image: &Path, at: &Path) -> Result<Room> {
        fs::create_dir_all(at)?;
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-m", "0", "-E", "nodiscard"]).arg(image);
        run("mkfs.ext4", make)?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,noinit_itable"]).arg(image).arg(at);
        run("mount", mount)?;
        Ok(Room { at: at.to_owned() })
    }

    /// Something else takes all that is left; again and again, if asked to.
    pub fn fill(&self) -> Result<()> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.at.join(BALLAST))?;
        let has = file.metadata()?.len();
        let mut bytes = free(&self.at)?;
        while bytes > CRUMB {
            bytes -= CRUMB;
            let (from, more) = (has as libc::off_t, bytes as libc::off_t);
            // SAFETY: a plain system call on our own descriptor.
            if unsafe { libc::posix_fallocate(file.as_raw_fd(), from, more) } == 0 {
                break;
            }
        }
        Ok(())
    }

    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.at.join(BALLAST))?)
    }

    /// Whoever writes to it from here on waits until it is thawed, and cannot be killed before.
    pub fn freeze(&self) -> Result<()> {
        self.control(FIFREEZE).context("freezing a file system")
    }

    pub fn thaw(&self) -> Result<()> {
        self.control(FITHAW).context("thawing a file system")
    }

    fn control(&self, order: libc::Ioctl) -> Result<()> {
        let at = File::open(&self.at)?;
        // SAFETY: the two orders have no argument that the kernel looks at.
        if unsafe { libc::ioctl(at.as_raw_fd(), order, 0) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Most are not frozen.
        let _ = self.thaw();
        if let Ok(at) = CString::new(self.at.as_os_str().as_bytes()) {
            // SAFETY: a plain system call with a string that outlives it.
            unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn free(at: &Path) -> Result<u64> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statvfs is valid, and statvfs writes only to it.
    let stat = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        ensure!(
            libc::statvfs(path.as_ptr(), &mut stat) == 0,
            "statvfs {}",
            at.display()
        );
        stat
    };
    Ok(stat.f_bavail * stat.f_frsize)
}

fn run(name: &str, command: Command) -> Result<()> {
    let answer = ask(name, command, BOUND)?;
    ensure!(
        answer.status.success(),
        "{name}: {}{}",
        answer.out,
        answer.err
    );
    Ok(())
}
