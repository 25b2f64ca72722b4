//! `cargo xtask build`.

use std::{
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    setup::{self, Purpose},
    workspace,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Optimised, for use (about 4 min the first time)
    #[arg(long)]
    release: bool,
}

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Build])?;
    println!("built {}", agent(arguments.release)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent and returns the path of the program. Cargo's own progress line shows.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    let mut cargo = workspace::cargo("build");
    cargo
        .args(["--locked", "--package", "egress-agent"])
        .args(release.then_some("--release"));
    workspace::run(&mut cargo)?;
    Ok(workspace::target()?
        .join(if release { "release" } else { "debug" })
        .join("egress-agent"))
}

/// Builds the tests on the real kernel and returns the path of their program.
pub(crate) fn tests() -> Result<PathBuf> {
    let mut cargo = workspace::cargo("test");
    cargo
        .args([
            "--locked",
            "--no-run",
            "--package",
            "egress-tests",
            "--test",
            "promises",
        ])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{} failed ({})", workspace::describe(&cargo), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "promises")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo tells no test program")
}

/// Builds the first process of a guest, which finds no libraries there, and returns its path.
pub(crate) fn guest_init() -> Result<PathBuf> {
    let mut cargo = workspace::cargo("rustc");
    cargo.args(["--locked", "--package", "vm-init", "--"]).args([
        "-C",
        "target-feature=+crt-static",
        "-C",
        "strip=symbols",
    ]);
    workspace::run(&mut cargo)?;
    Ok(workspace::target()?.join("debug/vm-init"))
}
