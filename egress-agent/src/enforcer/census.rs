//! Who lives where: the processes of the enforced cgroup and the network namespaces they are in. One walk for all who ask
//! at the same time: 10 us for each cgroup and 2 us for each process.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{kernel::children, netns::Netns};

/// What a walk has found.
#[derive(Debug, Default)]
pub(super) struct Census {
    residents: Vec<Resident>,
}

/// A process of the enforced cgroup.
#[derive(Debug)]
pub(super) struct Resident {
    /// As the agent counts processes.
    pub(super) pid: String,
    /// Id of its cgroup.
    pub(super) cgroup: u64,
    /// Inode of its network namespace in nsfs; none if the process has gone meanwhile.
    pub(super) namespace: Option<u64>,
}

impl Census {
    /// Walks the tree below `cgroup`.
    pub(super) fn of(cgroup: &Path) -> Self {
        let mut census = Self::default();
        census.visit(cgroup);
        census
    }

    /// Everybody.
    pub(super) fn residents(&self) -> &[Resident] {
        &self.residents
    }

    /// The inodes of their namespaces, each with one of the processes in it.
    pub(super) fn namespaces(&self) -> HashMap<u64, &str> {
        let found = self.residents.iter();
        found
            .filter_map(|resident| Some((resident.namespace?, resident.pid.as_str())))
            .collect()
    }

    /// Their namespaces, opened.
    pub(super) fn open_namespaces(&self) -> impl Iterator<Item = Netns> {
        let pids = self.namespaces().into_values();
        pids.filter_map(|pid| Netns::open(&namespace_of(pid)).ok())
    }

    fn visit(&mut self, cgroup: &Path) {
        // A cgroup may go while it is looked at.
        if let Ok(processes) = processes(cgroup)
            && let Ok(found) = fs::metadata(cgroup)
        {
            let residents = processes.lines().map(|pid| Resident {
                pid: pid.to_owned(),
                cgroup: found.ino(),
                namespace: namespace_inode(pid).ok(),
            });
            self.residents.extend(residents);
        }
        for child in children(cgroup) {
            self.visit(&child);
        }
    }
}

/// The processes of a cgroup without those below it, one a line, as this process counts them.
pub(super) fn processes(cgroup: &Path) -> io::Result<String> {
    fs::read_to_string(cgroup.join("cgroup.procs"))
}

/// The inode of a process's network namespace, which entering it to ask for its cookie would cost ten times as much.
pub(super) fn namespace_inode(pid: &str) -> io::Result<u64> {
    fs::metadata(namespace_of(pid)).map(|namespace| namespace.ino())
}

/// Where a process's network namespace is opened.
pub(super) fn namespace_of(pid: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}
