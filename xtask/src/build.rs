//! `cargo xtask build`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
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
