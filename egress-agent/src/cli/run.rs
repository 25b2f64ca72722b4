//! `egress-agent run`.

use std::path::PathBuf;

/// Enforce a cgroup tree, as a daemon
///
/// SIGTERM and SIGINT drain and stop, SIGHUP reads the policies again and reopens the access log. Options on the command
/// line come before the configuration file.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Configuration file; docs/configuration.md lists every key
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// If an agent of the same name is running, take over from it: no connect is refused and no connection is cut meanwhile
    #[arg(long)]
    pub take_over: bool,
    /// Put the kernel's part in force and end: connects wait until an agent serves them. For a machine's boot, before
    /// anything can run that is to be enforced
    #[arg(long, conflicts_with = "take_over")]
    pub hold: bool,
    /// The cgroup whose members are enforced: a path below the cgroup2 mount, or a directory
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Directory of policy files (*.yaml, *.yml, *.json), followed as they change
    #[arg(long, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
}
