//! The kubelet's root cgroup: where it is, and how to wait for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::cgroup_path;
use crate::kernel::children;

/// How deep below the mount it is looked for: kind has kubelet.slice/kubelet-kubepods.slice.
const DEPTH: usize = 3;

/// Directories that are looked at at most.
const MOST: usize = 4096;

/// Every cgroup below (or at) `top` that is called as a kubelet calls its root. What is below one is not looked at: a pod
/// may hold a kubelet of its own.
#[must_use]
pub fn find_roots(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![top.to_path_buf()];
    let mut looked = 0;
    for _depth in 0..=DEPTH {
        let (roots, others): (Vec<_>, Vec<_>) = level.into_iter().partition(|path| is_root(path));
        found.extend(roots);
        looked += others.len();
        if looked > MOST {
            break;
        }
        level = others.iter().flat_map(|path| children(path)).collect();
    }
    found.sort();
    found
}

/// Whether a directory is called as a kubelet calls its root.
#[must_use]
pub fn is_root(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(cgroup_path::is_root)
}

/// Waits until there is at least one.
///
/// # Errors
/// The kernel gives no inotify(7) watch.
pub async fn await_roots(top: &Path) -> io::Result<Vec<PathBuf>> {
    let changed = Arc::new(Notify::new());
    let tell = Arc::clone(&changed);
    let mut watcher =
        notify::recommended_watcher(move |_event| tell.notify_one()).map_err(io::Error::other)?;
    loop {
        // Watched first and looked at then, so that none is made between the two. What is watched already stays so.
        let mut level = vec![top.to_path_buf()];
        for _depth in 0..DEPTH {
            for path in level.iter().take(MOST) {
                match watcher.watch(path, RecursiveMode::NonRecursive) {
                    Ok(()) => {}
                    Err(error) if path == top => return Err(io::Error::other(error)),
                    Err(error) => tracing::trace!(%error, "a cgroup has gone before it could be watched"),
                }
            }
            level = level.iter().flat_map(|path| children(path)).collect();
        }
        let found = find_roots(top);
        if !found.is_empty() {
            return Ok(found);
        }
        changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn the_kubelets_root_is_found_at_any_depth_and_none_inside_it() {
        let top = tempfile::tempdir().unwrap();
        let path = |path: &str| top.path().join(path);
        for directory in [
            "system.slice/a.service",
            "kubelet.slice/kubelet-kubepods.slice/x/kubepods",
            "kubepods.slice/kubepods-pod1.slice/c/kubepods",
            "user.slice/a/b/c/kubepods",
        ] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        let expected = [
            path("kubelet.slice/kubelet-kubepods.slice"),
            path("kubepods.slice"),
        ];
        assert_eq!(find_roots(top.path()), expected);
        assert_eq!(find_roots(&path("kubepods.slice")), [path("kubepods.slice")]);
    }

    #[tokio::test]
    async fn a_root_that_is_not_there_yet_is_awaited() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("kubelet.slice")).unwrap();
        let root = top.path().join("kubelet.slice/kubelet-kubepods.slice");
        let waiting = await_roots(top.path());
        let making = async {
            fs::create_dir(top.path().join("other")).unwrap();
            tokio::task::yield_now().await;
            fs::create_dir(&root).unwrap();
        };
        let both = async { tokio::join!(waiting, making).0 };
        let found = tokio::time::timeout(Duration::from_secs(10), both).await;
        assert_eq!(found.unwrap().unwrap(), [root]);
    }
}
