//! Who lives where: the processes of the enforced cgroup and the network namespaces they are in. One walk for all who ask
//! at the same time: 10 us for each cgroup and 2 us for each process.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::netns::Netns;

/// Descriptors that are given up for a walk and taken again after it: one for each level of the tree, and one for a file.
/// With none left nobody could be found, and so nothing be closed that holds them.
const SPARE: usize = 16;

/// Takes censuses.
#[derive(Debug)]
pub(super) struct Censor {
    cgroup: PathBuf,
    spare: Vec<File>,
}

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

impl Censor {
    /// Of the processes of `cgroup`.
    pub(super) fn new(cgroup: PathBuf) -> Self {
        let mut censor = Self {
            cgroup,
            spare: Vec::new(),
        };
        censor.set_aside();
        censor
    }

    /// Walks the tree.
    ///
    /// # Errors
    /// A cgroup cannot be read, which says nothing of who is in it: nobody may be taken for gone.
    pub(super) fn take(&mut self) -> io::Result<Census> {
        self.spare.clear();
        let mut census = Census::default();
        let taken = census.visit(&self.cgroup);
        self.set_aside();
        taken.map(|()| census)
    }

    /// As many as there are to be had.
    fn set_aside(&mut self) {
        let more = std::iter::repeat_with(|| File::open("/dev/null")).map_while(Result::ok);
        self.spare.extend(more.take(SPARE));
    }
}

impl Census {
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

    fn visit(&mut self, cgroup: &Path) -> io::Result<()> {
        match self.visit_alive(cgroup) {
            // It may go while it is looked at (ENOENT, ENODEV).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            visited => visited,
        }
    }

    fn visit_alive(&mut self, cgroup: &Path) -> io::Result<()> {
        let (processes, id) = (processes(cgroup)?, fs::metadata(cgroup)?.ino());
        self.residents.extend(processes.lines().map(|pid| Resident {
            pid: pid.to_owned(),
            cgroup: id,
            namespace: namespace_inode(pid).ok(),
        }));
        for entry in fs::read_dir(cgroup)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.visit(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The processes of a cgroup without those below it, one a line, as this process counts them. A threaded cgroup has none: its
/// file cannot be read, and the processes stand in that of the domain above (cgroup_procs_start).
pub(super) fn processes(cgroup: &Path) -> io::Result<String> {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        read => read,
    }
}

/// The inode of a process's network namespace, which entering it to ask for its cookie would cost ten times as much.
pub(super) fn namespace_inode(pid: &str) -> io::Result<u64> {
    fs::metadata(namespace_of(pid)).map(|namespace| namespace.ino())
}

/// Where a process's network namespace is opened.
pub(super) fn namespace_of(pid: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}
