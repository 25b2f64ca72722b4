//! What the verbs do; one module each, named as the verb.

mod check;
mod cleanup;
mod crdgen;
mod exec;
mod explain;
mod import;
mod launch;
#[cfg(test)]
mod manual;
mod probe;
mod run;
mod status;

use std::{io, process::ExitCode};

use crate::cli::Command;

/// Runs a verb to its end and tells the exit status.
///
/// # Errors
/// What went wrong, as one sentence once the chain is joined by colons.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => check::check(&args, &mut io::stdout().lock()),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Crdgen(args) => crdgen::run(&args, &mut io::stdout().lock()),
        Command::Exec(args) => Ok(exec::run(&args)),
        Command::Explain(args) => explain::explain(&args, &mut io::stdout().lock()),
        Command::Import(args) => import::import(&args, &mut io::stdout().lock(), &mut io::stderr().lock()),
        Command::Launch(args) => launch::run(&args),
        Command::Probe(args) => Ok(probe::run(&args)),
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::run(&args),
    }
}
