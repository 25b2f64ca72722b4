//! A file, pipe or terminal that lines are appended to without ever waiting for its reader.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Target;

/// How much is gathered before it is written ahead of the batch's end.
pub(super) const CHUNK: usize = 64 * 1024;
/// PIPE_BUF, pipe(7): a pipe that polls as writable takes at least so much, in one piece, without blocking.
const PIPE_CHUNK: usize = 4096;

#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    /// A regular file never makes its writer wait for a reader.
    is_regular: bool,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes were taken.
    Some(usize),
    /// The reader is behind.
    NotNow,
}

impl Opened {
    pub(super) fn new(target: &Target) -> io::Result<Self> {
        let file = match target {
            Target::File(path) => append_to(path)?,
            Target::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Target::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
        };
        let kind = file.metadata()?.file_type();
        let is_regular = !(kind.is_fifo() || kind.is_char_device() || kind.is_socket());
        Ok(Self { file, is_regular })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<Written> {
        let bytes = if self.is_regular {
            bytes
        } else if self.is_writable()? {
            bytes.get(..PIPE_CHUNK).unwrap_or(bytes)
        } else {
            return Ok(Written::NotNow);
        };
        loop {
            return match self.file.write(bytes) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => Ok(Written::Some(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Written::NotNow),
                Err(error) => Err(error),
            };
        }
    }

    /// Asked instead of O_NONBLOCK, which would hold for every process that shares our standard output.
    fn is_writable(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut polled, PollTimeout::ZERO)?;
        // A hang-up or an error counts as writable: the write then says which.
        Ok(polled.iter().any(|fd| fd.any().unwrap_or(true)))
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        // A named pipe without a reader is an error, and not a wait for one.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    // A writer that was killed in the middle may have left half a line. Only to append being allowed, it cannot be told.
    if file.metadata()?.is_file() && ends_in_half_a_line(path).unwrap_or(false) {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

fn ends_in_half_a_line(path: &Path) -> io::Result<bool> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != [b'\n'])
}
