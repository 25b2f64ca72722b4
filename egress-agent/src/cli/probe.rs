//! `egress-agent probe`.

/// Ask whether an agent serves, for a container's probes
///
/// Its programs must be in force, and each of its workers must take a connection. Exit status: 0 if so, 1 if not.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// Its name
    #[arg(default_value = "run", value_name = "INSTANCE")]
    pub instance: String,
}
