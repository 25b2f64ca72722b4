//! `egress-agent import`.

use std::path::PathBuf;

use ipnet::IpNet;

use super::parse::assumption;

/// Make policies of a squid.conf
///
/// Writes policies that allow what the configuration's http_access allows, never more, and tells on standard error what it
/// could not translate, line by line. Needs no privileges. Exit status: 0 if everything was translated, 1 if something was
/// left out (the policies are written all the same), 2 if squid itself would not read the file.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The configuration
    #[arg(value_name = "SQUID_CONF")]
    pub file: PathBuf,
    /// Namespace of the policies [default: none, which is `default` or that of kubectl]
    #[arg(long, value_name = "NS")]
    pub namespace: Option<String>,
    /// Name of the policies
    #[arg(long, default_value = "squid", value_name = "NAME")]
    pub name: String,
    /// Where to write the policies: a file, or a directory for NAME.yaml [default: standard output]
    #[arg(long, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// Look for included files and lists with absolute names below this directory
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where the workloads' requests come from, for `src` acls; may be given several times
    #[arg(long = "source", value_name = "CIDR")]
    pub sources: Vec<IpNet>,
    /// A port that is used, of the ranges that squid lets through; may be given several times
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// Take an acl for always or never matching; may be given several times
    #[arg(long = "assume", value_name = "ACL=always|never", value_parser = assumption)]
    pub assumed: Vec<(String, bool)>,
}
