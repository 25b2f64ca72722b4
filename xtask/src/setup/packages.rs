//! Programs that come from the distribution's packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::{Advice, Purpose};
use crate::{progress, workspace};

/// A program, and the package that brings it.
struct Program {
    /// As it is called on the command line.
    name: &'static str,
    purpose: Purpose,
    /// Whether what is found under this name will do.
    serves: fn(&Path) -> bool,
    /// Packages of Debian and Ubuntu; the first that the machine's suite has is taken.
    debian: &'static [&'static str],
    /// Package of Fedora and its kin.
    fedora: &'static str,
}

const fn program(
    name: &'static str,
    purpose: Purpose,
    debian: &'static [&'static str],
    fedora: &'static str,
) -> Program {
    Program {
        name,
        purpose,
        serves: |_| true,
        debian,
        fedora,
    }
}

const PROGRAMS: [Program; 38] = [
    program("ip", Purpose::Demo, &["iproute2"], "iproute"),
    program("nsenter", Purpose::Demo, &["util-linux"], "util-linux-core"),
    program("curl", Purpose::Demo, &["curl"], "curl"),
    Program {
        // Ubuntu's is a script that looks for one that was built with the running kernel.
        serves: |path| answers(path, "version"),
        ..program(
            "bpftool",
            Purpose::Demo,
            &["bpftool", "linux-tools-generic"],
            "bpftool",
        )
    },
    program(
        "dig",
        Purpose::Test,
        &["bind9-dnsutils", "dnsutils"],
        "bind-utils",
    ),
    // Another C library, whose resolver asks in another way.
    program("musl-gcc", Purpose::Test, &["musl-tools"], "musl-gcc"),
    program("wget", Purpose::Test, &["wget"], "wget"),
    program("python3", Purpose::Test, &["python3"], "python3"),
    program("openssl", Purpose::Test, &["openssl"], "openssl"),
    program("node", Purpose::Test, &["nodejs"], "nodejs"),
    // The tests compile a client that depends on no library at run time.
    program("gcc", Purpose::Test, &["gcc"], "gcc"),
    Program {
        serves: has_static_libc,
        ..program("cc", Purpose::Test, &["libc6-dev"], "glibc-static")
    },
    program("readelf", Purpose::Test, &["binutils"], "binutils"),
    // The tests run a program from its source, which the compiler's machine does and the plain run-time does
    // not.
    Program {
        serves: is_recent_jdk,
        ..program("javac", Purpose::Test, &["default-jdk-headless"], "java-devel")
    },
    // The oracle for the access log's formats. It is asked as an ordinary proxy, but the log's TLS fields
    // want the build with TLS.
    program("squid", Purpose::Test, &["squid-openssl"], "squid"),
    // Real servers of protocols that carry no name.
    Program {
        serves: |_| has_postgres_server(),
        ..program("psql", Purpose::Test, &["postgresql"], "postgresql-server")
    },
    program("sshd", Purpose::Test, &["openssh-server"], "openssh-server"),
    program("git", Purpose::Lint, &["git"], "git-core"),
    program(
        "qemu-system-x86_64",
        Purpose::Vm,
        &["qemu-system-x86"],
        "qemu-system-x86-core",
    ),
    program("depmod", Purpose::Vm, &["kmod"], "kmod"),
    program("modprobe", Purpose::Vm, &["kmod"], "kmod"),
    program("xz", Purpose::Vm, &["xz-utils"], "xz"),
    // The kernels are Debian's packages, wherever they run.
    program("apt-get", Purpose::Vm, &["apt"], "apt"),
    program("dpkg-deb", Purpose::Vm, &["dpkg"], "dpkg"),
    program("readelf", Purpose::Image, &["binutils"], "binutils"),
    program(
        "aarch64-linux-gnu-gcc",
        Purpose::Arm64,
        &["gcc-aarch64-linux-gnu"],
        "gcc-aarch64-linux-gnu",
    ),
    Program {
        serves: |_| Path::new("/usr/aarch64-linux-gnu/lib/libc.a").exists(),
        ..program("cc", Purpose::Arm64, &["libc6-dev-arm64-cross"], "glibc-devel")
    },
    // kube-proxy's.
    program("iptables", Purpose::Cluster, &["iptables"], "iptables-nft"),
    program("iptables", Purpose::Test, &["iptables"], "iptables-nft"),
    program("conntrack", Purpose::Cluster, &["conntrack"], "conntrack-tools"),
    program("openssl", Purpose::Cluster, &["openssl"], "openssl"),
    program("tar", Purpose::Cluster, &["tar"], "tar"),
    program("xz", Purpose::Cluster, &["xz-utils"], "xz"),
    program("ldd", Purpose::Cluster, &["libc-bin"], "glibc-common"),
    program("python3", Purpose::Cluster, &["python3"], "python3"),
    // etcd, containerd and runc are Debian's packages, wherever they run.
    program("apt-get", Purpose::Cluster, &["apt"], "apt"),
    program("dpkg-deb", Purpose::Cluster, &["dpkg"], "dpkg"),
    program("dpkg-source", Purpose::Cluster, &["dpkg-dev"], "dpkg-dev"),
];

/// How many programs `purposes` want.
pub(super) fn count(purposes: &[Purpose]) -> usize {
    wanted(purposes).count()
}

/// Installs what is missing, where we may.
pub(super) fn ensure(purposes: &[Purpose]) -> Result<Option<Advice>> {
    let missing: Vec<&Program> = wanted(purposes).filter(|program| !program.is_there()).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    if which::which("apt-get").is_err() {
        return Ok(Some(advice_elsewhere(&missing)));
    }
    if workspace::is_root() {
        install(&missing)?;
    }
    let missing: Vec<&Program> = missing
        .into_iter()
        .filter(|program| !program.is_there())
        .collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let packages: Vec<_> = missing
        .iter()
        .filter_map(|program| program.debian.first().copied())
        .collect();
    Ok(Some(Advice {
        wanted: names(&missing),
        command: format!(
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        ),
    }))
}

/// Whether apt knows a package, as of its last update.
fn apt_has(package: &str) -> bool {
    apt_version(package).is_some()
}

/// The version of a package that apt would install, as of its last update.
pub(super) fn apt_version(package: &str) -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["policy", package])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

/// Installs packages by apt; we are root.
pub(super) fn apt_install(packages: &[&str], how_long: &str) -> Result<()> {
    let quiet = NoServices::begin()?;
    let mut install = apt_get();
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    let installed = progress::run(
        &format!("installing {}", packages.join(", ")),
        how_long,
        &mut install,
    );
    quiet.end(packages);
    installed
}

/// Reads the package lists anew; we are root.
pub(super) fn apt_update() -> Result<()> {
    progress::run("reading the package lists", "about 10 s", apt_get().arg("update"))
}

fn install(missing: &[&Program]) -> Result<()> {
    let known = |program: &&&Program| program.debian.iter().any(|package| apt_has(package));
    if !missing.iter().all(|program| known(&program)) {
        apt_update()?;
    }
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|program| program.debian.iter().copied().find(|package| apt_has(package)))
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    // Lists older than the mirror name files that it no longer has.
    apt_install(&packages, "about 1 min").or_else(|_| {
        apt_update()?;
        apt_install(&packages, "about 1 min")
    })
}

fn advice_elsewhere(missing: &[&Program]) -> Advice {
    let command = if which::which("dnf").is_ok() {
        let packages: Vec<_> = missing.iter().map(|program| program.fedora).collect();
        format!("sudo dnf install {}", packages.join(" "))
    } else {
        format!("(your package manager, for the programs) {}", names(missing))
    };
    Advice {
        wanted: names(missing),
        command,
    }
}

fn names(programs: &[&Program]) -> String {
    programs
        .iter()
        .map(|program| program.name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn wanted(purposes: &[Purpose]) -> impl Iterator<Item = &'static Program> {
    PROGRAMS
        .iter()
        .filter(move |program| purposes.contains(&program.purpose))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    command
}

impl Program {
    fn is_there(&self) -> bool {
        locate(self.name).is_some_and(|path| (self.serves)(&path))
    }
}

/// In `PATH`, or where administrators' programs are, which a person's `PATH` may leave out.
pub(crate) fn locate(name: &str) -> Option<PathBuf> {
    let administrators = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    which::which(name)
        .ok()
        .or_else(|| administrators.into_iter().find(|path| path.is_file()))
}

fn answers(program: &Path, argument: &str) -> bool {
    let status = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Whether `cc` finds the C library to link into a program.
fn has_static_libc(cc: &Path) -> bool {
    let output = Command::new(cc).arg("-print-file-name=libc.a").output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute())
}

/// Debian keeps the servers of several versions side by side, and none of them in `PATH`.
fn has_postgres_server() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut programs = versions.map(|version| version.path().join("bin/postgres"));
    programs.any(|program| program.is_file()) || which::which("postgres").is_ok()
}

/// Java 17 or later. The JDK's own `release` file tells, a hundred times faster than the machine starts.
fn is_recent_jdk(javac: &Path) -> bool {
    let release = fs::canonicalize(javac)
        .ok()
        .and_then(|path| fs::read_to_string(path.parent()?.parent()?.join("release")).ok());
    let version = release
        .as_deref()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("JAVA_VERSION=\"")));
    version
        .and_then(|version| version.split(['.', '"', '-']).next()?.parse().ok())
        .is_some_and(|major: u32| major >= 17)
}

/// Packages that bring a service, and its name.
const SERVICES: [(&str, &str); 3] = [
    ("squid-openssl", "squid"),
    ("postgresql", "postgresql"),
    ("openssh-server", "ssh"),
];

/// While it lives, packages do not start their services: a squid that nobody asked for must not listen on
/// this machine.
struct NoServices {
    policy: Option<&'static Path>,
}

impl NoServices {
    /// The file by which Debian's packages ask whether they may.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let policy = Path::new(Self::POLICY);
        if policy.exists() {
            // An administrator has decided already.
            return Ok(Self { policy: None });
        }
        fs::write(policy, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("cannot write {}", policy.display()))?;
        let guard = Self { policy: Some(policy) };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(policy, mode).with_context(|| format!("cannot write {}", policy.display()))?;
        Ok(guard)
    }

    fn end(self, packages: &[&str]) {
        // They would be enabled for the next start of the machine.
        if self.policy.is_none() || !Path::new("/run/systemd/system").exists() {
            return;
        }
        for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
            let status = Command::new("systemctl")
                .args(["disable", service])
                .stderr(Stdio::null())
                .status();
            if !status.is_ok_and(|status| status.success()) {
                eprintln!(
                    "note: {service} may start with the machine; `systemctl disable {service}` prevents it"
                );
            }
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.policy
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!(
                "cannot remove {}: {error}. Remove it, or services do not start.",
                policy.display()
            );
        }
    }
}
