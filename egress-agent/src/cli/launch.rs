//! `egress-agent launch`: how `exec` starts its command; not for people.

use std::{ffi::OsString, path::PathBuf};

/// Enter a cgroup, drop privileges, become the command
#[derive(Debug, clap::Args)]
pub struct LaunchArgs {
    /// Directory of the cgroup to enter
    #[arg(long)]
    pub cgroup: PathBuf,
    /// UID:GID to become
    #[arg(long)]
    pub identity: Option<String>,
    /// Keep root's privileges
    #[arg(long)]
    pub keep_privileges: bool,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    pub command: Vec<OsString>,
}
