//! `cargo xtask run`.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    build,
    setup::{self, Purpose},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The agent's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Build])?;
    let agent = build::agent(false)?;
    // In our place, so that signals and the exit status are the agent's own.
    let error = Command::new(&agent).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", agent.display()))
}
