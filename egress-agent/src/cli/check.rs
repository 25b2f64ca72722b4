//! `egress-agent check`.

use std::path::PathBuf;

/// Check policy files and tell every error in them
///
/// Prints one line for each good file, or every error of every bad one as file:line:column. Needs no privileges and
/// changes nothing. Exit status: 0 if all files are good, 1 if not.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Policy files, or directories of them (*.yaml, *.yml, *.json)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}
