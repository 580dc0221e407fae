//! The files that images are read from and written to: which kinds of file can be one.
//!
//! Looked at before anything is asked of the placement service. By path first, since opening a named pipe
//! waits for whoever is at its other end.

use crate::exit::{Code, Failure};
use anyhow::Context;
use rustix::fs::FileType;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Opens what is to be imported. It has a length, and can be read at any place.
pub fn to_read(path: &Path) -> anyhow::Result<File> {
    let cannot = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).with_context(cannot)?;
    if let Err(what) = can_be_read(kind(&metadata)) {
        return Err(Failure::new(Code::Failed, cannot())
            .because(format!("it is {what}, which has no length"))
            .try_next("write the image to a file first, and import that")
            .into());
    }
    let mut file = File::open(path).with_context(cannot)?;
    if file.seek(std::io::SeekFrom::End(0)).with_context(cannot)? == 0 {
        return Err(Failure::new(Code::Failed, cannot())
            .because("it is empty, which no image is")
            .try_next("look at what was to write it")
            .into());
    }
    Ok(file)
}

/// What is to be exported to. It was there before, or was made just now.
pub struct Target<'a> {
    pub file: File,
    path: &'a Path,
    made: bool,
}

impl Target<'_> {
    /// Opens a regular file; what it holds stays until the export begins.
    pub fn open(path: &Path, overwrite: bool) -> anyhow::Result<Target<'_>> {
        let cannot = || format!("cannot make {}", path.display());
        if let Ok(metadata) = std::fs::metadata(path)
            && let Err(what) = can_be_written(kind(&metadata))
        {
            return Err(Failure::new(Code::Failed, cannot())
                .because(format!(
                    "it is {what}, and images are exported to files only"
                ))
                .try_next("export to a file, and copy that there")
                .into());
        }
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, made) = match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && overwrite => {
                let file = OpenOptions::new().write(true).open(path);
                (file.with_context(cannot)?, false)
            }
            made => {
                let why = || format!("{} (--overwrite replaces a file)", cannot());
                (made.with_context(why)?, true)
            }
        };
        Ok(Target { file, path, made })
    }

    /// The export has failed. A file that was made for it and got nothing is not left behind.
    pub fn give_up(self) {
        let got_nothing = self.file.metadata().is_ok_and(|found| found.len() == 0);
        if self.made && got_nothing {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn kind(metadata: &Metadata) -> FileType {
    FileType::from_raw_mode(metadata.mode())
}

/// What it is instead, if no image can be read from it.
fn can_be_read(kind: FileType) -> Result<(), &'static str> {
    match kind {
        FileType::RegularFile | FileType::BlockDevice => Ok(()),
        other => Err(called(other)),
    }
}

/// The same for being written. A block device cannot be: nothing makes it as long as the disk, and where
/// the disk has holes it would keep what it had.
fn can_be_written(kind: FileType) -> Result<(), &'static str> {
    match kind {
        FileType::RegularFile => Ok(()),
        other => Err(called(other)),
    }
}

fn called(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::BlockDevice => "a block device",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Directory => "a directory",
        FileType::Socket => "a socket",
        _ => "no regular file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mknodat};
    use tempfile::TempDir;

    fn refusal<T>(result: anyhow::Result<T>) -> String {
        let error = result.err().expect("it is refused");
        error
            .downcast::<Failure>()
            .expect("with a reason")
            .to_string()
    }

    #[test]
    fn images_are_read_from_files_and_block_devices_only() {
        assert_eq!(can_be_read(FileType::RegularFile), Ok(()));
        assert_eq!(can_be_read(FileType::BlockDevice), Ok(()));
        let dir = TempDir::new().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(refusal(to_read(&pipe)).ends_with("it is a pipe, which has no length"));
        assert!(refusal(to_read(dir.path())).contains("a directory"));
        assert!(refusal(to_read(Path::new("/dev/zero"))).contains("a character device"));
        let image = dir.path().join("image");
        let written = File::create_new(&image).unwrap();
        assert!(refusal(to_read(&image)).contains("empty"));
        written.set_len(512).unwrap();
        assert!(to_read(&image).is_ok());
    }

    #[test]
    fn images_are_written_to_files_only() {
        assert_eq!(can_be_written(FileType::RegularFile), Ok(()));
        assert_eq!(can_be_written(FileType::BlockDevice), Err("a block device"));
        let dir = TempDir::new().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for overwrite in [false, true] {
            assert!(refusal(Target::open(&pipe, overwrite)).contains("it is a pipe"));
            assert!(refusal(Target::open(dir.path(), overwrite)).contains("a directory"));
        }
    }

    #[test]
    fn only_a_file_that_was_made_for_nothing_goes_again() {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        Target::open(&image, false).unwrap().give_up();
        assert!(!image.exists());

        let begun = Target::open(&image, true).unwrap();
        begun.file.set_len(512).unwrap();
        begun.give_up();
        assert!(image.exists());
        assert!(Target::open(&image, false).is_err(), "it is there");

        File::create(&image).unwrap();
        Target::open(&image, true).unwrap().give_up();
        assert!(image.exists(), "it was there before");
    }
}
