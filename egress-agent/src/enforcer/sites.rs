//! Which network namespaces are served: opened when somebody's connect is held there, closed when nobody is left.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use egress_common::event::ListenerWanted;
use tokio::sync::watch;

use crate::{
    kernel::ListenerTable,
    netns::Netns,
    proxy::{Site, Workers, leg::LegSettings, listener},
};

/// The namespaces that have listeners.
#[derive(Debug)]
pub(super) struct Sites {
    table: Arc<Mutex<ListenerTable>>,
    legs: LegSettings,
    /// The enforced cgroup: a namespace in which none of its members is left is abandoned.
    cgroup: PathBuf,
    open: HashMap<u64, OpenSite>,
}

#[derive(Debug)]
struct OpenSite {
    site: Arc<Site>,
    /// Inode of the namespace in nsfs, as /proc/PID/ns/net shows it.
    inode: u64,
    /// The agent's own namespace stays open as long as the agent lives.
    keep: bool,
    /// Seen without a member at the last sweep. Two sweeps in a row close it: a runtime may be between two processes.
    unused: bool,
    stop: watch::Sender<bool>,
}

impl Sites {
    /// No namespaces yet.
    #[must_use]
    pub(super) fn new(table: Arc<Mutex<ListenerTable>>, legs: LegSettings, cgroup: PathBuf) -> Self {
        Self {
            table,
            legs,
            cgroup,
            open: HashMap::new(),
        }
    }

    /// Opens the agent's own namespace, which stays.
    ///
    /// # Errors
    /// No listener can be bound.
    pub(super) fn open(&mut self, netns: Netns, workers: &Workers) -> io::Result<()> {
        self.open_with(netns, workers, true)
    }

    /// Opens the namespaces for which SYNs are held.
    pub(super) fn open_wanted(&mut self, wanted: &[ListenerWanted], workers: &Workers) {
        for wanted in wanted {
            if self.open.contains_key(&wanted.netns) {
                continue;
            }
            let Some(netns) = self.find(wanted) else {
                // Its SYN is sent again in a second and asks again, as long as the process lives.
                tracing::warn!(
                    pid = wanted.pid,
                    "no process leads to a network namespace that wants a listener"
                );
                continue;
            };
            if let Err(error) = self.open_with(netns, workers, false) {
                tracing::error!(%error, pid = wanted.pid, "cannot listen in a network namespace: its connects stay held");
            }
        }
    }

    /// How many are open.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Closes all; what was accepted goes on. The kernel's table keeps its entries, so that new connects are sent to
    /// closed ports and refused at once; without an entry they would be held.
    pub(super) fn close_all(&mut self) {
        for (_, open) in self.open.drain() {
            open.stop.send_replace(true);
        }
    }

    /// Closes those in which no member of the enforced cgroup is left. A listener keeps its namespace alive, so without
    /// this every namespace would stay for ever.
    pub(super) fn close_abandoned(&mut self) {
        if self.open.values().all(|open| open.keep) {
            return;
        }
        let mut used = HashSet::new();
        collect_namespaces(&self.cgroup, &mut used);
        self.open.retain(|cookie, open| {
            let unused = !open.keep && !used.contains(&open.inode);
            let abandoned = unused && open.unused;
            open.unused = unused;
            if abandoned {
                tracing::debug!(cookie, "closing the listeners of an abandoned network namespace");
                open.site.withdraw();
                open.stop.send_replace(true);
            }
            !abandoned
        });
    }

    fn open_with(&mut self, netns: Netns, workers: &Workers, keep: bool) -> io::Result<()> {
        let bound = listener::bind(&netns, workers.count(), &self.legs)?;
        let (cookie, inode) = (netns.cookie(), netns.inode()?);
        let site = Arc::new(Site::publish(netns, bound.table, Arc::clone(&self.table))?);
        let (stop, stopped) = watch::channel(false);
        workers.serve(bound.listeners, &site, &stopped)?;
        self.open.insert(
            cookie,
            OpenSite {
                site,
                inode,
                keep,
                unused: false,
                stop,
            },
        );
        Ok(())
    }

    /// The namespace that a held connect was made in: by the process that made it, else by another one of its cgroup.
    /// The cookie proves that it is the right one; /proc/PID/ns/net may show another meanwhile.
    fn find(&self, wanted: &ListenerWanted) -> Option<Netns> {
        let matching = |pid: &str| {
            let netns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).ok()?;
            (netns.cookie() == wanted.netns).then_some(netns)
        };
        if let Some(netns) = matching(&wanted.pid.to_string()) {
            return Some(netns);
        }
        let directory = directory_of(&self.cgroup, wanted.cgroup)?;
        let pids = fs::read_to_string(directory.join("cgroup.procs")).ok()?;
        pids.lines().find_map(matching)
    }
}

/// The directory below `root` whose inode, that is cgroup id, is `id`.
fn directory_of(root: &Path, id: u64) -> Option<PathBuf> {
    if fs::metadata(root).ok()?.ino() == id {
        return Some(root.to_path_buf());
    }
    children(root).find_map(|child| directory_of(&child, id))
}

/// Adds the network namespaces of all processes in `cgroup` and below.
fn collect_namespaces(cgroup: &Path, used: &mut HashSet<u64>) {
    if let Ok(pids) = fs::read_to_string(cgroup.join("cgroup.procs")) {
        used.extend(
            pids.lines()
                .filter_map(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).ok())
                .map(|namespace| namespace.ino()),
        );
    }
    for child in children(cgroup) {
        collect_namespaces(&child, used);
    }
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}
