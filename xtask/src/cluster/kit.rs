//! What a cluster is started from: Kubernetes' own programs, from a kit or built from Debian's source, and Debian's etcd,
//! containerd, runc and CNI plugins. Nothing is installed: all of it is below target/cluster.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{progress, workspace};

/// A kit of them saves the build: a tar of bin/ with kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and
/// kube-proxy 1.20, packed by xz; apiextensions-apiserver 0.36 may be in it. They are Kubernetes', under the Apache License
/// 2.0; the project does not distribute them.
const NAMED_BY: &str = "EGRESS_CLUSTER_KIT";

/// Where a kit is looked for if none is named, beside the checkout.
const BESIDE: &str = "../shared/k8s/bin.tar.xz";

/// Debian 12's versions, wherever this runs: kubelet 1.20 wants containerd 1.x, which later suites do not have.
const PACKAGES: [&str; 6] = [
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "etcd-server",
    "kubernetes-client",
    "runc",
];
const SUITE: &str = "bookworm";

/// A cluster's programs and state.
#[derive(Debug)]
pub(super) struct Kit {
    directory: PathBuf,
}

/// The kit's archive, if there is one.
fn archive() -> Option<PathBuf> {
    let named = std::env::var_os(NAMED_BY).map(PathBuf::from);
    let beside = workspace::root().join(BESIDE);
    named.or_else(|| beside.is_file().then_some(beside))
}

impl Kit {
    pub(super) const fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Unpacks, or builds, what is not there yet.
    pub(super) fn complete(&self) -> Result<()> {
        if !self.path("bin.complete").exists() {
            if let Some(archive) = archive() {
                let mut tar = Command::new("tar");
                // The archive has them in bin/.
                tar.arg("-C").arg(&self.directory).arg("-xf").arg(archive);
                progress::run(
                    "unpacking the kit of Kubernetes' programs",
                    "about 10 s",
                    &mut tar,
                )?;
            } else {
                let mut build = Command::new("bash");
                build
                    .arg(workspace::root().join("tests/cluster/machine/build-kubernetes.sh"))
                    .arg(&self.directory);
                let what = "building Kubernetes 1.20 from Debian's source, once";
                progress::run(what, "about 7 min", &mut build)?;
            }
            fs::write(self.path("bin.complete"), "")?;
        }
        if !self.path("root.complete").exists() {
            let downloads = self.path("downloads");
            fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
            let download = || {
                let mut apt = Command::new("apt-get");
                apt.current_dir(&downloads)
                    .args(["-o", "APT::Sandbox::User=root", "download"])
                    .args(PACKAGES.iter().map(|package| format!("{package}/{SUITE}")));
                progress::run(
                    "downloading etcd, containerd, runc and kubectl",
                    "about 10 s",
                    &mut apt,
                )
            };
            // Lists that are missing, or older than the mirror.
            download().or_else(|_| {
                progress::run(
                    "reading the package lists",
                    "about 10 s",
                    Command::new("apt-get").arg("update"),
                )?;
                download()
            })?;
            for package in fs::read_dir(&downloads)? {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("--extract").arg(package?.path()).arg(self.root());
                workspace::run(&mut unpack)?;
            }
            fs::write(self.path("root.complete"), "")?;
        }
        Ok(())
    }

    /// The script that starts and ends it, told where everything is.
    pub(super) fn script(&self, verb: &str) -> Command {
        let mut script = Command::new("bash");
        script
            .arg(workspace::root().join("tests/cluster/machine/cluster.sh"))
            .arg(verb);
        self.describe(&mut script);
        script
    }

    /// Tells a command where everything is.
    pub(super) fn describe(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("BIN", self.path("bin"))
            .env("ROOT", self.root())
            .env("IMAGES", self.images())
            .env("RUN", self.path("run"))
            .env(
                "PATH",
                format!("{}:{path}", self.root().join("usr/bin").display()),
            );
    }

    /// The administrator's way in.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.path("run/kubeconfig")
    }

    /// Where the nodes find the archives of images.
    pub(super) fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Whether something of it was started and not ended.
    pub(super) fn is_up(&self) -> bool {
        self.path("run/pids").exists()
    }

    fn root(&self) -> PathBuf {
        self.path("root")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
