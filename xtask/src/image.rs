//! `cargo xtask image`: the agent as a container image, written without a container engine.

pub(crate) mod archive;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::archive::{Image, Layer};
use crate::{
    setup::{self, Purpose},
    workspace,
};

/// What the manifests in deploy/ call the image.
const NAME: &str = "localhost/egress-agent";

/// A node fetches it while its pods' connects wait.
const MOST_BYTES: u64 = 20 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The machines it is for
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,

    /// Its name, in place of localhost/egress-agent:VERSION
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,

    /// The file to write, in place of target/image/egress-agent-VERSION-ARCH.tar
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// The architecture's name in images.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Whether it takes a cross compiler here.
    fn is_foreign(self) -> bool {
        self == Self::Arm64 && std::env::consts::ARCH != "aarch64"
    }

    /// Of the machine we run on, if there are images for it.
    pub(crate) fn own() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("there is no image for {other}"),
        }
    }
}

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Build, Purpose::Image])?;
    if arguments.arch.is_foreign() {
        setup::ensure(&[Purpose::Arm64])?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let name = arguments
        .name
        .clone()
        .unwrap_or_else(|| format!("{NAME}:{version}"));
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None => directory()?.join(format!("egress-agent-{version}-{}.tar", arguments.arch.name())),
    };
    write(arguments.arch, &name, &output)?;
    let bytes = fs::metadata(&output)?.len();
    println!(
        "{name} for {}: {} ({bytes} bytes)",
        arguments.arch.name(),
        output.display()
    );
    println!("  k3s ctr images import {}", output.display());
    println!("  docker load --input {}", output.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent and writes the archive.
pub(crate) fn write(arch: Arch, name: &str, output: &Path) -> Result<()> {
    let agent = static_agent(arch)?;
    let program = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let mut layer = Layer::default();
    // Where files are mounted over: the root file system is read-only when the container starts.
    for directory in ["dev", "etc", "proc", "run", "sys", "tmp", "var"] {
        layer.directory(directory)?;
    }
    layer.file("egress-agent", 0o755, &program)?;
    let image = Image {
        name: name.to_owned(),
        arch: arch.name(),
        entrypoint: vec!["/egress-agent".to_owned()],
        command: Vec::new(),
        env: Vec::new(),
        labels: vec![
            ("org.opencontainers.image.title", "egress-agent"),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
        ],
        layer,
    };
    let archive = image.archive()?;
    ensure!(
        archive.len() as u64 <= MOST_BYTES,
        "the image has {} bytes, and must not have more than {MOST_BYTES}",
        archive.len()
    );
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(output, archive).with_context(|| format!("cannot write {}", output.display()))
}

/// The agent as a program that needs no file of the image but itself. The C library is linked in: the agent looks names
/// up by itself and never asks getaddrinfo(3), which would want the C library's plug-ins at run time.
fn static_agent(arch: Arch) -> Result<PathBuf> {
    let target = arch.target();
    // Flags by the target, so that build scripts and macros, which are for this machine, are built without them. No
    // path of this machine is to be in the program: two checkouts build the same bytes.
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap_or_default();
    let root = workspace::root();
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cstrip=symbols".to_owned(),
        format!("--remap-path-prefix={}=.", root.display()),
        format!("--remap-path-prefix={home}=cargo"),
    ];
    let flags: Vec<String> = flags.iter().map(|flag| format!("{flag:?}")).collect();
    let mut cargo = workspace::cargo("build");
    cargo
        .args([
            "--locked",
            "--release",
            "--package",
            "egress-agent",
            "--target",
            target,
        ])
        .arg("--config")
        .arg(format!("target.{target}.rustflags=[{}]", flags.join(",")));
    if arch.is_foreign() {
        cross(&mut cargo);
    }
    workspace::run(&mut cargo)?;
    let agent = program(arch)?;
    is_static(&agent)?;
    Ok(agent)
}

/// Where the program of the image lies.
pub(crate) fn program(arch: Arch) -> Result<PathBuf> {
    Ok(workspace::target()?
        .join(arch.target())
        .join("release/egress-agent"))
}

/// A cross build by Debian's compiler for arm64 (gcc-aarch64-linux-gnu, libc6-dev-arm64-cross). The standard library is
/// built along where the toolchain has none for the target, which takes its source.
fn cross(cargo: &mut Command) {
    cargo
        .args([
            "--config",
            "target.aarch64-unknown-linux-gnu.linker=\"aarch64-linux-gnu-gcc\"",
        ])
        .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc")
        .env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar");
    if let Ok(tools) = setup::kernel_tools()
        && !has_std(Arch::Arm64.target())
    {
        cargo
            .args(["-Z", "build-std=std,panic_unwind"])
            .env("RUSTC", &tools.rustc.binary)
            .env("RUSTC_BOOTSTRAP", "1");
    }
}

/// Whether the toolchain in use has a standard library for a target.
fn has_std(target: &str) -> bool {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// An image with nothing else in it has no loader.
fn is_static(program: &Path) -> Result<()> {
    let output = Command::new("readelf")
        .args(["--program-headers", "--wide"])
        .arg(program)
        .output()
        .context("cannot run readelf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("LOAD"),
        "{} is no program",
        program.display()
    );
    ensure!(
        !text.contains("INTERP"),
        "{} wants a loader, and the image has none",
        program.display()
    );
    Ok(())
}

fn directory() -> Result<PathBuf> {
    Ok(workspace::target()?.join("image"))
}
