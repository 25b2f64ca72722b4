//! Debian's kernels: which there are, and those that are wanted, unpacked. apt does the fetching, from the archives
//! that this machine's own sources name, and checks the signatures.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::directory;
use crate::{progress, setup, workspace};

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// What was asked for: `6.1`, `newest`.
    pub(super) wanted: String,
    /// `uname -r`.
    pub(super) release: String,
    directory: PathBuf,
}

/// Where kernels come from and where they are kept.
#[derive(Debug)]
pub(super) struct Kernels {
    directory: PathBuf,
}

/// Suites with kernels: stable ones for the long-term series, backports and unstable for the newest.
const SUITES: [&str; 4] = ["bookworm", "trixie", "trixie-backports", "sid"];
const SECURITY: [&str; 2] = ["bookworm-security", "trixie-security"];

/// Security updates are what changes in a series.
const LISTS_ARE_GOOD_FOR: Duration = Duration::from_hours(12);

/// What signs Debian's archives, on Debian and on Ubuntu.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Kernels {
    pub(super) fn open() -> Result<Self> {
        Ok(Self {
            directory: directory()?,
        })
    }

    /// The kernels of these versions, fetched if need be.
    ///
    /// # Errors
    ///
    /// One of them is not to be had: a matrix with a hole would read as if all had passed.
    pub(super) fn obtain(&self, wanted: &[String]) -> Result<Vec<Kernel>> {
        let packages = self.packages()?;
        let kernels = wanted.iter().map(|wanted| {
            let release = newest(&packages, wanted).with_context(|| {
                format!(
                    "no suite has a Linux {wanted} with its modules (see {}/apt)",
                    self.directory.display()
                )
            })?;
            self.unpacked(wanted, &release, &packages)
        });
        kernels.collect()
    }

    fn unpacked(&self, wanted: &str, release: &str, packages: &[String]) -> Result<Kernel> {
        let place = self.directory.join("kernels").join(release);
        if !place.exists() {
            let fresh = self.directory.join("unpacking");
            // Left over by a run that was interrupted.
            drop(fs::remove_dir_all(&fresh));
            fs::create_dir_all(&fresh)?;
            for package in packages_of(release, packages) {
                self.fetch(&package, &fresh)?;
            }
            index_modules(&fresh, release)?;
            fs::create_dir_all(self.directory.join("kernels"))?;
            fs::rename(&fresh, &place).with_context(|| format!("cannot make {}", place.display()))?;
        }
        Ok(Kernel {
            wanted: wanted.to_owned(),
            release: release.to_owned(),
            directory: place,
        })
    }

    /// Fetches a package and unpacks it at `place`.
    fn fetch(&self, package: &str, place: &Path) -> Result<()> {
        let debs = self.directory.join("debs");
        drop(fs::remove_dir_all(&debs));
        fs::create_dir_all(&debs)?;
        let mut download = self.apt("apt-get");
        download.args(["download", package]).current_dir(&debs);
        progress::run(&format!("fetching {package}"), "up to 110 MB", &mut download)?;
        for deb in fs::read_dir(&debs)? {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(deb?.path()).arg(place);
            workspace::run(&mut unpack)?;
        }
        fs::remove_dir_all(&debs).context("the package is unpacked")
    }

    /// The names of all kernel packages.
    fn packages(&self) -> Result<Vec<String>> {
        self.update()?;
        let output = self
            .apt("apt-cache")
            .args(["pkgnames", "linux-"])
            .output()
            .context("cannot run apt-cache")?;
        if !output.status.success() {
            bail!("apt-cache: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Reads the suites' lists into a state of our own: the machine's sources and lists stay as they are.
    fn update(&self) -> Result<()> {
        let apt = self.directory.join("apt");
        let stamp = apt.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age < LISTS_ARE_GOOD_FOR) {
            return Ok(());
        }
        for below in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(below)).with_context(|| format!("cannot make {}", apt.display()))?;
        }
        let sources = sources(&archives()?);
        fs::write(apt.join("sources.list"), sources).context("cannot write sources.list")?;
        let mut update = self.apt("apt-get");
        update.arg("update");
        // A suite that has gone makes it fail although the others' lists are there: what is missing shows when a
        // kernel is asked for.
        if let Err(error) = progress::run("reading the lists of Debian's kernels", "about 10 s", &mut update)
        {
            eprintln!("{error:#}; going on with the lists that there are");
            return Ok(());
        }
        fs::write(&stamp, "").context("cannot write the time of the update")
    }

    fn apt(&self, program: &str) -> Command {
        let apt = self.directory.join("apt");
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C.UTF-8")
            .arg("-o")
            .arg(format!(
                "Dir::Etc::SourceList={}",
                apt.join("sources.list").display()
            ))
            .arg("-o")
            .arg(format!("Dir::State={}", apt.join("state").display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", apt.join("cache").display()));
        for option in [
            "Dir::Etc::SourceParts=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            "Dir::State::status=/var/lib/dpkg/status",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            // The user that apt becomes for fetching need not be able to write here.
            "APT::Sandbox::User=root",
        ] {
            command.args(["-o", option]);
        }
        command
    }
}

impl Kernel {
    /// What qemu boots.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let places = [
            format!("boot/vmlinuz-{}", self.release),
            format!("lib/modules/{}/vmlinuz", self.release),
        ];
        places
            .iter()
            .map(|place| self.directory.join(place))
            .find(|path| path.is_file())
            .with_context(|| format!("no kernel image below {}", self.directory.display()))
    }

    /// The directory of the modules' directory.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules")
    }

    /// Whether it comes with a module of that name.
    pub(super) fn has_module(&self, name: &str) -> bool {
        let list = self.modules().join(&self.release).join("modules.dep");
        let list = fs::read_to_string(list).unwrap_or_default();
        let file = format!("/{name}.ko");
        list.lines()
            .filter_map(|line| line.split_once(':'))
            .any(|(module, _)| module.trim_end_matches(".xz").ends_with(&file))
    }

    /// The files of the modules `names` and all that they need, in the order in which they are loaded. What is built
    /// in has none.
    pub(super) fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let output = Command::new(setup::locate("modprobe").context("modprobe is gone")?)
                .arg("--show-depends")
                .arg("--dirname")
                .arg(&self.directory)
                .args(["--set-version", &self.release, name])
                .output()
                .context("cannot run modprobe")?;
            if !output.status.success() {
                bail!(
                    "modprobe {name}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let file = line
                    .strip_prefix("insmod ")
                    .map(|path| PathBuf::from(path.trim()));
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }
}

/// Makes what modprobe looks modules up in.
fn index_modules(place: &Path, release: &str) -> Result<()> {
    let lib = place.join("lib");
    if !lib.exists() {
        std::os::unix::fs::symlink("usr/lib", &lib).context("cannot make lib")?;
    }
    let mut depmod = Command::new(setup::locate("depmod").context("depmod is gone")?);
    // It warns of symbols that only the image's System.map would tell.
    depmod.arg("-b").arg(place).arg(release).stderr(Stdio::null());
    workspace::run(&mut depmod)
}

/// The addresses of Debian's archive and of its security updates, as this machine's sources name them.
fn archives() -> Result<(String, String)> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .context("cannot run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let find = |label: &str| {
        let prefix = format!("Debian {label} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    };
    match (find("Debian"), find("Debian-Security")) {
        (Some(main), Some(security)) => Ok((main, security)),
        _ => bail!(
            "the kernels are Debian's, and this machine's apt knows no Debian archive: add one and its security \
             updates to the sources, and run `apt-get update`"
        ),
    }
}

fn sources((main, security): &(String, String)) -> String {
    let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
    SUITES
        .iter()
        .map(|suite| line(main, suite))
        .chain(SECURITY.iter().map(|suite| line(security, suite)))
        .collect()
}

/// The newest release of the version `wanted` that can be had whole.
fn newest(packages: &[String], wanted: &str) -> Option<String> {
    let releases = packages.iter().filter_map(|package| {
        let release = package
            .strip_prefix("linux-image-")
            .or_else(|| package.strip_prefix("linux-binary-"))?;
        is_plain(release).then_some(release)
    });
    releases
        .filter(|release| wanted == "newest" || release.starts_with(&format!("{wanted}.")))
        .filter(|release| {
            let parts = packages_of(release, packages);
            parts.iter().all(|part| packages.contains(part))
        })
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// Whether it is a release of the plain kernel, as against those for real time and for clouds, which lack 9p, and
/// against packages without a release of their own.
fn is_plain(release: &str) -> bool {
    release.strip_suffix("-amd64").is_some_and(|version| {
        numbers(version).len() > 2
            && version
                .replace("deb", "")
                .chars()
                .all(|c| c.is_ascii_digit() || "+.-".contains(c))
    })
}

/// Since Linux 6.19 the package `linux-image` is an empty one that depends on the others.
fn packages_of(release: &str, packages: &[String]) -> Vec<String> {
    let [image, binary, modules, base] =
        ["image", "binary", "modules", "base"].map(|part| format!("linux-{part}-{release}"));
    if !packages.contains(&binary) {
        return vec![image];
    }
    // The last has the list of what is built in, where it exists.
    let base = packages.contains(&base).then_some(base);
    [binary, modules].into_iter().chain(base).collect()
}

fn numbers(release: &str) -> Vec<u32> {
    release
        .trim_end_matches("-amd64")
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Vec<String> {
        let names = "linux-image-6.1.0-9-amd64 linux-image-6.1.0-56-amd64 linux-image-6.1.0-57-cloud-amd64 \
                     linux-image-6.1.0-58-rt-amd64 linux-image-6.12.95+deb12-amd64 linux-image-6.12-amd64 \
                     linux-image-6.12.117+deb13-amd64 linux-image-6.12.118+deb13-amd64-unsigned \
                     linux-image-7.1.13+deb13-amd64 linux-binary-7.1.13+deb13-amd64 linux-image-7.0.4+deb13-amd64 \
                     linux-binary-7.0.4+deb13-amd64 linux-modules-7.0.4+deb13-amd64 linux-image-amd64";
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_newest_release_of_a_version_is_taken() {
        assert_eq!(newest(&packages(), "6.1").as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(
            newest(&packages(), "6.12").as_deref(),
            Some("6.12.117+deb13-amd64")
        );
        assert_eq!(newest(&packages(), "6.6"), None);
    }

    #[test]
    fn a_kernel_whose_modules_are_gone_is_none() {
        assert_eq!(newest(&packages(), "7.1"), None);
        assert_eq!(
            newest(&packages(), "newest").as_deref(),
            Some("7.0.4+deb13-amd64")
        );
        assert_eq!(
            packages_of("7.0.4+deb13-amd64", &packages()),
            [
                "linux-binary-7.0.4+deb13-amd64",
                "linux-modules-7.0.4+deb13-amd64"
            ]
        );
    }
}
