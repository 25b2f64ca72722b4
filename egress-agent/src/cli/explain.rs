//! `egress-agent explain`.

use std::{net::IpAddr, path::PathBuf};

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
    /// Labels of its namespace
    #[arg(long, default_value = "", value_name = "k=v,...")]
    pub namespace_labels: Labels,
    /// Ask for an agent that denies everything to workloads that no policy selects (`unselected: Enforce`)
    #[arg(long)]
    pub deny_unselected: bool,
    /// Method of the request, for http:// URLs
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    pub method: String,
    /// Address that the workload dials for the name; only `cidr` denials look at it
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// URL (https://host/, http://host:8080/path) or HOST:PORT
    pub target: String,
}
