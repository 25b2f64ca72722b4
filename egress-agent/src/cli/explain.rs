//! `egress-agent explain`.

use std::{net::IpAddr, path::PathBuf};

use super::{Labels, PodName};

/// Tell what the policies say of a target, and which rule says so
///
/// The verdict comes from the code that decides for real. Exit status: 0 if the target is allowed, 1 if it is denied,
/// 2 if the question cannot be answered.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Policy file, or a directory of them; may be given several times. With --pod: judge as if they were applied
    #[arg(long = "policy", required_unless_present = "pod", value_name = "FILE")]
    pub policies: Vec<PathBuf>,
    /// Ask the API server for this pod, its labels, its namespace's, and the policies
    #[arg(long, value_name = "NS/NAME", conflicts_with_all = ["namespace", "labels", "namespace_labels"])]
    pub pod: Option<PodName>,
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config, or the service account of this pod]
    #[arg(long, requires = "pod", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
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
