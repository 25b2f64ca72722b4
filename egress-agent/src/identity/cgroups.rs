//! Cgroup ids to workloads: by configured cgroup paths on a machine without Kubernetes, by pods on a node.
//!
//! A cgroup is resolved when somebody asks: at the first connect, or at the first execve(2) in it, which the kernel
//! announces. A watch for new cgroups would only be late or early; the id of a cgroup leads to its directory at any time
//! as long as it exists, so there is no window to close.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, watch};

use super::{
    PodDirectory, PodUid, Workload,
    cgroup_path::{self, Part},
    changes::{Changes, Gathered},
    workload::PodFacts,
};
use crate::kernel::{CgroupTree, children};

/// A cgroup (with all below it) and the workload that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Path below the enforced cgroup; empty for the enforced cgroup itself.
    pub path: PathBuf,
    /// What it is; its `cgroup` is filled in when it is found.
    pub workload: Workload,
}

/// Where pods are found.
#[derive(Debug, Clone)]
pub struct PodSource {
    /// The kubelet's root cgroup: the enforced one, or one below it.
    pub root: PathBuf,
    /// The pods of this node.
    pub directory: Arc<PodDirectory>,
    /// Whether static pods are left alone: the kubelet has them from files of the node, so whoever makes one is root there.
    pub exempt_static: bool,
    /// How long to wait for a pod that is not known yet.
    pub patience: Duration,
}

/// Looks workloads up by cgroup id. A cgroup id is never reused before the next boot (`kernfs_node_id` is a counter),
/// so where a cgroup is stays true.
#[derive(Debug)]
pub struct Identities {
    tree: CgroupTree,
    /// Where the cgroup2 hierarchy is mounted.
    mount: PathBuf,
    /// The enforced cgroup; nothing outside it has an identity.
    root: PathBuf,
    /// The longest path that contains a cgroup says what it is.
    mappings: Vec<Mapping>,
    pods: Option<PodSource>,
    known: RwLock<Table>,
    /// A number that changes with every cgroup that becomes known.
    changes: watch::Sender<u64>,
    /// Those cgroups.
    fresh: Gathered<u64>,
    waiting: Semaphore,
}

#[derive(Debug, Default)]
struct Table {
    cgroups: HashMap<u64, Known>,
    /// Of those of pods: which are whose.
    of_pods: HashMap<PodUid, HashSet<u64>>,
}

#[derive(Debug)]
struct Known {
    directory: PathBuf,
    /// Of which pod, and in which container.
    pod: Option<(PodUid, Option<String>)>,
    /// What it was at that version of the pods.
    workload: Option<Arc<Workload>>,
    version: u64,
    /// When it was first seen to have gone.
    gone: Option<Instant>,
}

/// Most cgroups that are remembered; those beyond are looked up each time.
const MOST_CGROUPS: usize = 100_000;

/// How long a cgroup that has gone is remembered: its last connections may still be on their way to the agent, and the last
/// of what the kernel has counted is told within 20 s (the interval of its reports, and a sweep).
const AFTERLIFE: Duration = Duration::from_secs(30);

/// Most connections and queries that wait for pods at a time; further ones are refused at once. A pod that the API server
/// does not know must not fill the agent's memory.
const MOST_WAITING: usize = 4096;

impl Identities {
    /// Identities below `root`, a directory below `mount`.
    ///
    /// # Errors
    /// The mount cannot be opened.
    pub fn new(
        mount: PathBuf,
        root: PathBuf,
        mut mappings: Vec<Mapping>,
        pods: Option<PodSource>,
    ) -> io::Result<Self> {
        mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.path.components().count()));
        Ok(Self {
            tree: CgroupTree::open(&mount, &root)?,
            mount,
            root,
            mappings,
            pods,
            known: RwLock::default(),
            changes: watch::Sender::default(),
            fresh: Gathered::default(),
            waiting: Semaphore::new(MOST_WAITING),
        })
    }

    /// The workload of a cgroup; `None` if the cgroup is gone, lies outside the enforced one, or is that of a pod that is
    /// not known. Costs a read lock for a cgroup that was seen before.
    #[must_use]
    pub fn of(&self, cgroup: u64) -> Option<Arc<Workload>> {
        let version = self.version();
        let known = self.read().cgroups.get(&cgroup).map(|known| {
            let is_current = known.version == version;
            is_current.then(|| known.workload.clone())
        });
        match known {
            Some(Some(workload)) => workload,
            Some(None) => self.renew(cgroup, version),
            None => self.learn(cgroup, version),
        }
    }

    /// As [`Self::of`], but waits for a pod that is not known yet, as long as the configuration says.
    pub async fn find(&self, cgroup: u64) -> Option<Arc<Workload>> {
        let Some(source) = &self.pods else {
            return self.of(cgroup);
        };
        let mut changes = source.directory.changes();
        if let Some(workload) = self.of(cgroup) {
            return Some(workload);
        }
        let is_pod = self
            .read()
            .cgroups
            .get(&cgroup)
            .is_some_and(|known| known.pod.is_some());
        let place = self.waiting.try_acquire();
        if !is_pod || place.is_err() {
            return None;
        }
        let known = async {
            loop {
                // Its sender lives as long as the source.
                changes.changed().await.ok()?;
                if let Some(workload) = self.of(cgroup) {
                    return Some(workload);
                }
            }
        };
        tokio::time::timeout(source.patience, known).await.ok().flatten()
    }

    /// Who it is by what is known now, without waiting: for what is counted by workload.
    pub fn of_or_stranger(&self, cgroup: u64) -> Arc<Workload> {
        self.of(cgroup).unwrap_or_else(|| Arc::new(self.stranger(cgroup)))
    }

    /// What can be said of a cgroup without identity, for the log: its path, and the UID in it as its name.
    #[must_use]
    pub fn stranger(&self, cgroup: u64) -> Workload {
        let table = self.read();
        let known = table.cgroups.get(&cgroup);
        Workload {
            name: known
                .and_then(|known| known.pod.as_ref())
                .map(|(uid, _)| uid.to_string())
                .unwrap_or_default(),
            cgroup: known
                .map(|known| self.shown(&known.directory))
                .unwrap_or_default(),
            ..Workload::default()
        }
    }

    /// Every cgroup that there is now, with the workload that it is. Walks the tree.
    ///
    /// # Errors
    /// The enforced cgroup is gone.
    pub fn refresh(&self) -> io::Result<Vec<(u64, Arc<Workload>)>> {
        let mut found = Vec::new();
        let mut waiting = vec![self.root.clone()];
        while let Some(directory) = waiting.pop() {
            if found.len() >= MOST_CGROUPS {
                tracing::error!(
                    most = MOST_CGROUPS,
                    "too many cgroups: those beyond have no identity and are refused"
                );
                break;
            }
            // A cgroup may go while it is looked at; the root must not.
            let id = match fs::metadata(&directory) {
                Ok(metadata) => metadata.ino(),
                Err(error) if directory == self.root => return Err(error),
                Err(_gone) => continue,
            };
            found.extend(self.of(id).map(|workload| (id, workload)));
            waiting.extend(children(&directory));
        }
        Ok(found)
    }

    /// Every cgroup that is known, with its workload.
    #[must_use]
    pub fn all(&self) -> Vec<(u64, Arc<Workload>)> {
        let cgroups: Vec<u64> = self.read().cgroups.keys().copied().collect();
        let each = cgroups.into_iter();
        each.filter_map(|cgroup| Some((cgroup, self.of(cgroup)?)))
            .collect()
    }

    /// The cgroups that have become known since the last call, and those whose workload may be another one. For one reader.
    #[must_use]
    pub fn news(&self) -> Changes<u64> {
        let mut news = self.fresh.take();
        let pods = self.pods.as_ref().map(|source| source.directory.take_changed());
        match (&mut news, pods.unwrap_or_default()) {
            (Changes::All, _) | (_, Changes::All) => Changes::All,
            (Changes::Of(cgroups), Changes::Of(pods)) => {
                let table = self.read();
                cgroups.extend(pods.iter().filter_map(|pod| table.of_pods.get(pod)).flatten());
                news
            }
        }
    }

    /// Tells of cgroups that become known; [`PodDirectory::changes`] tells of pods.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The pods, if there are pods.
    #[must_use]
    pub fn directory(&self) -> Option<&PodDirectory> {
        self.pods.as_ref().map(|source| &*source.directory)
    }

    /// Whether a directory is a container's cgroup, as a kubelet's runtime made it.
    #[must_use]
    pub fn is_container(&self, directory: &Path) -> bool {
        self.pod_at(directory)
            .is_some_and(|(_, container)| container.is_some())
    }

    /// The directory of a cgroup.
    #[must_use]
    pub fn place(&self, cgroup: u64) -> Option<PathBuf> {
        self.tree.find(cgroup)
    }

    /// Forgets cgroups that have been gone for a while, and the pods of which nothing is left.
    pub fn sweep(&self, now: Instant) {
        let mut table = self.write();
        table.cgroups.retain(|id, known| {
            let is_there = fs::metadata(&known.directory).is_ok_and(|found| found.ino() == *id);
            if is_there {
                known.gone = None;
                return true;
            }
            now.duration_since(*known.gone.get_or_insert(now)) < AFTERLIFE
        });
        let Table { cgroups, of_pods } = &mut *table;
        of_pods.retain(|_, of_pod| {
            of_pod.retain(|cgroup| cgroups.contains_key(cgroup));
            !of_pod.is_empty()
        });
        drop(table);
        if let Some(source) = &self.pods
            && source.directory.has_gone()
        {
            let mut alive = pods_below(&source.root);
            alive.extend(self.read().of_pods.keys());
            source.directory.forget(&alive);
        }
    }

    /// How many cgroups are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().cgroups.len()
    }

    /// Whether no cgroup is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn learn(&self, cgroup: u64, version: u64) -> Option<Arc<Workload>> {
        let directory = self.tree.find(cgroup)?;
        let pod = self.pod_at(&directory);
        let workload = self.workload_at(&directory, pod.as_ref()).map(Arc::new);
        let mut table = self.write();
        if table.cgroups.len() < MOST_CGROUPS {
            if let Some((uid, _)) = &pod {
                table.of_pods.entry(*uid).or_default().insert(cgroup);
            }
            table.cgroups.insert(
                cgroup,
                Known {
                    directory,
                    pod,
                    workload: workload.clone(),
                    version,
                    gone: None,
                },
            );
        }
        drop(table);
        self.fresh.add(cgroup);
        self.changes.send_modify(|number| *number += 1);
        workload
    }

    fn renew(&self, cgroup: u64, version: u64) -> Option<Arc<Workload>> {
        let mut table = self.write();
        let known = table.cgroups.get_mut(&cgroup)?;
        let workload = self.workload_at(&known.directory, known.pod.as_ref());
        // The same value stays the same pointer: connections hold it.
        if known.workload.as_deref() != workload.as_ref() {
            known.workload = workload.map(Arc::new);
        }
        known.version = version;
        known.workload.clone()
    }

    fn version(&self) -> u64 {
        self.pods.as_ref().map_or(0, |source| source.directory.version())
    }

    fn pod_at(&self, directory: &Path) -> Option<(PodUid, Option<String>)> {
        let source = self.pods.as_ref()?;
        let found = cgroup_path::parse(directory.strip_prefix(&source.root).ok()?)?;
        let container = match found.part {
            Part::Container(id) => Some(id.to_owned()),
            Part::Pod | Part::Monitor => None,
        };
        Some((found.uid, container))
    }

    fn workload_at(&self, directory: &Path, pod: Option<&(PodUid, Option<String>)>) -> Option<Workload> {
        let cgroup = self.shown(directory);
        if let (Some(source), Some((uid, container))) = (&self.pods, pod) {
            return source.workload(*uid, container.as_deref(), cgroup);
        }
        let below_root = directory.strip_prefix(&self.root).ok()?;
        let mapping = self
            .mappings
            .iter()
            .find(|mapping| below_root.starts_with(&mapping.path));
        match mapping {
            Some(mapping) => Some(Workload {
                cgroup,
                ..mapping.workload.clone()
            }),
            // On a node, what is no pod's is nobody's.
            None if self.pods.is_some() => None,
            // Unmapped: its path is its name, and the namespace that Kubernetes uses by default.
            None => Some(Workload {
                namespace: "default".to_owned(),
                name: cgroup.clone(),
                cgroup,
                ..Workload::default()
            }),
        }
    }

    /// The path of a cgroup below the mount.
    fn shown(&self, directory: &Path) -> String {
        format!(
            "/{}",
            directory.strip_prefix(&self.mount).unwrap_or(directory).display()
        )
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodSource {
    fn workload(&self, uid: PodUid, container: Option<&str>, cgroup: String) -> Option<Workload> {
        // By the UID in the path, which only the kubelet writes; the API server's object could claim to be static.
        let is_exempt = uid.is_hash() && self.exempt_static;
        match self.directory.workload(uid, container, &cgroup) {
            Some(mut workload) => {
                if let Some(pod) = &mut workload.pod {
                    pod.is_exempt |= is_exempt;
                }
                Some(workload)
            }
            // The API server itself may be a static pod: it cannot wait for what it would tell.
            None if is_exempt => Some(Workload {
                name: uid.to_string(),
                cgroup,
                pod: Some(PodFacts::unknown(uid, is_exempt)),
                ..Workload::default()
            }),
            None => None,
        }
    }
}

/// The pods that have a cgroup.
fn pods_below(root: &Path) -> HashSet<PodUid> {
    let upper: Vec<PathBuf> = children(root).collect();
    let lower = upper.iter().flat_map(|directory| children(directory));
    upper
        .iter()
        .cloned()
        .chain(lower)
        .filter_map(|directory| Some(cgroup_path::parse(directory.strip_prefix(root).ok()?)?.uid))
        .collect()
}

#[cfg(test)]
mod tests;
