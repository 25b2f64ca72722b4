//! What a node says of itself, and how it says it: annotations of a Lease of its own.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{FIELD_MANAGER, Publisher, fingerprint::Fingerprint};
use crate::{
    identity::Workload,
    policy::{
        InForce, ObjectKey, PolicySet, PolicyStore,
        fnv::{BASIS, hash},
    },
};

/// The label of a node's Lease.
pub(super) const LABEL: &str = "egress-enforcer.io/lease";
/// Its value.
pub(super) const OF_NODE: &str = "node";
/// Which versions are in force.
const POLICIES: &str = "egress-enforcer.io/policies";
/// How many pods of the node the policies select.
const SELECTED: &str = "egress-enforcer.io/selected";
/// The agent's version.
const VERSION: &str = "egress-enforcer.io/version";

/// How often a Lease is renewed, as the kubelet renews a node's.
const RENEW: Duration = Duration::from_secs(10);
/// A node whose Lease was not renewed for so long has no agent.
pub(super) const LIFETIME: Duration = Duration::from_secs(40);
/// How often the node looks whether it has something else to say.
const LOOK: Duration = Duration::from_secs(1);
/// How long it waits after the API server has not taken what it said.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long the API server may take: it forgets a node that is silent for [`LIFETIME`].
const PATIENCE: Duration = Duration::from_secs(10);
/// Most policies whose pods are told. Each pod is selected by a few, and a node has some hundred pods.
const MOST_SELECTING: usize = 4096;

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeReport {
    /// What is in force.
    pub(super) print: Fingerprint,
    /// How many pods are selected, by the hash of the policy's UID.
    selected: BTreeMap<u64, u64>,
}

impl NodeReport {
    pub(super) fn of(set: &PolicySet, pods: &[impl AsRef<Workload>]) -> Self {
        let objects = &set.origin().objects;
        let uids: BTreeMap<&ObjectKey, &str> = objects
            .iter()
            .filter(|fact| fact.in_force != InForce::FileInstead)
            .map(|fact| (&fact.key, fact.uid.as_str()))
            .collect();
        let mut selected = BTreeMap::new();
        for pod in pods.iter().map(AsRef::as_ref).filter(|pod| !pod.is_exempt()) {
            for uid in set.selecting(pod).filter_map(|key| uids.get(key)) {
                *selected.entry(hash(uid.as_bytes(), BASIS)).or_default() += 1;
            }
        }
        while selected.len() > MOST_SELECTING {
            selected.pop_last();
        }
        Self {
            print: Fingerprint::of(objects),
            selected,
        }
    }

    /// How many of the node's pods the policy with this UID selects.
    pub(super) fn pods(&self, uid: &str) -> u64 {
        let hash = hash(uid.as_bytes(), BASIS);
        self.selected.get(&hash).copied().unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn for_test(print: Fingerprint, selected: &[(&str, u64)]) -> Self {
        let selected = selected
            .iter()
            .map(|(uid, pods)| (hash(uid.as_bytes(), BASIS), *pods));
        Self {
            print,
            selected: selected.collect(),
        }
    }

    fn selected_text(&self) -> String {
        let pairs = self
            .selected
            .iter()
            .map(|(hash, pods)| format!("{hash:016x}:{pods}"));
        pairs.collect::<Vec<_>>().join(",")
    }

    /// What the Lease of another node says; `None` if it is no agent's, or one of another version that says it otherwise.
    pub(super) fn read(lease: &Lease) -> Option<Self> {
        let annotations = lease.metadata.annotations.as_ref()?;
        let selected = annotations
            .get(SELECTED)?
            .split(',')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (hash, pods) = pair.split_once(':')?;
                Some((u64::from_str_radix(hash, 16).ok()?, pods.parse().ok()?))
            });
        Some(Self {
            print: Fingerprint::parse(annotations.get(POLICIES)?)?,
            selected: selected.collect::<Option<_>>()?,
        })
    }

    pub(super) fn lease(&self, node: &str, now: jiff::Timestamp) -> serde_json::Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": node,
                "labels": {LABEL: OF_NODE},
                "annotations": {
                    POLICIES: self.print.to_text(),
                    SELECTED: self.selected_text(),
                    VERSION: env!("CARGO_PKG_VERSION"),
                },
            },
            "spec": {
                "holderIdentity": node,
                "leaseDurationSeconds": LIFETIME.as_secs(),
                // MicroTime wants its six digits.
                "renewTime": format!("{now:.6}"),
            },
        })
    }
}

impl Publisher {
    /// Says for ever what is in force on this node: when it changes, and every few seconds.
    pub async fn report(&self, store: &PolicyStore) {
        let api: Api<Lease> = Api::namespaced(self.cluster.client(), &self.namespace);
        let node = self.cluster.node();
        let mut changes = store.changes();
        let mut said: Option<(NodeReport, Instant)> = None;
        loop {
            let report = NodeReport::of(&store.load(), &(self.pods)());
            let is_said = said
                .as_ref()
                .is_some_and(|(last, at)| *last == report && at.elapsed() < RENEW);
            if !is_said {
                let lease = report.lease(node, jiff::Timestamp::now());
                let apply = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(&lease);
                let told = timeout(PATIENCE, api.patch(node, &apply, &patch)).await;
                match told.map_err(anyhow::Error::from).and_then(|told| Ok(told?)) {
                    Ok(_) => said = Some((report, Instant::now())),
                    Err(error) => {
                        // Whether the server answers at all is told elsewhere; a refusal is somebody's to mend.
                        tracing::debug!(%error, "what is in force on this node could not be told");
                        said = None;
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
                // Not more often than this, whatever happens.
                tokio::time::sleep(LOOK / 4).await;
            }
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
