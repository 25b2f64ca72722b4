//! The pods of this node and the namespaces of the cluster: a pure index, fed by what a watch tells.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PodUid, Workload, exempt::Exemptions, pod::Pod, workload::PodFacts};

/// Labels of a namespace.
pub(super) type Labels = BTreeMap<String, String>;

/// The index.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    exemptions: Exemptions,
    pods: HashMap<PodUid, Entry>,
    /// Hash of a static pod -> the objects that claim it, oldest first. Anybody can write the annotations that claim it,
    /// but not before the kubelet did.
    hashes: HashMap<PodUid, BTreeSet<(Option<Timestamp>, PodUid)>>,
    namespaces: HashMap<String, Labels>,
    /// Namespaces that are gone but have pods left.
    gone_namespaces: BTreeSet<String>,
    /// While a list is under way: what it has named so far.
    listed_pods: Option<HashSet<PodUid>>,
    listed_namespaces: Option<HashSet<String>>,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    /// `None` as long as its namespace is not known: a policy that selects namespaces could not be heeded.
    workload: Option<Arc<Workload>>,
    /// Deleted in the API server. Its processes may outlive it (`kubectl delete --force`), and are judged as before.
    is_gone: bool,
}

/// What an index keeps for the next start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Remembered {
    pods: Vec<Pod>,
    namespaces: BTreeMap<String, Labels>,
}

/// What a report has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that anybody asks for.
    Nothing,
    /// Somebody has become known, or more of them.
    Known,
    /// Somebody is not what verdicts have taken them for.
    Judged,
}

impl Change {
    fn between(before: Option<&Workload>, now: Option<&Workload>) -> Self {
        let judged = |workload: &Workload| {
            (
                workload.labels.clone(),
                workload.namespace_labels.clone(),
                workload.is_exempt(),
            )
        };
        match before {
            Some(before) if now.map(judged) != Some(judged(before)) => Self::Judged,
            Some(_) | None => Self::Known,
        }
    }
}

impl PodIndex {
    pub(super) fn new(exemptions: Exemptions) -> Self {
        Self {
            exemptions,
            ..Self::default()
        }
    }

    /// A list of all pods begins.
    pub(super) fn begin_pods(&mut self) {
        self.listed_pods = Some(HashSet::new());
    }

    /// A pod is there or has changed.
    pub(super) fn apply_pod(&mut self, pod: Pod) -> Change {
        let uid = pod.uid;
        if let Some(listed) = &mut self.listed_pods {
            listed.insert(uid);
        }
        if let Some(known) = self.pods.get_mut(&uid)
            && known.pod == pod
        {
            known.is_gone = false;
            return Change::Nothing;
        }
        let before = self.remove(uid).and_then(|entry| entry.workload);
        if let Some(hash) = pod.hash {
            self.hashes.entry(hash).or_default().insert((pod.created, uid));
        }
        let workload = self.workload_of(&pod);
        let change = Change::between(before.as_deref(), workload.as_deref());
        self.pods.insert(
            uid,
            Entry {
                pod,
                workload,
                is_gone: false,
            },
        );
        change
    }

    /// A pod is gone from the API server: it stays known until [`Self::forget`].
    pub(super) fn delete_pod(&mut self, uid: PodUid) {
        if let Some(entry) = self.pods.get_mut(&uid) {
            entry.is_gone = true;
        }
    }

    /// The list is whole: what it did not name is gone.
    pub(super) fn end_pods(&mut self) {
        let Some(listed) = self.listed_pods.take() else {
            return;
        };
        for (uid, entry) in &mut self.pods {
            entry.is_gone |= !listed.contains(uid);
        }
    }

    /// A list of all namespaces begins.
    pub(super) fn begin_namespaces(&mut self) {
        self.listed_namespaces = Some(HashSet::new());
    }

    /// A namespace is there or its labels have changed.
    pub(super) fn apply_namespace(&mut self, name: &str, labels: Labels) -> Change {
        if let Some(listed) = &mut self.listed_namespaces {
            listed.insert(name.to_owned());
        }
        self.gone_namespaces.remove(name);
        if self.namespaces.get(name) == Some(&labels) {
            return Change::Nothing;
        }
        let is_new = self.namespaces.insert(name.to_owned(), labels).is_none();
        let members: Vec<PodUid> = self.members(name).collect();
        let change = match (members.is_empty(), is_new) {
            (true, _) => Change::Nothing,
            (false, true) => Change::Known,
            (false, false) => Change::Judged,
        };
        for uid in members {
            let workload = self.pods.get(&uid).and_then(|entry| self.workload_of(&entry.pod));
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.workload = workload;
            }
        }
        change
    }

    /// A namespace is gone. Its last labels hold for the pods that are left of it.
    pub(super) fn delete_namespace(&mut self, name: &str) {
        if self.members(name).next().is_none() {
            self.namespaces.remove(name);
            self.gone_namespaces.remove(name);
        } else {
            self.gone_namespaces.insert(name.to_owned());
        }
    }

    /// The list is whole.
    pub(super) fn end_namespaces(&mut self) {
        let Some(listed) = self.listed_namespaces.take() else {
            return;
        };
        let gone: Vec<String> = self
            .namespaces
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.delete_namespace(&name);
        }
    }

    /// The workload of a pod's cgroup, without its container.
    pub(super) fn workload(&self, uid: PodUid) -> Option<&Arc<Workload>> {
        self.entry(uid)?.workload.as_ref()
    }

    /// What a container is called.
    pub(super) fn container(&self, uid: PodUid, id: &str) -> Option<&str> {
        self.entry(uid)?.pod.containers.get(id).map(String::as_str)
    }

    /// Whether a pod is known as the mirror of a static one.
    pub(super) fn is_static(&self, uid: PodUid) -> bool {
        self.pods.get(&uid).is_some_and(|entry| entry.pod.hash.is_some())
    }

    /// Whether pods are kept that the API server has no more.
    pub(super) fn has_gone(&self) -> bool {
        self.pods.values().any(|entry| entry.is_gone)
    }

    /// Forgets the pods that are gone, but those that still have a cgroup.
    pub(super) fn forget(&mut self, alive: &HashSet<PodUid>) {
        let dead: Vec<PodUid> = self
            .pods
            .iter()
            .filter(|(uid, entry)| {
                let has_cgroup =
                    alive.contains(uid) || entry.pod.hash.is_some_and(|hash| alive.contains(&hash));
                entry.is_gone && !has_cgroup
            })
            .map(|(uid, _)| *uid)
            .collect();
        for uid in dead {
            self.remove(uid);
        }
        for name in self.gone_namespaces.clone() {
            self.delete_namespace(&name);
        }
    }

    /// Those that are there, as workloads.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let there = self.pods.values().filter(|entry| !entry.is_gone);
        there.filter_map(|entry| entry.workload.as_ref())
    }

    /// What is to be kept for the next start: the pods that are there, and the labels of their namespaces.
    pub(super) fn to_keep(&self) -> Remembered {
        let pods = self.pods.values().filter(|entry| !entry.is_gone);
        let pods: Vec<Pod> = pods.map(|entry| entry.pod.clone()).collect();
        let namespaces = pods.iter().filter_map(|pod| {
            let labels = self.namespaces.get(&pod.namespace)?;
            Some((pod.namespace.clone(), labels.clone()))
        });
        Remembered {
            namespaces: namespaces.collect(),
            pods,
        }
    }

    /// Takes in what was kept. The lists that come take its place.
    pub(super) fn recall(&mut self, remembered: Remembered) {
        for (name, labels) in remembered.namespaces {
            self.apply_namespace(&name, labels);
        }
        for pod in remembered.pods {
            self.apply_pod(pod);
        }
    }

    /// How many pods are known.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// How many of them are exempt.
    pub(super) fn exempt(&self) -> usize {
        let workloads = self.pods.values().filter_map(|entry| entry.workload.as_ref());
        workloads.filter(|workload| workload.is_exempt()).count()
    }

    fn entry(&self, uid: PodUid) -> Option<&Entry> {
        if !uid.is_hash() {
            return self.pods.get(&uid);
        }
        let claims = || self.hashes.get(&uid).into_iter().flatten();
        let mut entries = claims().filter_map(|(_created, uid)| self.pods.get(uid));
        entries
            .find(|entry| !entry.is_gone)
            .or_else(|| claims().find_map(|(_created, uid)| self.pods.get(uid)))
    }

    fn members(&self, namespace: &str) -> impl Iterator<Item = PodUid> {
        self.pods
            .iter()
            .filter(move |(_, entry)| entry.pod.namespace == namespace)
            .map(|(uid, _)| *uid)
    }

    fn remove(&mut self, uid: PodUid) -> Option<Entry> {
        let entry = self.pods.remove(&uid)?;
        if let Some(hash) = entry.pod.hash
            && let Some(claims) = self.hashes.get_mut(&hash)
        {
            claims.remove(&(entry.pod.created, uid));
            if claims.is_empty() {
                self.hashes.remove(&hash);
            }
        }
        Some(entry)
    }

    fn workload_of(&self, pod: &Pod) -> Option<Arc<Workload>> {
        let namespace_labels = self.namespaces.get(&pod.namespace)?.clone();
        Some(Arc::new(Workload {
            namespace: pod.namespace.clone(),
            namespace_labels,
            name: pod.name.clone(),
            labels: pod.labels.clone(),
            cgroup: String::new(),
            pod: Some(PodFacts {
                uid: pod.uid,
                container: String::new(),
                service_account: pod.service_account.clone(),
                node: pod.node.clone(),
                addresses: pod.addresses.clone(),
                host_network: pod.host_network,
                is_exempt: self.exemptions.cover(pod),
                sidecar: pod.sidecar,
            }),
        }))
    }
}

#[cfg(test)]
mod tests;
