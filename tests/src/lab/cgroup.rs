//! Fresh cgroups under the cgroup2 mount, wherever it is.

use std::{
    fs,
    io::{self, Read, Seek},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::patience::stretched;

/// How long processes may take to end on request.
const POLITE: Duration = Duration::from_secs(5);
/// How long killed processes may take to leave a cgroup.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A cgroup that is emptied and removed with everything below it when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A fresh one below the test program's own.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}", prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = own().join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        Self { path }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a child, which goes when this one goes.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn child(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        path
    }

    /// The names of its children, sorted.
    #[must_use]
    pub fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = child_directories(&self.path)
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names
    }
}

impl Cgroup {
    /// The processes in its children, at any depth: what the agents of a world run.
    #[must_use]
    pub fn processes_of_children(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        child_directories(&self.path).for_each(|child| collect_processes(&child, &mut all));
        all
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends what tests that did not end in time have left running.
pub fn remove_all_left() {
    for path in child_directories(&own()) {
        let is_ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix()));
        if is_ours && let Err(error) = remove(&path) {
            eprintln!("cannot remove cgroup {}: {error}", path.display());
        }
    }
}

fn prefix() -> String {
    format!("egress-tests-{}-", std::process::id())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("cannot remove cgroup {}: {error}", self.path.display());
        }
    }
}

/// The number that the kernel knows a cgroup by.
///
/// # Panics
/// There is no such cgroup.
#[must_use]
pub fn id(path: &Path) -> u64 {
    fs::metadata(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .ino()
}

/// The processes in a cgroup itself (not below it).
///
/// # Panics
/// There is no such cgroup.
#[must_use]
pub fn processes(path: &Path) -> Vec<u32> {
    let text = match fs::read_to_string(path.join("cgroup.procs")) {
        // A threaded cgroup has none of its own: they stand in the one above.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => String::new(),
        read => read.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Where cgroup2 is mounted. Recognised by the file system's type: the device may be called anything.
///
/// # Panics
/// It is not mounted.
#[must_use]
pub fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    mounts
        .lines()
        .find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
        })
        .expect("cgroup2 is mounted")
}

fn own() -> PathBuf {
    let cgroups = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let path = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("a cgroup2 path");
    mount_point().join(path)
}

fn collect_processes(path: &Path, all: &mut Vec<Pid>) {
    all.extend(
        processes(path)
            .into_iter()
            .filter_map(|id| i32::try_from(id).ok())
            .map(Pid::from_raw),
    );
    child_directories(path).for_each(|child| collect_processes(&child, all));
}

/// Asks the processes to end, so that an agent clears up after itself, before it makes them.
fn remove(path: &Path) -> io::Result<()> {
    terminate(path);
    if await_empty(path, stretched(POLITE)).is_err() {
        fs::write(path.join("cgroup.kill"), "1")?;
        await_empty(path, stretched(EMPTY_WITHIN))?;
    }
    remove_tree(path)
}

fn terminate(path: &Path) {
    for process in processes(path)
        .into_iter()
        .filter_map(|id| i32::try_from(id).ok())
    {
        match kill(Pid::from_raw(process), Signal::SIGTERM) {
            // It has ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => eprintln!("SIGTERM to {process}: {error}"),
        }
    }
    child_directories(path).for_each(|child| terminate(&child));
}

/// Children first. A cgroup whose last process has just been reaped can say EBUSY for a moment no longer than its exit:
/// [`await_empty`] has waited for that.
fn remove_tree(path: &Path) -> io::Result<()> {
    for child in child_directories(path) {
        remove_tree(&child)?;
    }
    fs::remove_dir(path)
}

fn child_directories(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Waits until nothing runs in a cgroup or below it: the kernel notifies a change of `cgroup.events` by POLLPRI to the
/// descriptor that has read it.
fn await_empty(path: &Path, within: Duration) -> io::Result<()> {
    let begin = Instant::now();
    let mut events = fs::File::open(path.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = within.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(io::Error::other("its processes do not end"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
