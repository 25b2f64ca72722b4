//! Where links and maps are pinned, so that enforcement outlives the agent.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where the BPF file system is by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// The pins of one instance: `/sys/fs/bpf/egress/INSTANCE`.
#[derive(Debug)]
pub struct PinDirectory {
    path: PathBuf,
}

/// Why there is no place for pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Neither mounted nor mountable.
    #[error(
        "no BPF file system at {BPFFS} and none can be mounted ({0}): mount one with `mount -t bpf bpf {BPFFS}`"
    )]
    NoBpffs(io::Error),
    /// It could be mounted, and would be gone with the container.
    #[error(
        "no BPF file system at {BPFFS} in this container: mount one on the node (`mount -t bpf bpf {BPFFS}`), and the \
         node's {BPFFS} into the container"
    )]
    NotTheHosts,
    /// The directory cannot be made.
    #[error("{path}: {error}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The directory that holds the pins of all instances; the BPF file system is mounted if it is not.
///
/// # Errors
/// See [`PinError::NoBpffs`].
pub fn bpffs_root() -> Result<PathBuf, PinError> {
    if !is_bpffs(Path::new(BPFFS)) {
        // What systemd and bpftool do too.
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|error| PinError::NoBpffs(error.into()))?;
    }
    Ok(Path::new(BPFFS).join("egress"))
}

/// Refuses a place for pins that ends with the caller's mounts: what a daemon leaves in force has to outlive its container.
///
/// # Errors
/// See [`PinError::NotTheHosts`].
pub fn require_lasting() -> Result<(), PinError> {
    if is_bpffs(Path::new(BPFFS)) {
        // Without the right to look at the first process's mounts, what is mounted has to do: nothing but a volume puts one
        // into a container.
        let first = format!("/proc/1/root{BPFFS}");
        let device = |path: &str| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let is_another = is_bpffs(Path::new(&first)) && device(&first) != device(BPFFS);
        return if is_another {
            Err(PinError::NotTheHosts)
        } else {
            Ok(())
        };
    }
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (namespace("self"), namespace("1")) {
        (Ok(own), Ok(first)) if own != first => Err(PinError::NotTheHosts),
        // It will be mounted, among the mounts of the machine (or of a container that does not see the machine's).
        _ => Ok(()),
    }
}

impl PinDirectory {
    /// Makes an empty directory for an instance's pins, readable by root alone.
    ///
    /// # Errors
    /// See [`PinError`]; also if the instance has pins already.
    pub fn create(instance: &str) -> Result<Self, PinError> {
        let root = bpffs_root()?;
        let path = root.join(instance);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder
            .recursive(true)
            .create(&root)
            .and_then(|()| builder.recursive(false).create(&path))
            .map_err(|error| PinError::Directory {
                path: path.clone(),
                error,
            })?;
        Ok(Self { path })
    }

    /// The directory of an instance that has left one.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn find(instance: &str) -> Result<Option<Self>, PinError> {
        let path = bpffs_root()?.join(instance);
        match fs::exists(&path) {
            Ok(true) => Ok(Some(Self { path })),
            Ok(false) => Ok(None),
            Err(error) => Err(PinError::Directory { path, error }),
        }
    }

    /// The pins of an instance that is gone.
    #[must_use]
    pub fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of everything that is pinned here.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Makes the directory again if somebody has removed it.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn restore(&self) -> Result<(), PinError> {
        bpffs_root()?;
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.path)
            .map_err(|error| PinError::Directory {
                path: self.path.clone(),
                error,
            })
    }

    /// Removes every pin; what nobody else holds open is detached and freed by the kernel.
    ///
    /// # Errors
    /// The first pin that cannot be removed; the others are removed all the same.
    pub fn remove(self) -> io::Result<()> {
        let mut result = Ok(());
        for entry in fs::read_dir(&self.path)? {
            result = result.and(fs::remove_file(entry?.path()));
        }
        // Tried whatever came before: an empty directory is one thing less.
        let directory = fs::remove_dir(&self.path);
        result = result.and(directory);
        if let Some(root) = self.path.parent() {
            // Stays while another instance has pins in it.
            match fs::remove_dir(root) {
                Ok(()) => {}
                Err(error) => tracing::trace!(%error, "the directory of all pins stays"),
            }
        }
        result
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}
