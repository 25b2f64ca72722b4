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

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    cli::Command,
    console::{self, Printed},
};

/// Runs a verb to its end and tells the exit status.
///
/// # Errors
/// What went wrong, as one sentence once the chain is joined by colons.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (mut out, mut err) = (Printed(io::stdout()), Printed(io::stderr()));
    let ended = match command {
        Command::Check(args) => check::check(&args, &mut out),
        Command::Cleanup(args) => cleanup::run(&args, &mut out),
        Command::Crdgen(args) => crdgen::run(&args, &mut out),
        Command::Exec(args) => Ok(exec::run(&args)),
        Command::Explain(args) => explain::explain(&args, &mut out),
        Command::Import(args) => import::import(&args, &mut out, &mut err),
        Command::Launch(args) => launch::run(&args),
        Command::Probe(args) => Ok(probe::run(&args)),
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::run(&args, &mut out, &mut err),
    };
    // A last line without an end is with us still.
    console::quietly(ended.and_then(|status| out.flush().map(|()| status).map_err(Into::into)))
}
