//! `egress-agent`: parse the command line, run the verb, tell the exit status.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::{cli::Cli, commands};

/// What a failed verb ends with; 0 and 1 are left to verbs that answer a question (`check`, `explain`).
const FAILED: u8 = 2;

#[expect(clippy::print_stderr, reason = "the one place where a failed verb says why")]
fn main() -> ExitCode {
    match commands::run(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("egress-agent: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
