//! `cargo xtask demo`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{
    build,
    setup::{self, Purpose},
    workspace,
};

/// Builds the agent and the demonstration, which is a program of the test laboratory, and runs it.
pub(crate) fn verb() -> Result<ExitCode> {
    workspace::demand_root("demo")?;
    setup::ensure(&[Purpose::Build, Purpose::Demo])?;
    let agent = build::agent(false)?;
    workspace::run(workspace::cargo("build").args([
        "--locked",
        "--package",
        "egress-tests",
        "--bin",
        "demo",
    ]))?;
    let demo = workspace::target()?.join("debug/demo");
    let status = Command::new(&demo).env("EGRESS_AGENT", &agent).status();
    let status = status.with_context(|| format!("cannot run {}", demo.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
