//! `egress-agent explain`.

use std::path::PathBuf;

use super::Labels;

/// Tell what the policies say of a target, and which rule says so
///
/// The verdict comes from the code that decides for real. Exit status: 0 if the target is allowed, 1 if it is denied,
/// 2 if the question cannot be answered.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Policy file, or a directory of them; may be given several times
    #[arg(long = "policy", required = true, value_name = "FILE")]
    pub policies: Vec<PathBuf>,
    /// Namespace of the workload that asks
    #[arg(long, default_value = "default", value_name = "NS")]
    pub namespace: String,
    /// Labels of the workload that asks
    #[arg(long, default_value = "", value_name = "k=v,...")]
    pub labels: Labels,
    /// URL (https://host/, http://host:8080/path) or HOST:PORT
    pub target: String,
}
