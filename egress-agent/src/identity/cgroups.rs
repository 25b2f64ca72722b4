//! Cgroup ids to workloads, on a machine without Kubernetes: by configured cgroup paths.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use super::Workload;

/// A cgroup (with all below it) and the workload that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Path below the enforced cgroup; empty for the enforced cgroup itself.
    pub path: PathBuf,
    /// What it is; its `cgroup` is filled in when it is found.
    pub workload: Workload,
}

/// Looks workloads up by cgroup id. A cgroup id is never reused before the next boot (`kernfs_node_id` is a counter),
/// so what was found stays true.
#[derive(Debug)]
pub struct Identities {
    /// Where the cgroup2 hierarchy is mounted.
    mount: PathBuf,
    /// The enforced cgroup; nothing outside it has an identity.
    root: PathBuf,
    /// The longest path that contains a cgroup says what it is.
    mappings: Vec<Mapping>,
    known: RwLock<HashMap<u64, Arc<Workload>>>,
}

/// Most cgroups that are walked for an id; a tree that is larger is not searched to its end.
const MOST_CGROUPS: usize = 100_000;

impl Identities {
    /// Identities below `root`, a directory below `mount`.
    #[must_use]
    pub fn new(mount: PathBuf, root: PathBuf, mut mappings: Vec<Mapping>) -> Self {
        mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.path.components().count()));
        Self {
            mount,
            root,
            mappings,
            known: RwLock::default(),
        }
    }

    /// The workload of a cgroup; `None` if the cgroup is gone or lies outside the enforced one. The first look at a
    /// cgroup walks the tree (about 10 us for each cgroup in it), later ones take a read lock.
    #[must_use]
    pub fn of(&self, cgroup: u64) -> Option<Arc<Workload>> {
        let known = self
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&cgroup)
            .cloned();
        if known.is_some() {
            return known;
        }
        match self.scan() {
            Ok(found) => {
                let workload = found.get(&cgroup).cloned();
                // Replaced, not extended: cgroups that are gone leave the table.
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = found;
                workload
            }
            Err(error) => {
                tracing::warn!(%error, root = %self.root.display(), "cannot walk the enforced cgroup");
                None
            }
        }
    }

    /// Every cgroup that there is now, with the workload that it is. Walks the tree.
    ///
    /// # Errors
    /// The enforced cgroup is gone.
    pub fn refresh(&self) -> io::Result<Vec<(u64, Arc<Workload>)>> {
        let found = self.scan()?;
        let all = found.iter().map(|(id, workload)| (*id, Arc::clone(workload)));
        let all = all.collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(all)
    }

    /// How many cgroups are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no cgroup is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn scan(&self) -> io::Result<HashMap<u64, Arc<Workload>>> {
        let mut found = HashMap::new();
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
            found.insert(id, Arc::new(self.workload_at(&directory)));
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            waiting.extend(
                entries
                    .filter_map(Result::ok)
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        Ok(found)
    }

    fn workload_at(&self, directory: &Path) -> Workload {
        let below_root = directory
            .strip_prefix(&self.root)
            .unwrap_or_else(|_outside| Path::new(""));
        let below_mount = directory.strip_prefix(&self.mount).unwrap_or(directory);
        let cgroup = format!("/{}", below_mount.display());
        match self
            .mappings
            .iter()
            .find(|mapping| below_root.starts_with(&mapping.path))
        {
            Some(mapping) => Workload {
                cgroup,
                ..mapping.workload.clone()
            },
            // Unmapped: its path is its name, and the namespace that Kubernetes uses by default.
            None => Workload {
                namespace: "default".to_owned(),
                name: cgroup.clone(),
                cgroup,
                ..Workload::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(path: &str, namespace: &str) -> Mapping {
        let workload = Workload {
            namespace: namespace.to_owned(),
            name: path.to_owned(),
            ..Workload::default()
        };
        Mapping {
            path: PathBuf::from(path),
            workload,
        }
    }

    /// Directories of any file system have inode numbers; the code under test knows no difference.
    #[test]
    fn the_longest_configured_path_names_a_cgroup_and_new_cgroups_are_found() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().join("enforced");
        for path in ["web/one", "batch"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let mappings = vec![mapping("web", "team-web"), mapping("web/one", "team-one")];
        let identities = Identities::new(mount.path().to_path_buf(), root.clone(), mappings);
        let id = |path: &str| fs::metadata(root.join(path)).unwrap().ino();

        assert_eq!(identities.of(id("web")).unwrap().namespace, "team-web");
        let one = identities.of(id("web/one")).unwrap();
        assert_eq!(
            (one.namespace.as_str(), one.cgroup.as_str()),
            ("team-one", "/enforced/web/one")
        );
        assert_eq!(identities.of(id("batch")).unwrap().namespace, "default");

        fs::create_dir(root.join("web/later")).unwrap();
        assert_eq!(identities.of(id("web/later")).unwrap().namespace, "team-web");
        let outside = fs::metadata(mount.path()).unwrap().ino();
        assert_eq!(identities.of(outside), None);
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_cgroup() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().to_path_buf();
        fs::create_dir(root.join("webserver")).unwrap();
        let identities = Identities::new(root.clone(), root.clone(), vec![mapping("web", "team-web")]);
        let id = fs::metadata(root.join("webserver")).unwrap().ino();
        assert_eq!(identities.of(id).unwrap().namespace, "default");
    }
}
