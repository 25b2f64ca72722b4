//! The inner cargo run.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Tools;

/// Byte order of the machine that will load the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endian {
    Little,
    Big,
}

/// What to compile, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    /// The workspace.
    pub root: PathBuf,
    /// The cargo to run, itself and not a proxy.
    pub cargo: PathBuf,
    /// A directory of this build alone: a cargo that shares the outer cargo's would wait for it for ever.
    pub target_dir: PathBuf,
    /// Byte order of the host.
    pub endian: Endian,
    /// Architecture of the host: the layout of `pt_regs` depends on it.
    pub host_arch: String,
    /// What cargo is to do with them: `build`, or `clippy`.
    pub verb: &'static str,
    /// Arguments for the verb, after all others.
    pub args: Vec<String>,
}

impl Endian {
    /// The compiler's name for the target.
    pub fn target(self) -> &'static str {
        match self {
            Self::Little => "bpfel-unknown-none",
            Self::Big => "bpfeb-unknown-none",
        }
    }
}

/// Runs cargo on `egress-ebpf` and returns the path of the object. Its messages go to standard error.
///
/// # Errors
///
/// Cargo cannot be started, or failed: it has said why.
pub fn compile(request: &Request, tools: &Tools) -> io::Result<PathBuf> {
    let linker = tools.linker.wrap(&request.target_dir)?;
    let mut cargo = Command::new(&request.cargo);
    for (name, _) in std::env::vars_os().filter(|(name, _)| belongs_to_outer_build(name)) {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(&request.root)
        .args([
            request.verb,
            "--package",
            "egress-ebpf",
            "--bin",
            "egress-ebpf",
            "--locked",
        ])
        .args([
            "--profile",
            PROFILE,
            "-Z",
            "build-std=core",
            "--target",
            request.endian.target(),
        ])
        .arg("--target-dir")
        .arg(&request.target_dir)
        .args(&request.args)
        .env("RUSTC", &tools.rustc.binary)
        .env("RUSTC_WRAPPER", "")
        // The options are unstable ones, and the compiler is as a rule a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker, &request.host_arch))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(request
            .target_dir
            .join(request.endian.target())
            .join(PROFILE)
            .join("egress-ebpf"))
    } else {
        Err(io::Error::other("the kernel programs do not compile (see above)"))
    }
}

/// The workspace's profile for the kernel programs.
const PROFILE: &str = "bpf";

/// What the outer cargo, rustup and clippy tell the programs they run, and what a person sets for ordinary
/// builds: any of it would make the inner cargo compile for the wrong target, with the wrong compiler, or for
/// another package.
fn belongs_to_outer_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    // How to reach the registry, and the job slots that are shared with the outer cargo, are as good for the
    // inner one.
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_MAKEFLAGS",
    ];
    const OTHERS: [&str; 11] = [
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    (name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept)))
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || OTHERS.contains(&name)
}

fn rustflags(linker: &Path, host_arch: &str) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    flags.push("\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f");
    flags.push(format!("--cfg=bpf_target_arch=\"{host_arch}\""));
    flags
}
