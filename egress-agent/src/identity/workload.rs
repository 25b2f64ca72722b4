//! A workload: what policies select and what the access log names.

use std::{collections::BTreeMap, net::IpAddr};

use super::PodUid;

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
    /// What only pods have.
    pub pod: Option<PodFacts>,
}

/// What is known of a pod besides its name and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID: another pod of the same name is another workload.
    pub uid: PodUid,
    /// The container that a cgroup belongs to, for the log; empty until the kubelet has told the API server.
    pub container: String,
    /// The service account it runs as.
    pub service_account: String,
    /// The node it is on.
    pub node: String,
    /// Its addresses, in the order of the API server. Those of the node if it is on the host's network.
    pub addresses: Vec<IpAddr>,
    /// It has no network namespace of its own.
    pub host_network: bool,
    /// The configuration leaves it alone.
    pub is_exempt: bool,
    /// The user of a service mesh's sidecar in it, whose sockets the pod's own packet filter does not send to the sidecar.
    pub sidecar: Option<u32>,
}

impl PodFacts {
    /// A pod of which only the UID is known.
    pub(super) const fn unknown(uid: PodUid, is_exempt: bool) -> Self {
        Self {
            uid,
            container: String::new(),
            service_account: String::new(),
            node: String::new(),
            addresses: Vec::new(),
            host_network: false,
            is_exempt,
            sidecar: None,
        }
    }
}

impl Workload {
    /// Whether both are one workload: cgroups below a workload's own are parts of it, as are all containers of a pod.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (&self.pod, &other.pod) {
            (Some(own), Some(others)) => own.uid == others.uid,
            (None, None) => {
                (&self.namespace, &self.name, &self.labels) == (&other.namespace, &other.name, &other.labels)
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Whether the configuration leaves it alone.
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.is_exempt)
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
