//! What an agent says of itself: the document behind `status`.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The state of one agent. Field names are part of the command line's contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Instance name.
    pub instance: String,
    /// Version of the agent.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How many agents have had these pins, this one included: 1 unless it took over from another.
    #[serde(default)]
    pub generation: u64,
    /// The process that it has taken over from, as long as that drains.
    #[serde(default)]
    pub predecessor: Option<u32>,
    /// How long it has been at work.
    #[serde(default)]
    pub uptime_seconds: u64,
    /// How often a link or a pin was not as it should be, and was put right.
    #[serde(default)]
    pub repairs: u64,
    /// What cannot be put right at the moment.
    #[serde(default)]
    pub repair_error: Option<String>,
    /// The enforced cgroup's directory.
    pub cgroup: PathBuf,
    /// Where links and maps are pinned.
    pub pins: PathBuf,
    /// Names of the attached programs.
    pub programs: Vec<String>,
    /// Policies in force.
    pub policies: u64,
    /// Where they come from.
    #[serde(default)]
    pub policy_source: PolicySource,
    /// Why the newest policies are not in force, if they are not; the last good ones are.
    pub policy_error: Option<String>,
    /// Network namespaces with listeners.
    pub namespaces: u64,
    /// The listeners in the agent's own network namespace, one a worker.
    #[serde(default)]
    pub listeners: Vec<SocketAddr>,
    /// Network namespaces that nothing leaves without a socket.
    #[serde(default)]
    pub fences: FenceStatus,
    /// Of the policies: how many different things the kernel enforces on the members.
    #[serde(default)]
    pub fence_policies: u64,
    /// How full the kernel's tables are, by name: `members` are the cgroups that the kernel knows, `direct` the open flows
    /// that went past the agent.
    #[serde(default)]
    pub tables: BTreeMap<String, TableStatus>,
    /// The cluster, on a node of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
    /// Connections by state and fate.
    pub connections: Connections,
    /// Queries of workloads.
    pub dns: DnsStatus,
    /// What the kernel programs counted, by outcome.
    pub kernel: BTreeMap<String, u64>,
    /// The access log's writer.
    pub access_log: LogStatus,
}

/// The parts of a [`Status`] that tell whether the agent serves, under the same names. A probe is to depend on nothing
/// else, and on nothing that workloads or policies can make long.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// What cannot be put right at the moment.
    #[serde(default)]
    pub repair_error: Option<String>,
    /// Names of the attached programs.
    pub programs: Vec<String>,
    /// The listeners in the agent's own network namespace, one a worker.
    #[serde(default)]
    pub listeners: Vec<SocketAddr>,
}

/// What stands at the host's ends of veth pairs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FenceStatus {
    /// Switched off by the configuration, or an `exec`.
    pub off: bool,
    /// Fenced network namespaces.
    pub namespaces: u64,
    /// Those of enforced workloads that are not, or not at every way out; twenty at most.
    pub not_fenced: Vec<NotFenced>,
}

/// How full a table of the kernel's is. What happens when it is full is in docs/operation.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableStatus {
    /// What is in it.
    pub entries: u64,
    /// What fits into it.
    pub most: u64,
}

/// A network namespace that is not fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFenced {
    /// A process in it.
    pub pid: u32,
    /// The reason.
    pub why: String,
}

/// What is known of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// This node.
    pub node: String,
    /// Whether the API server has answered the last request.
    pub api_server: bool,
    /// For how long that has been so.
    pub api_server_seconds: u64,
    /// Why it has not; what is known stays in force.
    pub api_server_error: Option<String>,
    /// Whether the pods of this node have been listed since the start.
    pub pods_listed: bool,
    /// If not: from when the pods are that are known, which are those of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_recalled_from: Option<String>,
    /// Pods of this node that are known.
    pub pods: u64,
    /// Those of them that are left alone.
    pub exempt_pods: u64,
}

/// Where policies come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicySource {
    /// How many are from files.
    pub files: u64,
    /// How many objects the API server has.
    pub objects: u64,
    /// How much is known of the API server's: `not_asked` (there is none), `unknown` (everything is denied), `recalled`
    /// (those of the last run) or `followed`.
    pub knowledge: String,
    /// For `recalled`: from when they are.
    pub recalled_from: Option<String>,
    /// The objects, broken ones first; at most [`MOST_OBJECTS`], and at most [`MOST_OBJECT_BYTES`] of them.
    pub list: Vec<PolicyObject>,
    /// How many objects there are besides.
    #[serde(default)]
    pub not_listed: u64,
}

/// Most objects that a status lists.
pub const MOST_OBJECTS: usize = 1000;
/// Most bytes of JSON of the objects that a status lists.
pub const MOST_OBJECT_BYTES: usize = 256 * 1024;
/// Most of an error of the machine's or of a file's that a status tells.
pub const MOST_ERROR_BYTES: usize = 4096;
/// Most of an object's error that a status tells: there may be many.
pub const MOST_OBJECT_ERROR_BYTES: usize = 300;
/// Larger than any status: everything in it that somebody else can make long is cut.
pub const MOST_BYTES: usize = 1 << 20;

/// What is asked for on the control socket, as a line. Without one it is the status.
pub const ASK_STATUS: &str = "status";
/// Asks for the [`Health`] alone.
pub const ASK_HEALTH: &str = "health";

/// A policy of the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyObject {
    /// Which: `EgressPolicy horizons/allow`.
    pub policy: String,
    /// Its newest generation.
    pub generation: i64,
    /// Whether that is in force.
    pub in_force: bool,
    /// What is wrong with it, and what is in force instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Connections at the listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Accepted since the start.
    pub accepted: u64,
    /// Closed because no redirected connect explained them.
    pub no_flow: u64,
    /// Closed because their cgroup had no identity.
    pub unknown_workload: u64,
    /// Refused because their workload had too many, or no file descriptor was left.
    #[serde(default)]
    pub overloaded: u64,
}

/// What became of the queries of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Queries of enforced workloads.
    pub queries: u64,
    /// Refused.
    pub denied: u64,
    /// Allowed, and not answered by any name server.
    pub failed: u64,
    /// Queries of observed workloads.
    pub observed: u64,
    /// Datagrams that no workload's query explains, that are no query, or that are too many.
    pub dropped: u64,
    /// Pairs of name and address that are remembered.
    pub names: u64,
    /// Pairs that were forgotten before their time or not remembered, because the table was full.
    pub names_lost: u64,
    /// Entries written to the `dns` log.
    pub logged: u64,
    /// Entries that it lost.
    pub log_lost: u64,
}

/// Records of the access log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// Written.
    pub written: u64,
    /// Lost, because the queue was full or the target failed.
    pub lost: u64,
}

impl fmt::Display for KubernetesStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  node         {}, {} pods ({} exempt)",
            self.node, self.pods, self.exempt_pods
        )?;
        match &self.pods_recalled_from {
            _ if self.pods_listed => {}
            Some(from) => writeln!(
                f,
                "  OLD PODS     as of {from}: the API server has not listed them since the start"
            )?,
            None => writeln!(
                f,
                "  NO PODS YET  the API server has not listed them since the start"
            )?,
        }
        let since = self.api_server_seconds;
        match &self.api_server_error {
            None if self.api_server => writeln!(f, "  api server   answers, for {since} s"),
            None => writeln!(f, "  api server   has not been asked"),
            Some(error) => writeln!(f, "  API SERVER   does not answer, for {since} s: {error}"),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} (pid {}, version {}, for {} s, generation {})",
            self.instance, self.pid, self.version, self.uptime_seconds, self.generation
        )?;
        writeln!(f, "  cgroup       {}", self.cgroup.display())?;
        writeln!(
            f,
            "  pins         {} ({} programs)",
            self.pins.display(),
            self.programs.len()
        )?;
        writeln!(
            f,
            "  policies     {}{}",
            self.policies,
            self.policy_source.parts()
        )?;
        self.policy_source.write_troubles(f)?;
        if let Some(error) = &self.policy_error {
            writeln!(f, "  NOT IN FORCE {error}")?;
        }
        if let Some(pid) = self.predecessor {
            writeln!(f, "  predecessor  pid {pid} drains")?;
        }
        if self.repairs > 0 {
            writeln!(f, "  REPAIRED     {} links or pins", self.repairs)?;
        }
        if let Some(error) = &self.repair_error {
            writeln!(f, "  DAMAGED      {error}")?;
        }
        writeln!(f, "  namespaces   {}", self.namespaces)?;
        if self.fences.off {
            writeln!(f, "  NO FENCE     network namespaces are not fenced")?;
        } else {
            writeln!(f, "  fenced       {} of them", self.fences.namespaces)?;
        }
        for open in &self.fences.not_fenced {
            writeln!(f, "  NOT FENCED   that of pid {}: {}", open.pid, open.why)?;
        }
        self.write_tables(f)?;
        if let Some(kubernetes) = &self.kubernetes {
            write!(f, "{kubernetes}")?;
        }
        let connections = &self.connections;
        writeln!(
            f,
            "  connections  {} open, {} accepted, {} unexplained, {} of unknown cgroups, {} without room",
            connections.open,
            connections.accepted,
            connections.no_flow,
            connections.unknown_workload,
            connections.overloaded
        )?;
        let dns = &self.dns;
        writeln!(
            f,
            "  dns          {} queries, {} denied, {} failed, {} observed, {} dropped, {} names known",
            dns.queries, dns.denied, dns.failed, dns.observed, dns.dropped, dns.names
        )?;
        writeln!(
            f,
            "  access log   {} written, {} lost",
            self.access_log.written, self.access_log.lost
        )?;
        for (outcome, count) in self.kernel.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "  kernel       {outcome}: {count}")?;
        }
        Ok(())
    }
}

impl Status {
    fn write_tables(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |name: &str| self.tables.get(name).copied().unwrap_or_default();
        let ways = self.fence_policies;
        writeln!(
            f,
            "  members      {} cgroups, enforced in {ways} ways",
            table("members")
        )?;
        writeln!(f, "  direct       {} flows past the agent", table("direct"))?;
        let others = self
            .tables
            .iter()
            .filter(|(name, _)| !["members", "direct"].contains(&name.as_str()));
        let others: Vec<String> = others.map(|(name, table)| format!("{name} {table}")).collect();
        writeln!(f, "  tables       {}", others.join(", "))?;
        for (name, table) in self.tables.iter().filter(|(_, table)| table.is_almost_full()) {
            writeln!(f, "  ALMOST FULL  {name}: {table}")?;
        }
        Ok(())
    }
}

impl TableStatus {
    /// Somebody should look at it before it is full.
    const fn is_almost_full(self) -> bool {
        self.entries * 10 >= self.most * 9 && self.most > 0
    }
}

impl fmt::Display for TableStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.entries, self.most)
    }
}

impl PolicySource {
    fn parts(&self) -> String {
        match self.knowledge.as_str() {
            "" | "not_asked" => String::new(),
            _ => format!(" ({} of files, {} of the API server)", self.files, self.objects),
        }
    }

    fn write_troubles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.knowledge.as_str(), &self.recalled_from) {
            ("unknown", _) => {
                writeln!(
                    f,
                    "  NO POLICIES  the API server has not told them, so everything is denied"
                )?;
            }
            ("recalled", Some(from)) => writeln!(
                f,
                "  OLD POLICIES as of {from}: the API server has not told them since the start"
            )?,
            _ => {}
        }
        for object in &self.list {
            if let Some(error) = &object.error {
                writeln!(
                    f,
                    "  BROKEN       {} generation {}: {error}",
                    object.policy, object.generation
                )?;
            }
        }
        if self.not_listed > 0 {
            writeln!(f, "  NOT LISTED   {} objects more", self.not_listed)?;
        }
        Ok(())
    }
}
