//! The command line: clap types alone. What a verb does is in [`crate::commands`], under the same name.
//!
//! A new verb is a module here with its `Args`, a variant of [`Command`], and an arm in [`crate::commands::run`].

mod check;
mod explain;
mod parse;

pub use check::CheckArgs;
pub use explain::ExplainArgs;
pub use parse::Labels;

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
    Explain(ExplainArgs),
}
