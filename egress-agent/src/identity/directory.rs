//! The pods of this node as they are known now, and the watch that keeps them so.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    PodUid, Workload,
    changes::{Changes, Gathered},
    exempt::Exemptions,
    memory::{self, PodMemory},
    pod::{self, Pod},
    pods::{Change, PodIndex, Remembered},
    workload::PodFacts,
};
use crate::cluster::{self, Cluster};

/// The pods of this node. Whoever asks takes a read lock for a look-up in a hash table.
#[derive(Debug)]
pub struct PodDirectory {
    index: RwLock<PodIndex>,
    /// A number that changes with everything that could change an answer.
    version: watch::Sender<u64>,
    /// The same for what could change a verdict.
    judged: watch::Sender<u64>,
    /// The UIDs of those pods.
    changed: Gathered<PodUid>,
    /// Whether pods and namespaces have been listed whole, once.
    listed: watch::Sender<(bool, bool)>,
    /// From when those are that an agent before this one has known.
    recalled: OnceLock<jiff::Timestamp>,
}

/// What is known, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodCounts {
    /// Pods of this node.
    pub pods: usize,
    /// Those that the configuration leaves alone.
    pub exempt: usize,
    /// Pods and namespaces have been listed at least once.
    pub is_listed: bool,
    /// As long as they have not: from when the pods are that are known.
    pub recalled_from: Option<jiff::Timestamp>,
}

/// Keeps a [`PodDirectory`] up to date until it is dropped.
#[derive(Debug)]
pub struct PodWatch {
    tasks: JoinSet<()>,
}

impl PodDirectory {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(exemptions: Exemptions) -> Arc<Self> {
        Arc::new(Self {
            index: RwLock::new(PodIndex::new(exemptions)),
            version: watch::Sender::default(),
            judged: watch::Sender::default(),
            changed: Gathered::default(),
            listed: watch::Sender::default(),
            recalled: OnceLock::new(),
        })
    }

    /// Begins to follow the API server: the pods of this node, and the labels of all namespaces. Until they are listed the
    /// pods are those that `memory` recalls. Must be called inside a runtime.
    #[must_use]
    pub fn follow(self: &Arc<Self>, cluster: &Cluster, memory: Option<PodMemory>) -> PodWatch {
        let mut tasks = JoinSet::new();
        if let Some(memory) = memory {
            if let Some((remembered, saved)) = memory.recall() {
                self.write().recall(remembered);
                let _nobody_else_sets_it = self.recalled.set(saved);
            }
            let _kept: AbortHandle = tasks.spawn(memory::keep(Arc::clone(self), memory));
        }
        let mine = cluster::watching().fields(&format!("spec.nodeName={}", cluster.node()));
        let pods = watcher::watcher(Api::<PodObject>::all(cluster.client()), mine);
        let namespaces = watcher::watcher(
            Api::<PartialObjectMeta<Namespace>>::all(cluster.client()),
            cluster::watching(),
        );
        let pods = cluster::follow("pods", pods);
        let namespaces = cluster::follow("namespaces", namespaces);
        let (first, second) = (Arc::clone(self), Arc::clone(self));
        let _followed: AbortHandle = tasks.spawn(async move {
            let mut pods = std::pin::pin!(pods);
            while let Some(event) = pods.next().await {
                first.take_pod(event);
            }
        });
        let _followed: AbortHandle = tasks.spawn(async move {
            let mut namespaces = std::pin::pin!(namespaces);
            while let Some(event) = namespaces.next().await {
                second.take_namespace(event);
            }
        });
        PodWatch { tasks }
    }

    /// Waits until everything has been listed once.
    pub async fn listed(&self) {
        let mut listed = self.listed.subscribe();
        // The sender is our own.
        drop(
            listed
                .wait_for(|listed| *listed == (true, true))
                .await
                .map(|_| ()),
        );
    }

    /// Tells of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Tells of changes to workloads that verdicts depend on: labels and exemptions.
    #[must_use]
    pub fn judged_changes(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// Whose cgroups may have another answer than at the last call. For one reader.
    pub(super) fn take_changed(&self) -> Changes<PodUid> {
        self.changed.take()
    }

    /// How many changes there have been.
    #[must_use]
    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// The workload of a pod, in one of its containers if that is known.
    #[must_use]
    pub fn workload(&self, uid: PodUid, container: Option<&str>, cgroup: &str) -> Option<Workload> {
        let index = self.read();
        let workload = index.workload(uid)?;
        let container = container
            .and_then(|id| index.container(uid, id))
            .unwrap_or_default();
        Some(Workload {
            cgroup: cgroup.to_owned(),
            pod: workload.pod.as_ref().map(|pod| PodFacts {
                container: container.to_owned(),
                ..pod.clone()
            }),
            ..Workload::clone(workload)
        })
    }

    /// The workloads of all pods that the API server has.
    #[must_use]
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.read().workloads().cloned().collect()
    }

    /// What is known.
    #[must_use]
    pub fn counts(&self) -> PodCounts {
        let index = self.read();
        PodCounts {
            pods: index.len(),
            exempt: index.exempt(),
            is_listed: self.is_listed(),
            recalled_from: self.recalled.get().filter(|_| !self.is_listed()).copied(),
        }
    }

    /// What is to be kept for the next start.
    pub(super) fn to_keep(&self) -> Remembered {
        self.read().to_keep()
    }

    fn is_listed(&self) -> bool {
        *self.listed.borrow() == (true, true)
    }

    /// Whether pods are kept that the API server has no more.
    #[must_use]
    pub fn has_gone(&self) -> bool {
        self.read().has_gone()
    }

    /// Forgets the pods that the API server has no more, but those that have a cgroup still.
    pub fn forget(&self, alive: &HashSet<PodUid>) {
        self.write().forget(alive);
    }

    pub(super) fn take_pod(&self, event: Event<PodObject>) {
        let mut index = self.write();
        let mut touched = None;
        let change = match event {
            Event::Init => {
                index.begin_pods();
                Change::Nothing
            }
            Event::InitApply(object) | Event::Apply(object) => match Pod::read(&object) {
                Ok(pod) => {
                    // A static pod's cgroups bear another UID, which other objects may claim too.
                    let is_static = pod.hash.is_some() || index.is_static(pod.uid);
                    touched = (!is_static).then_some(pod.uid);
                    index.apply_pod(pod)
                }
                Err(error) => {
                    tracing::error!(%error, name = object.metadata.name, "the API server sent what is no pod");
                    Change::Nothing
                }
            },
            Event::Delete(object) => {
                if let Some(uid) = pod::uid_of(&object) {
                    index.delete_pod(uid);
                }
                Change::Nothing
            }
            Event::InitDone => {
                index.end_pods();
                tracing::debug!(pods = index.len(), "the pods of this node are known");
                self.listed.send_modify(|listed| listed.0 = true);
                Change::Nothing
            }
        };
        drop(index);
        self.tell(change, touched);
    }

    pub(super) fn take_namespace(&self, event: Event<PartialObjectMeta<Namespace>>) {
        let mut index = self.write();
        let change = match event {
            Event::Init => {
                index.begin_namespaces();
                Change::Nothing
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let labels = object.meta().labels.clone().unwrap_or_default();
                let name = object.meta().name.as_deref();
                name.map_or(Change::Nothing, |name| index.apply_namespace(name, labels))
            }
            Event::Delete(object) => {
                if let Some(name) = &object.meta().name {
                    index.delete_namespace(name);
                }
                Change::Nothing
            }
            Event::InitDone => {
                index.end_namespaces();
                self.listed.send_modify(|listed| listed.1 = true);
                Change::Nothing
            }
        };
        drop(index);
        self.tell(change, None);
    }

    /// `pod` is the only one that can be concerned, or there may be others.
    fn tell(&self, change: Change, pod: Option<PodUid>) {
        if change != Change::Nothing {
            // Under the version's lock: whoever takes the change finds the new version, and is woken after it is there.
            self.version.send_modify(|version| {
                *version += 1;
                match pod {
                    Some(pod) => self.changed.add(pod),
                    None => self.changed.add_all(),
                }
            });
        }
        if change == Change::Judged {
            self.judged.send_modify(|version| *version += 1);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, PodIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, PodIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodWatch {
    /// Waits until it ends, which it does only if it panics.
    pub async fn ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a watch of the API server has ended");
            }
        }
    }
}

#[cfg(test)]
mod tests;
