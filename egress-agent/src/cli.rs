//! The command line: clap types alone. What a verb does is in [`crate::commands`], under the same name.
//!
//! A new verb is a module here with its `Args`, a variant of [`Command`], and an arm in [`crate::commands::run`].

mod check;
mod crdgen;
mod exec;
mod explain;
mod import;
mod launch;
mod parse;
mod probe;
mod run;
mod status;

pub use check::CheckArgs;
pub use crdgen::CrdgenArgs;
pub use exec::ExecArgs;
pub use explain::ExplainArgs;
pub use import::ImportArgs;
pub use launch::LaunchArgs;
pub use parse::{Labels, PodName};
pub use probe::ProbeArgs;
pub use run::RunArgs;
pub use status::{CleanupArgs, Output, StatusArgs};

/// Transparent egress enforcer: redirects connects in the kernel, judges them by name, tunnels and logs them.
#[derive(Debug, clap::Parser)]
#[command(name = "egress-agent", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Check(CheckArgs),
    Cleanup(CleanupArgs),
    #[command(hide = true)]
    Crdgen(CrdgenArgs),
    Exec(ExecArgs),
    Explain(ExplainArgs),
    Import(ImportArgs),
    #[command(hide = true)]
    Launch(LaunchArgs),
    Probe(ProbeArgs),
    Run(RunArgs),
    Status(StatusArgs),
}
