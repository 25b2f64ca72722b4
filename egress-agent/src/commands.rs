//! What the verbs do; one module each, named as the verb.

mod check;
mod explain;

use std::{io, process::ExitCode};

use crate::cli::Command;

/// Runs a verb to its end and tells the exit status.
///
/// # Errors
/// What went wrong, as one sentence once the chain is joined by colons.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => check::check(&args, &mut io::stdout().lock()),
        Command::Explain(args) => explain::explain(&args, &mut io::stdout().lock()),
    }
}
