//! The command's own cgroup.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use tokio::io::Interest;

use crate::{kernel, readiness};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup made for one command: a child of the caller's own, so that whatever already holds for the caller still holds
/// for the command.
#[derive(Debug)]
pub(crate) struct OwnCgroup {
    path: PathBuf,
}

impl OwnCgroup {
    /// Makes it.
    pub(super) fn make(name: &str) -> anyhow::Result<Self> {
        let mount = kernel::find_mount()?;
        let path = kernel::own_cgroup(&mount)?.join(format!("egress-{name}"));
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// One that a dead agent left.
    pub(crate) const fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends what is still running in it (cgroup.kill, Linux 5.14) and waits until it is gone.
    pub(crate) async fn empty(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")?;
        tokio::time::timeout(PATIENCE, wait_until_empty(&self.path))
            .await
            .unwrap_or_else(|_late| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    pub(crate) fn remove(self) -> anyhow::Result<()> {
        remove(&self.path).with_context(|| format!("cannot remove the cgroup {}", self.path.display()))
    }
}

/// Removes a cgroup without processes, with all below it.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The kernel signals a change of `populated` as a priority event on cgroup.events (cgroups(7)).
async fn wait_until_empty(path: &Path) -> io::Result<()> {
    let events = path.join("cgroup.events");
    let file = fs::File::open(&events)?;
    let changes = readiness::watch(file, Interest::PRIORITY)?;
    loop {
        if fs::read_to_string(&events)?
            .lines()
            .any(|line| line == "populated 0")
        {
            return Ok(());
        }
        let mut changed = changes.ready(Interest::PRIORITY).await?;
        changed.clear_ready();
    }
}
