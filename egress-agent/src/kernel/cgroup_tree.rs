//! Cgroup ids to directories. A cgroup's id is its inode, and the kernel opens one by it: no walk, no table that could
//! be behind, no window.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
};

/// Type of a file handle of kernfs (`enum fid_type` in include/linux/exportfs.h): eight bytes, the node's id.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// Directories that are walked at most, where the kernel does not open them by their ids.
const MOST_WALKED: usize = 100_000;

/// A mounted cgroup2 hierarchy.
#[derive(Debug)]
pub struct CgroupTree {
    path: PathBuf,
    mount: File,
    /// What is walked where handles cannot be used.
    below: PathBuf,
    /// Handles need CAP_DAC_READ_SEARCH.
    by_handle: bool,
}

/// open_by_handle_at(2)'s argument, whose end has a variable length in C.
#[repr(C)]
struct KernfsHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

impl CgroupTree {
    /// Opens the hierarchy mounted at `path`; ids are looked for below `below`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, below: &Path) -> io::Result<Self> {
        let mount = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(path)?;
        let is_cgroup2 = fstatfs(&mount)?.filesystem_type() == CGROUP2_SUPER_MAGIC;
        let by_handle = is_cgroup2 && open_by_id(&mount, mount.metadata()?.ino()).is_ok();
        if is_cgroup2 && !by_handle {
            tracing::warn!(
                "cgroups cannot be opened by their ids (CAP_DAC_READ_SEARCH is missing): the tree is walked instead"
            );
        }
        Ok(Self {
            path: path.to_path_buf(),
            mount,
            below: below.to_path_buf(),
            by_handle,
        })
    }

    /// The directory of a cgroup below the one that was given at the start; `None` if it is gone or lies outside.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<PathBuf> {
        if !self.by_handle {
            return walk(&self.below, |directory| is(directory, id));
        }
        let directory = match open_by_id(&self.mount, id) {
            Ok(directory) => directory,
            Err(Errno::ESTALE | Errno::ENOENT) => return None,
            Err(error) => {
                tracing::warn!(%error, id, "a cgroup cannot be opened by its id");
                return walk(&self.below, |directory| is(directory, id));
            }
        };
        // Both as this process sees them: the mount may be one of another mount namespace.
        let (root, found) = (shown(&self.mount).ok()?, shown(&directory).ok()?);
        let path = self.path.join(found.strip_prefix(root).ok()?);
        // What has been removed meanwhile has another name now (` (deleted)` behind it), or none.
        (path.starts_with(&self.below) && is(&path, id)).then_some(path)
    }
}

/// Whether a directory is there and is the cgroup of that id.
fn is(path: &Path, id: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.ino() == id)
}

fn shown(file: &impl AsFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn open_by_id(mount: &File, id: u64) -> Result<OwnedFd, Errno> {
    let mut handle = KernfsHandle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: the handle is as long as it says, and is only read.
    let opened = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let descriptor = Errno::result(opened)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The first directory of a tree of which something is true; about 10 us for each directory.
pub(super) fn walk(root: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut waiting = vec![root.to_path_buf()];
    let mut walked = 0;
    while let Some(directory) = waiting.pop() {
        walked += 1;
        if walked > MOST_WALKED {
            tracing::error!(
                most = MOST_WALKED,
                "too many cgroups: those beyond are not found and are refused"
            );
            return None;
        }
        if is_it(&directory) {
            return Some(directory);
        }
        waiting.extend(children(&directory));
    }
    None
}

/// The directories in a directory; none if it has gone.
pub fn children(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories of any file system have inode numbers; what needs cgroups is tested where there are some.
    #[test]
    fn a_directory_is_found_by_its_number_and_none_is_found_outside() {
        let mount = tempfile::tempdir().unwrap();
        let below = mount.path().join("below");
        fs::create_dir_all(below.join("a/b")).unwrap();
        fs::create_dir(mount.path().join("beside")).unwrap();
        let tree = CgroupTree::open(mount.path(), &below).unwrap();
        let id = |path: &str| fs::metadata(mount.path().join(path)).unwrap().ino();
        assert_eq!(tree.find(id("below/a/b")), Some(below.join("a/b")));
        assert_eq!(tree.find(id("below")), Some(below.clone()));
        assert_eq!(tree.find(id("beside")), None);
        let gone = id("below/a/b");
        fs::remove_dir(below.join("a/b")).unwrap();
        assert_eq!(tree.find(gone), None);
    }
}
