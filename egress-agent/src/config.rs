//! The daemon's configuration file. docs/configuration.md is its manual.

mod dns;
mod explicit_proxy;
mod kubernetes;
mod parent_proxy;

pub use dns::{DnsEntries, DnsLogEntry};
pub use explicit_proxy::ExplicitProxyEntries;
pub use kubernetes::{ExemptEntries, ExemptPods, KubernetesEntries};
pub use parent_proxy::ParentProxyEntries;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    access_log::{Format, Output, Target},
    identity::{Mapping, Workload},
    policy::Unselected,
    proxy::{
        dial::{DialMode, ParentProxy},
        explicit::ExplicitProxy,
        limits::Limits,
    },
};

/// The ports that are redirected unless the configuration says otherwise.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// Longest time for open connections to end in, in seconds: a day. Who waits longer does not mean to stop.
const LONGEST_DRAIN: u64 = 24 * 3600;

/// A configuration that is larger is none.
const MOST_BYTES: u64 = 1 << 20;

/// Everything that `run` can be told. Absent keys have their defaults; unknown ones are errors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// Name of this agent among others on the machine: of its pins and its state directory.
    pub instance: String,
    /// The cgroup whose members are enforced: a path below the cgroup2 mount, or a directory.
    pub cgroup: Option<PathBuf>,
    /// Directory of policy files, followed as they change.
    pub policy_dir: Option<PathBuf>,
    /// Cgroups and what they are, for policies and the log.
    pub workloads: Vec<WorkloadEntry>,
    /// What happens to workloads that no policy selects.
    pub unselected: Unselected,
    /// Deny nothing, log what would have been denied.
    pub audit: bool,
    /// TCP ports that are redirected, besides those that domain rules name.
    pub ports: Vec<u16>,
    /// Where workloads find the explicit proxy; nowhere by default.
    pub explicit_proxy: ExplicitProxyEntries,
    /// Destinations that are left alone, besides loopback.
    pub internal: Vec<IpNet>,
    /// Whether what leaves a workload's network namespace without a socket is stopped at the host's end of its veth pair.
    pub packet_fence: bool,
    /// Name servers to ask instead of those in /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    /// How queries of workloads are answered.
    pub dns: DnsEntries,
    /// Which address of an allowed name is dialled.
    pub dial: DialMode,
    /// The proxy that names are handed to; none by default.
    pub parent_proxy: Option<ParentProxyEntries>,
    /// Where records go; none by default.
    pub access_log: Vec<LogEntry>,
    /// Whether the query is left out of the URLs in the access logs.
    pub strip_query_terms: bool,
    /// What happens while an access log cannot be written.
    pub on_log_failure: OnLogFailure,
    /// How long open connections may take to end after SIGTERM.
    pub drain_seconds: u64,
    /// The same after a hand-over to a successor, where nobody waits for their end; `drain_seconds` if absent.
    pub handover_drain_seconds: Option<u64>,
    /// What becomes of the enforcement after SIGTERM.
    pub on_stop: OnStop,
    /// Bounds of the data path.
    pub limits: LimitEntries,
    /// The cluster whose pods are enforced.
    pub kubernetes: Option<KubernetesEntries>,
}

/// A cgroup and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// Path below the enforced cgroup.
    pub cgroup: PathBuf,
    /// Namespace, for policies.
    pub namespace: String,
    /// Labels of the namespace, for cluster policies.
    #[serde(default)]
    pub namespace_labels: BTreeMap<String, String>,
    /// Name, for the log; the cgroup's path if absent.
    pub name: Option<String>,
    /// Labels, for policies.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// One access log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LogEntry {
    /// `combined`, `squid`, `common`, `json`, or a squid logformat string.
    pub format: Format,
    /// A file, or `stdout` or `stderr`.
    pub target: String,
    /// Whether tunnels are told of when they are opened, too.
    #[serde(default)]
    pub opened: bool,
}

/// Bounds of the data path; see [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LimitEntries {
    head_bytes: usize,
    head_seconds: u64,
    silence_milliseconds: u64,
    connect_seconds: u64,
    idle_seconds: u64,
    keep_alive_seconds: u64,
    h2_streams: u32,
    connections_per_workload: u32,
}

/// What becomes of the enforcement when the agent is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// It ends: workloads are free.
    #[default]
    Remove,
    /// It stays: connects wait for the next agent.
    Hold,
}

/// What happens to new connections while an access log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLogFailure {
    /// They go on, and the records that are lost are counted.
    #[default]
    Count,
    /// They are refused.
    Deny,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: "run".to_owned(),
            cgroup: None,
            policy_dir: None,
            workloads: Vec::new(),
            unselected: Unselected::default(),
            audit: false,
            ports: DEFAULT_PORTS.to_vec(),
            explicit_proxy: ExplicitProxyEntries::default(),
            internal: Vec::new(),
            packet_fence: true,
            nameservers: Vec::new(),
            dns: DnsEntries::default(),
            dial: DialMode::default(),
            parent_proxy: None,
            access_log: Vec::new(),
            strip_query_terms: false,
            on_log_failure: OnLogFailure::default(),
            drain_seconds: 30,
            handover_drain_seconds: None,
            on_stop: OnStop::default(),
            limits: LimitEntries::default(),
            kubernetes: None,
        }
    }
}

impl Default for LimitEntries {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            head_bytes: limits.head_bytes,
            head_seconds: limits.head_timeout.as_secs(),
            silence_milliseconds: u64::try_from(limits.silence.as_millis()).unwrap_or(u64::MAX),
            connect_seconds: limits.connect_timeout.as_secs(),
            idle_seconds: limits.idle_timeout.as_secs(),
            keep_alive_seconds: limits.keep_alive_timeout.as_secs(),
            h2_streams: limits.h2_streams,
            connections_per_workload: limits.connections_per_workload,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// `FILE:LINE:COLUMN: what is wrong, and what is allowed`.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let size = fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        anyhow::ensure!(
            size <= MOST_BYTES,
            "{}: larger than {MOST_BYTES} bytes",
            path.display()
        );
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).map_err(|problem| anyhow::anyhow!("{}:{problem}", path.display()))
    }

    /// Reads a text; errors begin with `LINE:COLUMN:`.
    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let place = error
                .location()
                .map_or_else(|| "1:1".to_owned(), |at| format!("{}:{}", at.line(), at.column()));
            format!("{place}: {}", one_line(&error.to_string()))
        })?;
        config.check().map_err(|problem| format!("1:1: {problem}"))?;
        Ok(config)
    }

    /// What types alone cannot say.
    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.instance.is_empty() || self.instance.len() > 64 || !self.instance.chars().all(plain) {
            return Err("instance: 1 to 64 letters, digits, - and _ are allowed".to_owned());
        }
        if self.ports.contains(&0) {
            return Err("ports: 1 to 65535 are allowed".to_owned());
        }
        let explicit = self.explicit_proxy.proxy(&self.ports)?;
        if let Some(parent) = &self.parent_proxy {
            parent.check(&explicit)?;
        }
        self.dns.check()?;
        if self
            .access_log
            .iter()
            .any(|entry| entry.opened && entry.format != Format::Json)
        {
            return Err("accessLog: opened is for the json format: squid's have no word for it".to_owned());
        }
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.check()?;
        }
        if !(1024..=1 << 20).contains(&self.limits.head_bytes) {
            return Err("limits.headBytes: 1024 to 1048576 are allowed".to_owned());
        }
        if !(1..=60_000).contains(&self.limits.silence_milliseconds) {
            return Err("limits.silenceMilliseconds: 1 to 60000 are allowed".to_owned());
        }
        if !(1..=10_000).contains(&self.limits.h2_streams) {
            return Err("limits.h2Streams: 1 to 10000 are allowed".to_owned());
        }
        let drains = [
            ("drainSeconds", Some(self.drain_seconds)),
            ("handoverDrainSeconds", self.handover_drain_seconds),
        ];
        if let Some((name, _)) = drains.iter().find(|(_, value)| *value > Some(LONGEST_DRAIN)) {
            return Err(format!("{name}: 0 to {LONGEST_DRAIN} are allowed"));
        }
        if self.limits.connections_per_workload == 0 {
            return Err("limits.connectionsPerWorkload: at least 1 is needed".to_owned());
        }
        let seconds = [
            ("headSeconds", self.limits.head_seconds),
            ("connectSeconds", self.limits.connect_seconds),
            ("idleSeconds", self.limits.idle_seconds),
            ("keepAliveSeconds", self.limits.keep_alive_seconds),
        ];
        match seconds
            .iter()
            .find(|(_, value)| !(1..=7 * 24 * 3600).contains(value))
        {
            Some((name, _)) => Err(format!("limits.{name}: 1 to 604800 are allowed")),
            None => Ok(()),
        }
    }

    /// How long open connections may take to end after SIGTERM.
    #[must_use]
    pub const fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// How long they may after a hand-over.
    #[must_use]
    pub fn handover_drain(&self) -> Duration {
        self.handover_drain_seconds
            .map_or_else(|| self.drain(), Duration::from_secs)
    }

    /// The bounds.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let entries = &self.limits;
        Limits {
            head_bytes: entries.head_bytes,
            head_timeout: Duration::from_secs(entries.head_seconds),
            silence: Duration::from_millis(entries.silence_milliseconds),
            connect_timeout: Duration::from_secs(entries.connect_seconds),
            idle_timeout: Duration::from_secs(entries.idle_seconds),
            keep_alive_timeout: Duration::from_secs(entries.keep_alive_seconds),
            h2_streams: entries.h2_streams,
            connections_per_workload: entries.connections_per_workload,
            deny_unlogged: self.on_log_failure == OnLogFailure::Deny,
            ..Limits::default()
        }
    }

    /// The explicit proxy; none if it is off.
    #[must_use]
    pub fn explicit_proxy(&self) -> ExplicitProxy {
        // Checked when the file was read.
        self.explicit_proxy.proxy(&self.ports).unwrap_or_default()
    }

    /// The parent proxy, with its credentials read.
    ///
    /// # Errors
    /// They cannot be read, or are none.
    pub fn parent_proxy(&self) -> anyhow::Result<Option<ParentProxy>> {
        self.parent_proxy
            .as_ref()
            .map(ParentProxyEntries::proxy)
            .transpose()
    }

    /// Cgroups and their workloads.
    #[must_use]
    pub fn mappings(&self) -> Vec<Mapping> {
        self.workloads.iter().map(WorkloadEntry::mapping).collect()
    }

    /// The access logs.
    #[must_use]
    pub fn outputs(&self) -> Vec<Output> {
        let output = |entry: &LogEntry| Output {
            format: entry.format.clone(),
            target: match entry.target.as_str() {
                "stdout" => Target::Stdout,
                "stderr" | "-" => Target::Stderr,
                path => Target::File(path.into()),
            },
            opened: entry.opened,
        };
        self.access_log.iter().map(output).collect()
    }
}

impl WorkloadEntry {
    fn mapping(&self) -> Mapping {
        let path: PathBuf = self
            .cgroup
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        let name = self.name.clone().unwrap_or_else(|| path.display().to_string());
        Mapping {
            workload: Workload {
                namespace: self.namespace.clone(),
                namespace_labels: self.namespace_labels.clone(),
                name,
                labels: self.labels.clone(),
                ..Workload::default()
            },
            path,
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse("{}").unwrap(), Config::default());
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = Config::parse(
            "cgroup: /enforced\npolicyDir: /etc/egress\nunselected: Enforce\nports: [80, 443, 8443]\ninternal: [10.0.0.0/8]\n\
             accessLog:\n- {format: json, target: /var/log/egress.json}\n- {format: squid, target: stdout}\n\
             workloads:\n- {cgroup: /web/, namespace: team-web, labels: {app: web}}\nlimits: {idleSeconds: 60}\n",
        )
        .unwrap();
        assert_eq!(config.mappings()[0].path, PathBuf::from("web"));
        assert_eq!(config.mappings()[0].workload.name, "web");
        assert_eq!(config.limits().idle_timeout, Duration::from_secs(60));
        assert_eq!(config.outputs().len(), 2);
    }

    /// The manual's example is the whole file: a key that it lacks, or that is gone, fails here.
    #[test]
    fn the_manual_is_a_configuration() {
        let manual = include_str!("../../docs/configuration.md");
        let example = manual
            .split("```yaml\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .unwrap();
        let config = Config::parse(example).unwrap();
        assert_eq!(config.workloads.len(), 1);
        assert_eq!(config.limits, Config::default().limits);
        assert_eq!(
            config.kubernetes.unwrap().identity_wait(),
            KubernetesEntries::default().identity_wait()
        );
        for key in [
            "instance",
            "cgroup",
            "policyDir",
            "workloads",
            "unselected",
            "audit",
            "ports",
            "explicitProxy",
            "internal",
            "packetFence",
            "nameservers",
            "dns",
            "dial",
            "parentProxy",
            "accessLog",
            "onLogFailure",
            "drainSeconds",
            "handoverDrainSeconds",
            "limits",
            "kubernetes",
        ] {
            assert!(example.contains(&format!("\n{key}:")), "{key}");
        }
    }

    #[test]
    fn a_hand_over_has_the_time_of_a_stop_unless_it_is_given_its_own() {
        let drains = |text: &str| {
            let config = Config::parse(text).unwrap();
            (config.drain().as_secs(), config.handover_drain().as_secs())
        };
        assert_eq!(drains("{drainSeconds: 3}"), (3, 3));
        assert_eq!(drains("{drainSeconds: 3, handoverDrainSeconds: 50}"), (3, 50));
    }

    #[test]
    fn an_error_names_its_place_and_what_is_allowed() {
        let unknown = Config::parse("ports: [80]\nprots: [443]\n").unwrap_err();
        assert!(unknown.starts_with("2:"), "{unknown}");
        assert!(unknown.contains("prots"), "{unknown}");
        for (text, word) in [
            ("ports: [0]", "1 to 65535"),
            ("instance: ../x", "letters"),
            ("limits: {headBytes: 1}", "1024"),
            ("limits: {idleSeconds: 0}", "604800"),
            ("limits: {connectionsPerWorkload: 0}", "at least 1"),
            ("limits: {h2Streams: 0}", "1 to 10000"),
            ("limits: {h2Streams: 10001}", "1 to 10000"),
            ("drainSeconds: 86401", "drainSeconds: 0 to 86400"),
            ("handoverDrainSeconds: 86401", "handoverDrainSeconds: 0 to 86400"),
            ("drainSeconds: 18446744073709551615", "drainSeconds: 0 to 86400"),
            ("onLogFailure: ignore", "deny"),
            ("limits: {silenceMilliseconds: 0}", "60000"),
            (
                "explicitProxy: {addresses: ['0.0.0.0:80']}",
                "explicitProxy.addresses: 0.0.0.0:80",
            ),
            (
                "accessLog: [{format: squid, target: stdout, opened: true}]",
                "opened is for the json format",
            ),
            ("explicitProxy: {listen: ['0.0.0.0:3128']}", "addresses"),
            ("parentProxy: {}", "address"),
            (
                "parentProxy: {address: 'http://proxy.test:3128'}",
                "HOST:PORT is allowed",
            ),
            (
                "parentProxy: {address: 'proxy.test:3128', direct: ['*']}",
                "parentProxy.direct: ",
            ),
            (
                "{explicitProxy: {addresses: ['127.0.0.1:3128']}, parentProxy: {address: '127.0.0.1:3128'}}",
                "would ask itself",
            ),
        ] {
            assert!(Config::parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
