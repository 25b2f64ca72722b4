//! `egress-agent status` and `egress-agent cleanup`.

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Tell what every agent on this machine does
///
/// Exit status: 0 if at least one agent answers, 1 if none does.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// How to write it
    #[arg(long, default_value = "text", value_name = "text|json")]
    pub output: Output,
}

/// Remove what agents left that did not end by themselves
///
/// After `kill -9` of an agent its programs stay in force, so that nothing passes unjudged. This removes them, and ends
/// the processes that an `exec` left in its cgroup. Living agents are not touched.
#[derive(Debug, clap::Args)]
pub struct CleanupArgs {
    /// Stay afterwards, until SIGTERM: for a DaemonSet, whose rollout then tells that every node is clean
    #[arg(long)]
    pub stay: bool,
    /// Only these instances; without a name all that are dead
    #[arg(value_name = "INSTANCE")]
    pub instances: Vec<String>,
}
