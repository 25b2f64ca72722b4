//! What the agent tells the API server: what is in force on its node, the status of the policies, denials.
//!
//! Every node keeps a Lease of its own, with what its policies are in a few bytes. One of the agents is the leader, by a
//! Lease too, and writes the status of the policies for all; the others write nothing but their own.

mod aggregate;
mod denials;
mod fingerprint;
mod leader;
mod lease;
mod node;
mod status;

pub use denials::tell_denials;
pub use lease::own_namespace;

use std::{fmt, sync::Arc};

use crate::{cluster::Cluster, identity::Workload};

/// Who puts down what the agents write, for server-side apply.
const FIELD_MANAGER: &str = "egress-enforcer";

/// One agent among those of the cluster.
#[derive(Clone)]
pub struct Publisher {
    cluster: Cluster,
    /// Where the Leases are.
    namespace: Arc<str>,
    pods: Arc<dyn Fn() -> Vec<Arc<Workload>> + Send + Sync>,
}

impl Publisher {
    /// An agent that keeps its Leases in `namespace`, and finds the pods of its node by `pods`.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        namespace: &str,
        pods: impl Fn() -> Vec<Arc<Workload>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            cluster,
            namespace: namespace.into(),
            pods: Arc::new(pods),
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("cluster", &self.cluster)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
