//! `egress-agent crdgen`.

/// Print the custom resource definitions
#[derive(Debug, clap::Args)]
pub struct CrdgenArgs {
    /// With rules in CEL, for API servers from 1.25
    #[arg(long)]
    pub cel: bool,
}
