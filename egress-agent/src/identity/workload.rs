//! A workload: what policies select and what the access log names.

use std::collections::BTreeMap;

/// A pod, or what stands in for one on a host without Kubernetes: a cgroup with a name and labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Kubernetes namespace, or the configured one.
    pub namespace: String,
    /// The namespace's own labels, for `namespaceSelector`.
    pub namespace_labels: BTreeMap<String, String>,
    /// Pod name, or the configured one.
    pub name: String,
    /// Pod labels, for `podSelector`.
    pub labels: BTreeMap<String, String>,
    /// Path of the workload's cgroup below the cgroup2 mount.
    pub cgroup: String,
}

impl Workload {
    /// Whether both are one workload: cgroups below a workload's own are parts of it.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.labels) == (&other.namespace, &other.name, &other.labels)
    }
}

/// The process that called connect(2), as the kernel saw it. For the log only: never part of a decision, because a
/// process chooses its own name and user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Thread group id in the root pid namespace.
    pub pid: u32,
    /// Real user id in the root user namespace.
    pub uid: u32,
    /// `comm`, at most 15 bytes.
    pub command: String,
}
