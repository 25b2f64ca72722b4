//! Network namespaces: a handle, its cookie, and a bounded visit by one thread.

mod exits;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::Arc,
};

use nix::sched::{CloneFlags, setns};

pub use self::exits::{Exit, OtherExit};

/// An open network namespace. Cloning shares the handle; the namespace lives at least as long as one of them.
#[derive(Debug, Clone)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    cookie: u64,
    /// The agent's own namespace needs no visit: sockets are made in it as they are.
    is_home: bool,
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// /proc is missing, or no socket can be made to ask for the cookie.
    pub fn current() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")?;
        let cookie = own_cookie()?;
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                cookie,
                is_home: true,
            }),
        })
    }

    /// The namespace behind `path`, such as `/proc/4711/ns/net` or a bind mount under `/run/netns`.
    ///
    /// # Errors
    /// It cannot be opened (the process has gone, CAP_SYS_PTRACE is missing) or entered (CAP_SYS_ADMIN).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// The namespace behind an open file of nsfs.
    ///
    /// # Errors
    /// As [`Self::open`]; also if it is another kind of file.
    pub fn from_file(file: File) -> io::Result<Self> {
        let home_cookie = own_cookie()?;
        let cookie = visit(file.as_fd(), own_cookie)??;
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                cookie,
                is_home: cookie == home_cookie,
            }),
        })
    }

    /// What the kernel's `bpf_get_netns_cookie` says in this namespace: unique until reboot, never reused.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.inner.cookie
    }

    /// Whether it is the agent's own.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.inner.is_home
    }

    /// Inode number in nsfs, as `ls -Li /proc/PID/ns/net` shows it. Unlike the cookie it may be used again.
    ///
    /// # Errors
    /// fstat(2) failed.
    pub fn inode(&self) -> io::Result<u64> {
        self.inner.file.metadata().map(|metadata| metadata.ino())
    }

    /// Runs `work` with the calling thread inside the namespace and brings the thread back. `work` must not block for
    /// long and cannot await: another task of this thread would find itself in the wrong namespace. Costs 3 us (two
    /// setns(2) calls); nothing for the agent's own namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered. If the thread cannot be brought back it must not run on in the wrong one: the
    /// process aborts.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        if self.inner.is_home {
            return Ok(work());
        }
        visit(self.inner.file.as_fd(), work)
    }
}

fn visit<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    /// Brings the thread back, also when `work` unwinds.
    struct Return(File);
    impl Drop for Return {
        fn drop(&mut self) {
            if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
                tracing::error!(%error, "cannot return to the agent's network namespace: stopping");
                std::process::abort();
            }
        }
    }
    // Opened anew each time (1 us) rather than kept: a kept handle of one thread would be wrong for another one that a
    // test or `exec` started elsewhere.
    let back = Return(File::open("/proc/thread-self/ns/net")?);
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
    let result = work();
    drop(back);
    Ok(result)
}

/// The cookie of the calling thread's namespace, by SO_NETNS_COOKIE (5.14).
fn own_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    crate::socket::netns_cookie(socket.as_fd())
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.inner.file.as_raw_fd()
    }
}
