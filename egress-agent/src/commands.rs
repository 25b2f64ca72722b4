//! What the verbs do; one module each, named as the verb.

use std::process::ExitCode;

use crate::cli::Command;

/// Runs a verb to its end and tells the exit status.
///
/// # Errors
/// What went wrong, as one sentence once the chain is joined by colons.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(_args) => anyhow::bail!("check is not there yet"),
        Command::Explain(_args) => anyhow::bail!("explain is not there yet"),
    }
}
