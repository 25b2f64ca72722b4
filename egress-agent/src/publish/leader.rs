//! What the leader does: it writes the status of the policies, from what the nodes say.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    FIELD_MANAGER, Publisher,
    lease::{self, Candidate},
    node::{self, NodeReport},
    status::status_of,
};
use crate::{
    cluster,
    policy::{
        Knowledge, ObjectFact, ObjectKey, PolicyKind, PolicyStore,
        crd::{CLUSTER_EGRESS_POLICY, EGRESS_POLICY, Names},
        document::API_VERSION,
        object_status::ObjectStatus,
        resource,
    },
};

/// How often statuses are worked out.
const PERIOD: Duration = Duration::from_secs(1);
/// Most statuses that are written in a period.
const MOST_WRITES: usize = 20;
/// A status in which nothing but the number of pods has changed is written so often at most: pods come and go.
const PODS_PERIOD: Duration = Duration::from_secs(10);
/// How often all statuses are read again: somebody else may have changed one.
const REREAD_PERIOD: Duration = Duration::from_secs(600);
/// The Lease of a node that has been silent for so long is removed.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The nodes as their Leases tell.
#[derive(Debug, Default)]
struct Nodes {
    known: BTreeMap<String, Known>,
    /// The list that is arriving.
    listed: Vec<String>,
}

/// What a node says.
#[derive(Debug)]
struct Known {
    report: NodeReport,
    /// When it renewed its Lease, by its own clock: only ever compared with itself, but for a node that is new here.
    renewed: Option<Timestamp>,
    /// When it was last heard of.
    heard: Instant,
}

/// A status as it was read or written last.
#[derive(Debug)]
struct Written {
    status: ObjectStatus,
    at: Instant,
}

impl Publisher {
    /// Tries for ever to lead, and leads while it can.
    pub async fn lead(&self, store: &PolicyStore) {
        let leases = || Api::namespaced(self.cluster.client(), &self.namespace);
        let mut candidate = Candidate::new(leases(), self.cluster.node());
        loop {
            if let Ok(true) = candidate.try_hold().await {
                tracing::info!("this agent writes the status of the policies");
                tokio::select! {
                    () = hold(&mut candidate) => tracing::info!("another agent writes the status of the policies"),
                    // Dropped at once when the lead is lost.
                    () = self.write_statuses(store, leases()) => {}
                }
            }
            tokio::time::sleep(lease::RENEW).await;
        }
    }

    /// Never ends.
    async fn write_statuses(&self, store: &PolicyStore, leases: Api<Lease>) {
        let of_nodes = cluster::watching().labels(&format!("{}={}", node::LABEL, node::OF_NODE));
        let watch = cluster::follow("leases", watcher::watcher(leases.clone(), of_nodes));
        let mut watch = std::pin::pin!(watch);
        let mut nodes = Nodes::default();
        let mut written = BTreeMap::new();
        let mut reread = tokio::time::interval(REREAD_PERIOD);
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut position = None;
        loop {
            tokio::select! {
                Some(event) = watch.next() => nodes.take(event),
                _tick = reread.tick() => {
                    match self.read_statuses().await {
                        Ok(read) => written = read,
                        Err(error) => tracing::debug!(%error, "the statuses of the policies cannot be read"),
                    }
                    self.remove_forgotten(&leases).await;
                }
                _tick = period.tick() => position = self.write_some(store, &nodes, &mut written, position).await,
            }
        }
    }

    /// Writes statuses that are not as they should be, those after `position` first. Tells where it has stopped, if it has
    /// left some.
    async fn write_some(
        &self,
        store: &PolicyStore,
        nodes: &Nodes,
        written: &mut BTreeMap<String, Written>,
        position: Option<ObjectKey>,
    ) -> Option<ObjectKey> {
        let set = store.load();
        let origin = set.origin();
        if origin.knowledge != Knowledge::Followed {
            return None;
        }
        let own = super::fingerprint::Fingerprint::of(&origin.objects);
        let (now, instant) = (Timestamp::now(), Instant::now());
        let after = |fact: &&ObjectFact| position.as_ref().is_some_and(|position| fact.key > *position);
        let later = origin.objects.iter().filter(after);
        let earlier = origin.objects.iter().filter(|fact| !after(fact));
        let mut writes = 0;
        let mut last = position.clone();
        for fact in later.chain(earlier) {
            let before = written.get(&fact.uid);
            let status = status_of(
                fact,
                &own,
                nodes.alive(instant),
                before.map(|written| &written.status),
                now,
            );
            if before.is_some_and(|before| before.will_do(&status, instant)) {
                continue;
            }
            if writes == MOST_WRITES {
                return last;
            }
            writes += 1;
            last = Some(fact.key.clone());
            match self.write(&fact.key, &status).await {
                Ok(()) => {
                    let at = instant;
                    written.insert(fact.uid.clone(), Written { status, at });
                }
                Err(error) => {
                    tracing::debug!(%error, policy = %fact.key, "the status could not be written");
                    // Tried again in its turn, when the others have had theirs.
                    return last;
                }
            }
        }
        None
    }

    async fn write(&self, key: &ObjectKey, status: &ObjectStatus) -> kube::Result<()> {
        let mut metadata = json!({"name": key.name});
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        let object = json!({
            "apiVersion": API_VERSION,
            "kind": key.kind.as_str(),
            "metadata": metadata,
            "status": status,
        });
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let written = self
            .objects(key.kind, Some(&key.namespace))
            .patch_status(&key.name, &apply, &Patch::Apply(&object))
            .await;
        match written {
            // Deleted meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn read_statuses(&self) -> kube::Result<BTreeMap<String, Written>> {
        let mut read = BTreeMap::new();
        for kind in [PolicyKind::EgressPolicy, PolicyKind::ClusterEgressPolicy] {
            for object in self.objects(kind, None).list(&ListParams::default()).await? {
                let status = object.data.get("status").cloned().unwrap_or_default();
                if let (Some(uid), Ok(status)) = (object.metadata.uid, serde_json::from_value(status)) {
                    let at = Instant::now();
                    read.insert(uid, Written { status, at });
                }
            }
        }
        Ok(read)
    }

    fn objects(&self, kind: PolicyKind, namespace: Option<&str>) -> Api<DynamicObject> {
        let of = |names: Names| resource(names);
        match (kind, namespace) {
            (PolicyKind::EgressPolicy, Some(namespace)) => {
                Api::namespaced_with(self.cluster.client(), namespace, &of(EGRESS_POLICY))
            }
            (PolicyKind::EgressPolicy, None) => Api::all_with(self.cluster.client(), &of(EGRESS_POLICY)),
            (PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine, _) => {
                Api::all_with(self.cluster.client(), &of(CLUSTER_EGRESS_POLICY))
            }
        }
    }

    /// Removes the Leases of nodes that are gone for good.
    async fn remove_forgotten(&self, leases: &Api<Lease>) {
        let of_nodes = ListParams::default().labels(&format!("{}={}", node::LABEL, node::OF_NODE));
        let Ok(listed) = leases.list(&of_nodes).await else {
            return;
        };
        for lease in listed {
            let renewed = lease.spec.and_then(|spec| spec.renew_time);
            let age = renewed.map(|time| Timestamp::now().duration_since(time.0).unsigned_abs());
            if let Some(name) = lease.metadata.name
                && age.is_none_or(|age| age > FORGOTTEN)
                && let Err(error) = leases.delete(&name, &DeleteParams::default()).await
            {
                tracing::debug!(%error, name, "the Lease of a node that is gone cannot be removed");
            }
        }
    }
}

/// Renews the lead until it is lost.
async fn hold(candidate: &mut Candidate) {
    let mut last = Instant::now();
    while last.elapsed() < lease::LIFETIME {
        tokio::time::sleep(lease::RENEW).await;
        match candidate.try_hold().await {
            Ok(true) => last = Instant::now(),
            Ok(false) => return,
            Err(error) => tracing::debug!(%error, "the lead cannot be renewed"),
        }
    }
}

impl Nodes {
    fn take(&mut self, event: Event<Lease>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(lease) => {
                self.listed.extend(lease.metadata.name.clone());
                self.hear(&lease);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.known.retain(|name, _| listed.contains(name));
            }
            Event::Apply(lease) => self.hear(&lease),
            Event::Delete(lease) => {
                if let Some(name) = lease.metadata.name {
                    self.known.remove(&name);
                }
            }
        }
    }

    /// Takes in what a Lease says. A list has those of dead nodes as well, so what counts is whether it was renewed since.
    fn hear(&mut self, lease: &Lease) {
        let (Some(name), Some(report)) = (&lease.metadata.name, NodeReport::read(lease)) else {
            return;
        };
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
        let renewed = renewed.map(|time| time.0);
        let heard = match self.known.get(name) {
            Some(known) if known.renewed == renewed => known.heard,
            Some(_) => Instant::now(),
            None => first_heard(renewed, Timestamp::now()),
        };
        let known = Known {
            report,
            renewed,
            heard,
        };
        self.known.insert(name.clone(), known);
    }

    fn alive(&self, now: Instant) -> impl Iterator<Item = &NodeReport> {
        self.known
            .values()
            .filter(move |known| now.saturating_duration_since(known.heard) < node::LIFETIME)
            .map(|known| &known.report)
    }
}

/// When a node was heard of whose Lease is seen for the first time: as long ago as it says. If its clock or ours is wrong
/// it counts for too long by no more than a lifetime, or is missed until it renews.
fn first_heard(renewed: Option<Timestamp>, now: Timestamp) -> Instant {
    let age = renewed.map_or(node::LIFETIME, |renewed| {
        Duration::try_from(now.duration_since(renewed)).unwrap_or_default()
    });
    let instant = Instant::now();
    // Not before the beginning of the clock, if the machine has just started.
    instant.checked_sub(age.min(node::LIFETIME)).unwrap_or(instant)
}

impl Written {
    /// Whether it can stay for now where it should be `wanted`.
    fn will_do(&self, wanted: &ObjectStatus, now: Instant) -> bool {
        let but_pods = ObjectStatus {
            pods: self.status.pods,
            ..wanted.clone()
        };
        let is_recent = now.saturating_duration_since(self.at) < PODS_PERIOD;
        self.status == *wanted || (self.status == but_pods && is_recent)
    }
}

#[cfg(test)]
mod tests;
