//! Which cgroup is enforced: the one that is named, or the kubelet's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use crate::{
    config::Config,
    identity::kubelet,
    kernel::{self, CgroupMount},
};

/// In place of a path: the kubelet's root cgroup.
const AUTO: &str = "auto";

/// What is enforced.
#[derive(Debug)]
pub(super) struct Place {
    /// The mounted hierarchy.
    pub(super) mount: CgroupMount,
    /// The directory of the enforced cgroup.
    pub(super) cgroup: PathBuf,
    /// The kubelet's root at or below it, on a node.
    pub(super) pods: Option<PathBuf>,
}

/// Finds the enforced cgroup, and on a node waits until the kubelet has made one.
///
/// # Errors
/// What is missing or ambiguous, in a sentence.
pub(super) async fn find(config: &Config) -> anyhow::Result<Place> {
    let is_node = config.kubernetes.is_some();
    let named = config.cgroup.as_deref().filter(|path| *path != Path::new(AUTO));
    match (named, is_node) {
        (Some(path), is_node) => {
            let mount = kernel::find_mount()?;
            let cgroup = directory(&mount, path, is_node)?;
            let pods = is_node
                .then(|| only_root(kubelet::find_roots(&cgroup), &cgroup))
                .transpose()?;
            Ok(Place { mount, cgroup, pods })
        }
        (None, true) => kubelets().await,
        (None, false) if config.cgroup.is_some() => {
            bail!("`cgroup: auto` is the kubelet's, so it needs `kubernetes:` in the configuration")
        }
        (None, false) => {
            bail!("which cgroup is to be enforced? give --cgroup PATH, or `cgroup:` in the configuration")
        }
    }
}

/// The kubelet's root: in what is mounted here, else in what the first process sees.
async fn kubelets() -> anyhow::Result<Place> {
    let own = kernel::find_mount();
    let mounts = own
        .as_ref()
        .ok()
        .cloned()
        .into_iter()
        .chain(kernel::first_process_mount());
    for mount in mounts {
        let roots = kubelet::find_roots(&mount.path);
        if !roots.is_empty() {
            return place(mount, roots);
        }
    }
    let mount = own?;
    tracing::warn!(
        mount = %mount.path.display(),
        "no kubepods cgroup yet: waiting for the kubelet (in a pod: mount the host's /sys/fs/cgroup into it)"
    );
    let roots = kubelet::await_roots(&mount.path)
        .await
        .context("cannot wait for the kubelet's cgroup")?;
    place(mount, roots)
}

fn place(mount: CgroupMount, roots: Vec<PathBuf>) -> anyhow::Result<Place> {
    let cgroup = only_root(roots, &mount.path)?;
    Ok(Place {
        mount,
        pods: Some(cgroup.clone()),
        cgroup,
    })
}

fn only_root(mut roots: Vec<PathBuf>, top: &Path) -> anyhow::Result<PathBuf> {
    let all: Vec<String> = roots.iter().map(|path| path.display().to_string()).collect();
    ensure!(
        roots.len() <= 1,
        "several kubelets have a cgroup here ({}): name one of them as `cgroup:`",
        all.join(", ")
    );
    roots.pop().with_context(|| {
        format!(
            "no kubelet's cgroup (kubepods, kubepods.slice) at or below {}",
            top.display()
        )
    })
}

/// The directory of a named cgroup: as it is given, or below the mount. A kubelet's that is not there yet is made, so that
/// it is enforced before the first pod starts: the kubelet uses what it finds.
fn directory(mount: &CgroupMount, path: &Path, may_make: bool) -> anyhow::Result<PathBuf> {
    let directory = if path.starts_with(&mount.path) {
        path.to_path_buf()
    } else {
        mount.path.join(path.strip_prefix("/").unwrap_or(path))
    };
    if may_make && kubelet::is_root(&directory) && !directory.exists() {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make the cgroup {}", directory.display()))?;
        tracing::info!(cgroup = %directory.display(), "made the kubelet's cgroup before the kubelet");
    }
    ensure!(
        directory.join("cgroup.procs").exists(),
        "{} is no cgroup: give a path below {}",
        path.display(),
        mount.path.display()
    );
    fs::canonicalize(&directory).with_context(|| format!("cannot open {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kubelets_are_one_too_many_and_both_are_named() {
        let roots = vec![PathBuf::from("/a/kubepods"), PathBuf::from("/b/kubepods")];
        let told = only_root(roots, Path::new("/")).unwrap_err().to_string();
        assert!(told.contains("/a/kubepods, /b/kubepods"), "{told}");
        let none = only_root(Vec::new(), Path::new("/x")).unwrap_err().to_string();
        assert!(none.ends_with("at or below /x"), "{none}");
    }

    #[tokio::test]
    async fn auto_means_nothing_without_a_kubelet() {
        let config = Config {
            cgroup: Some(PathBuf::from(AUTO)),
            ..Config::default()
        };
        let told = find(&config).await.unwrap_err().to_string();
        assert!(told.contains("`kubernetes:`"), "{told}");
    }
}
