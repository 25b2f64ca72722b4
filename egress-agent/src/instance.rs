//! A running agent's traces on the machine: a lock that tells whether it lives, what it has to clean up, and its control
//! socket. All in `/run/egress-agent/INSTANCE`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

/// Where the directories of all instances are; on a tmpfs, so they are gone after a reboot, as the pins are.
pub(crate) const DIRECTORY: &str = "/run/egress-agent";

/// Who looks whether an instance lives (`status`) holds its lock for a moment: a claim tries so often before it believes
/// that the name is taken.
const LOOKS: u32 = 5;
/// The time between two tries.
const LOOK: Duration = Duration::from_millis(20);

/// What has to be removed when an instance ends, kept on disk for the case that it cannot do so itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    /// The agent's process.
    pub pid: u32,
    /// The directory with its pins.
    pub pins: PathBuf,
    /// The cgroup whose members it enforces.
    pub cgroup: PathBuf,
    /// Whether the cgroup was made by the agent and goes with it.
    pub owns_cgroup: bool,
    /// [`egress_common::names::LAYOUT`] of the pinned maps; 0 while they are being replaced.
    #[serde(default)]
    pub layout: u32,
    /// How many agents have had these pins, this one included.
    #[serde(default)]
    pub generation: u64,
}

/// The own instance. The lock (flock(2)) is held as long as this lives, and by the kernel's doing not a moment longer.
#[derive(Debug)]
pub struct Instance {
    name: String,
    directory: PathBuf,
    lock: File,
}

/// An instance found on the machine.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What it left or will leave; `None` if it has not got so far, or the file is damaged.
    pub traces: Option<Traces>,
    is_dead: bool,
    /// The lock of a dead one: nobody can claim its name meanwhile.
    lock: Option<File>,
}

impl Instance {
    /// Claims a name.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if a living instance has it.
    pub fn claim(name: &str) -> io::Result<Self> {
        let directory = Path::new(DIRECTORY).join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let lock = lock_file(&directory)?;
        let mut locked = lock.try_lock();
        for _ in 0..LOOKS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOOK);
            locked = lock.try_lock();
        }
        match locked {
            Ok(()) => Ok(Self {
                name: name.to_owned(),
                directory,
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("an agent named `{name}` is running already: see `egress-agent status`"),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What an earlier agent of this name left, if it did not end by itself.
    #[must_use]
    pub fn predecessor(&self) -> Option<Traces> {
        traces_in(&self.directory)
    }

    /// One that a predecessor hands over with the descriptor of its lock: the lock is held by both until one of them ends.
    #[must_use]
    pub fn handed(name: &str, lock: File) -> Self {
        Self {
            name: name.to_owned(),
            directory: Path::new(DIRECTORY).join(name),
            lock,
        }
    }

    /// The lock's descriptor, for a successor.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control socket that `status` asks, in place of an earlier agent's.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let beside = self.directory.join("control.sock.next");
        remove_if_there(&beside)?;
        let listener = UnixListener::bind(&beside)?;
        listener.set_nonblocking(true)?;
        fs::rename(beside, socket_in(&self.directory))?;
        Ok(listener)
    }

    /// The socket that a successor calls, in place of an earlier agent's.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn listen_for_successor(&self) -> io::Result<Socket> {
        let beside = self.directory.join("handover.sock.next");
        remove_if_there(&beside)?;
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.bind(&SockAddr::unix(&beside)?)?;
        socket.listen(1)?;
        socket.set_nonblocking(true)?;
        fs::rename(beside, handover_socket(&self.name))?;
        Ok(socket)
    }

    /// Notes what will have to be removed. Call it before any of it is made. An agent that is killed meanwhile leaves the
    /// old note or the new one, and never a part of one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&self, traces: &Traces) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(traces)?;
        let beside = self.directory.join("traces.json.next");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        fs::rename(beside, self.directory.join("traces.json"))
    }

    /// Removes the directory; the name is free again.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn release(self) -> io::Result<()> {
        let result = fs::remove_dir_all(&self.directory);
        drop(self.lock);
        result
    }
}

impl Found {
    /// Whether its process is gone.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Lets go of the name of a dead one.
    #[must_use]
    pub fn unlocked(mut self) -> Self {
        self.lock = None;
        self
    }

    /// The control socket of a living one.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.directory)
    }

    /// Removes the directory of a dead one.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn release(self) -> io::Result<()> {
        let result = fs::remove_dir_all(&self.directory);
        drop(self.lock);
        result
    }
}

/// Where the instance `name` is asked for its status.
#[must_use]
pub fn control_socket(name: &str) -> PathBuf {
    socket_in(&Path::new(DIRECTORY).join(name))
}

/// Where the instance `name` listens for a successor.
#[must_use]
pub fn handover_socket(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name).join("handover.sock")
}

/// Every instance that has a directory, by name.
///
/// # Errors
/// The directory exists and cannot be read.
pub fn find_all() -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let directory = entry.path();
        // Gone between the listing and the look: it ended properly.
        let Ok(lock) = OpenOptions::new().write(true).open(directory.join("lock")) else {
            continue;
        };
        let lock = lock.try_lock().is_ok().then_some(lock);
        found.push(Found {
            name: entry.file_name().to_string_lossy().into_owned(),
            traces: traces_in(&directory),
            directory,
            is_dead: lock.is_some(),
            lock,
        });
    }
    found.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(found)
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join("lock"))
}

fn traces_in(directory: &Path) -> Option<Traces> {
    let text = fs::read(directory.join("traces.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn socket_in(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}
