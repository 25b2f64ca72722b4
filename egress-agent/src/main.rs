//! `egress-agent`: parse the command line, run the verb, tell the exit status.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::{
    cli::{Cli, Command},
    commands, console, telemetry,
};

/// What a failed verb ends with; 0 and 1 are left to verbs that answer a question (`check`, `explain`).
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    telemetry::start(!matches!(command, Command::Run(_)));
    match commands::run(command) {
        Ok(status) => status,
        Err(error) => {
            console::complain(format_args!("egress-agent: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}
