//! splice(2) through pooled pipes: pages go from one socket's receive queue into the other's send queue uncopied.
//!
//! A pipe belongs to a direction only while bytes are in it or move through it. Each worker has its own pool, so nothing
//! is locked.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

/// Measured against a direct connection, down and up: 64 KiB .59 and .47 of its throughput, 256 KiB .87 and .74, 1 MiB .87
/// and .81. Also what fs.pipe-max-size allows an unprivileged process.
const CAPACITY: usize = 1024 * 1024;

/// A pipe smaller than this (a user over fs.pipe-user-pages-soft gets two pages) is worse than copying.
const LEAST_CAPACITY: usize = 64 * 1024;

/// Empty pipes that a worker keeps for the next bulk transfer; each costs two descriptors and 10 KiB.
const KEPT: usize = 32;

/// What a fill gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    Bytes(usize),
    Nothing,
    End,
}

/// A pipe, on loan from the worker's pool. Goes back there if it is empty when dropped; a pipe with bytes in it is closed,
/// because they would come out in somebody else's tunnel.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Option<Ends>,
    /// Bytes in it.
    length: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

thread_local! {
    static POOL: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static ON_LOAN: Cell<usize> = const { Cell::new(0) };
}

/// How many pipes of the calling worker are on loan, and how many lie idle.
#[must_use]
pub fn pipes() -> (usize, usize) {
    (ON_LOAN.get(), POOL.with_borrow(Vec::len))
}

impl Pipe {
    /// A pipe from the pool or a new one; `None` if the worker has lent out `most` already, or the system grants none of
    /// a useful size.
    pub(super) fn take(most: usize) -> Option<Self> {
        if ON_LOAN.get() >= most {
            return None;
        }
        let ends = POOL.with_borrow_mut(Vec::pop).or_else(|| {
            open()
                .inspect_err(|error| tracing::debug!(%error, "no pipe: copying instead"))
                .ok()
        })?;
        ON_LOAN.set(ON_LOAN.get() + 1);
        Some(Self {
            ends: Some(ends),
            length: 0,
        })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes what the socket has, as far as it fits. To be called with an empty pipe only: EAGAIN from a pipe that holds
    /// something may mean either a full pipe (a slot holds one fragment, however small) or an empty socket.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<Filled> {
        let Some(ends) = &self.ends else {
            return Ok(Filled::Nothing);
        };
        let moved = from.try_io(Interest::READABLE, || transfer(from, &ends.write, ends.capacity));
        match moved {
            Ok(0) => Ok(Filled::End),
            Ok(bytes) => {
                self.length += bytes;
                Ok(Filled::Bytes(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Gives the socket what it takes; 0 if it takes nothing now.
    pub(super) fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = to.try_io(Interest::WRITABLE, || self.transfer_to(to));
        self.emptied(moved)
    }

    /// As [`Self::empty`], whatever the runtime knows of the socket.
    pub(super) fn empty_now(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = self.transfer_to(to);
        self.emptied(moved)
    }

    fn transfer_to(&self, to: &TcpStream) -> io::Result<usize> {
        match &self.ends {
            Some(ends) => transfer(&ends.read, to, self.length),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn emptied(&mut self, moved: io::Result<usize>) -> io::Result<usize> {
        match moved {
            // There is something in it, so this cannot be; to call it "nothing now" would go round for ever.
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                self.length = self.length.saturating_sub(bytes);
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        ON_LOAN.set(ON_LOAN.get().saturating_sub(1));
        if self.length > 0 {
            return;
        }
        let ends = self.ends.take();
        // At the end of the thread the pool may be gone already: then the pipe is closed.
        POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.len() < KEPT
            {
                pool.extend(ends);
            }
        })
        .unwrap_or_default();
    }
}

fn open() -> io::Result<Ends> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // EPERM for a user over fs.pipe-user-pages-soft or above fs.pipe-max-size: then what it came with has to do.
    let wanted = i32::try_from(CAPACITY).unwrap_or(i32::MAX);
    let capacity = match fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted)) {
        Ok(granted) => granted,
        Err(_) => fcntl(&write, FcntlArg::F_GETPIPE_SZ)?,
    };
    let capacity = usize::try_from(capacity).unwrap_or(0);
    if capacity < LEAST_CAPACITY {
        return Err(io::Error::other(
            "the system grants pipes of less than 64 KiB only (fs.pipe-user-pages-soft)",
        ));
    }
    Ok(Ends {
        read,
        write,
        capacity,
    })
}

/// SPLICE_F_MORE is left out: it would hold the last segment back, and only the sender knows which one that is.
fn transfer(from: impl AsFd, to: impl AsFd, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from.as_fd(), None, to.as_fd(), None, bytes, flags) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
