//! `egress-agent exec`.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

use super::{Labels, parse::name_server};
use crate::{
    access_log::Format,
    policy::HostPattern,
    proxy::dial::{DialMode, ParentProxy},
};

/// Run one command whose connections are judged by name
///
/// COMMAND and all its children run in a cgroup of their own; what no rule allows is denied. Exit status: that of
/// COMMAND, 128+n if signal n ended it, 127 or 126 if it could not be run, 125 if the enforcer itself failed.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Policy file, or a directory of them; may be given several times
    #[arg(long = "policy", value_name = "FILE")]
    pub policies: Vec<PathBuf>,
    /// Allow a host on ports 80 and 443: x.test, *.x.test, **.x.test, .x.test; may be given several times
    #[arg(long = "allow", value_name = "HOST_PATTERN")]
    pub allow: Vec<HostPattern>,
    /// Deny nothing, and log what would have been denied
    #[arg(long)]
    pub audit: bool,
    /// Namespace of the command, for policies
    #[arg(long, default_value = "default", value_name = "NS")]
    pub namespace: String,
    /// Labels of the command, for policies
    #[arg(long, default_value = "", value_name = "k=v,...")]
    pub labels: Labels,
    /// Where the access log goes: a file is appended to, - is standard error [default: no log]
    #[arg(long, value_name = "FILE|-")]
    pub access_log: Option<PathBuf>,
    /// Format of the access log
    #[arg(long, default_value = "combined", value_name = "combined|squid|common|json")]
    pub log_format: Format,
    /// Ask this name server instead of those in /etc/resolv.conf; may be given several times
    #[arg(long = "nameserver", value_name = "IP[:PORT]", value_parser = name_server)]
    pub nameservers: Vec<SocketAddr>,
    /// Leave this network alone, besides loopback; may be given several times
    #[arg(long = "internal", value_name = "CIDR")]
    pub internal: Vec<IpNet>,
    /// Let the command look these names up as well, without allowing connections to them: *.x.test, **.x.test; may be given several times
    #[arg(long = "internal-name", value_name = "HOST_PATTERN")]
    pub internal_names: Vec<HostPattern>,
    /// Answer connects to this address as an HTTP proxy, for a command that is told of one; 0.0.0.0 and [::] stand for all addresses; may be given several times
    #[arg(long = "explicit-proxy", value_name = "IP:PORT")]
    pub explicit_proxy: Vec<SocketAddr>,
    /// Hand allowed names to this proxy (HOST:PORT), which looks them up and dials
    #[arg(long, value_name = "HOST:PORT")]
    pub parent_proxy: Option<ParentProxy>,
    /// Which address of an allowed name is dialled
    #[arg(long, default_value = "pinned", value_name = "pinned|strict|original")]
    pub dial: DialMode,
    /// Run COMMAND as this user [default: the user who called sudo, else root without privileges]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Keep the privileges of root: COMMAND can then leave the enforcement if it wants to
    #[arg(long)]
    pub keep_privileges: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
