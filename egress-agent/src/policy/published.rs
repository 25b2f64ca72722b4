//! The policies of the API server: both kinds watched in all namespaces, and remembered across a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    runtime::watcher::{self, Event},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    crd::{CLUSTER_EGRESS_POLICY, EGRESS_POLICY, Names},
    document::{API_GROUP, VERSION},
    memory::PolicyMemory,
    object::{ObjectKey, PolicyObject},
    objects::PolicyObjects,
    verdict::PolicyKind,
};
use crate::cluster::{self, Cluster};

/// What arrives within this time after a change is put in force together with it: `kubectl apply -f DIR` is one change
/// rather than a hundred.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often the policies are saved at most.
const SAVE_PERIOD: Duration = Duration::from_secs(2);

pub(super) type Events = Pin<Box<dyn Stream<Item = (PolicyKind, Event<DynamicObject>)> + Send>>;

/// Follows the policies of a cluster.
pub struct PublishedPolicies {
    events: Events,
    objects: PolicyObjects,
    /// Lists that are arriving: a list takes the place of what was known when it is whole, and not before.
    arriving: BTreeMap<PolicyKind, Vec<PolicyObject>>,
    /// The kinds of which a whole list has arrived.
    listed: BTreeSet<PolicyKind>,
    /// When what has changed is to be told. Kept here so that [`Self::next`] can be cancelled at any point.
    due: Option<Instant>,
    memory: Option<PolicyMemory>,
    /// From when the objects are, while they are those of the memory.
    recalled: Option<jiff::Timestamp>,
    save_due: Option<Instant>,
    saving: Option<JoinHandle<()>>,
}

/// How up to date the policies of the API server are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Knowledge {
    /// There is no API server.
    #[default]
    NotAsked,
    /// Nothing is known of them: everything is denied.
    Unknown,
    /// They are those that an agent knew at this time, before it ended.
    Recalled(jiff::Timestamp),
    /// They were listed, and are followed since.
    Followed,
}

/// How the API server names a kind in its URLs.
#[must_use]
pub fn resource(names: Names) -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(API_GROUP, VERSION, names.kind),
        names.plural,
    )
}

impl PublishedPolicies {
    /// Begins to follow. Until a first list has come, the policies are those that `memory` recalls.
    #[must_use]
    pub fn follow(cluster: &Cluster, memory: Option<PolicyMemory>) -> Self {
        let watch = |kind: PolicyKind, names: Names| {
            let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource(names));
            let events = watcher::watcher(api, cluster::watching());
            cluster::follow(names.plural, events).map(move |event| (kind, event))
        };
        let both = stream::select(
            watch(PolicyKind::EgressPolicy, EGRESS_POLICY),
            watch(PolicyKind::ClusterEgressPolicy, CLUSTER_EGRESS_POLICY),
        );
        Self::of_events(Box::pin(both), memory)
    }

    #[cfg(test)]
    pub(super) fn of_test(events: Events, memory: Option<PolicyMemory>) -> Self {
        Self::of_events(events, memory)
    }

    fn of_events(events: Events, memory: Option<PolicyMemory>) -> Self {
        let recalled = memory.as_ref().and_then(PolicyMemory::recall);
        let (objects, recalled) = match recalled {
            Some((objects, saved)) => (objects, Some(saved)),
            None => (PolicyObjects::default(), None),
        };
        Self {
            events,
            objects,
            arriving: BTreeMap::new(),
            listed: BTreeSet::new(),
            due: None,
            memory,
            recalled,
            save_due: None,
            saving: None,
        }
    }

    /// What is known.
    #[must_use]
    pub const fn objects(&self) -> &PolicyObjects {
        &self.objects
    }

    /// How much is known.
    #[must_use]
    pub fn knowledge(&self) -> Knowledge {
        match (self.is_followed(), self.recalled) {
            (true, _) => Knowledge::Followed,
            (false, Some(saved)) => Knowledge::Recalled(saved),
            (false, None) => Knowledge::Unknown,
        }
    }

    /// Waits until something has changed. Cancelling loses nothing: the next call begins where this one was.
    pub async fn next(&mut self) {
        loop {
            let wake = [self.due, self.save_due].into_iter().flatten().min();
            let event = match wake {
                Some(wake) => timeout_at(wake, self.events.next()).await,
                None => Ok(self.events.next().await),
            };
            match event {
                Ok(Some((kind, event))) => self.take(kind, event),
                // A watch is tried again for ever; this is a test's, which has said all that it had to say.
                Ok(None) if wake.is_none() => return std::future::pending().await,
                Ok(None) => tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)).await,
                Err(_elapsed) => {}
            }
            let now = Instant::now();
            if self.save_due.is_some_and(|due| due <= now) {
                self.save_due = None;
                self.save();
            }
            if self.due.is_some_and(|due| due <= now) {
                self.due = None;
                return;
            }
        }
    }

    fn take(&mut self, kind: PolicyKind, event: Event<DynamicObject>) {
        let changed = match event {
            Event::Init => {
                self.arriving.insert(kind, Vec::new());
                false
            }
            Event::InitApply(object) => {
                self.arriving
                    .entry(kind)
                    .or_default()
                    .extend(policy_object(kind, object));
                false
            }
            Event::InitDone => {
                let listed = self.arriving.remove(&kind).unwrap_or_default();
                let changed = self.objects.replace(kind, listed);
                let was_followed = self.is_followed();
                self.listed.insert(kind);
                // A first list that changes nothing is news: what is in force is no longer from memory.
                changed || was_followed != self.is_followed()
            }
            Event::Apply(object) => {
                policy_object(kind, object).is_some_and(|object| self.objects.apply(object))
            }
            Event::Delete(object) => {
                policy_object(kind, object).is_some_and(|object| self.objects.remove(&object.key))
            }
        };
        // Before both kinds are known, a set would lack denials, or allow what only they allow.
        if changed && self.is_followed() {
            let now = Instant::now();
            self.due.get_or_insert(now + TOGETHER);
            if self.memory.is_some() {
                self.save_due.get_or_insert(now + SAVE_PERIOD);
            }
        }
    }

    fn is_followed(&self) -> bool {
        self.listed.len() == 2
    }

    /// Beside the runtime, because that blocks; one at a time, so that the newest is the last.
    fn save(&mut self) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            self.save_due = Some(Instant::now() + SAVE_PERIOD);
            return;
        }
        let objects = self.objects.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = memory.save(&objects) {
                tracing::warn!(%error, "the policies cannot be kept for the next start");
            }
        }));
    }
}

impl std::fmt::Debug for PublishedPolicies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishedPolicies")
            .field("knowledge", &self.knowledge())
            .finish_non_exhaustive()
    }
}

/// The parts of an object that matter. One without a name is none that the API server would send.
#[must_use]
pub fn policy_object(kind: PolicyKind, object: DynamicObject) -> Option<PolicyObject> {
    let mut data = object.data;
    let spec = data
        .get_mut("spec")
        .map(serde_json::Value::take)
        .unwrap_or_default();
    Some(PolicyObject {
        key: ObjectKey {
            kind,
            namespace: object.metadata.namespace.unwrap_or_default(),
            name: object.metadata.name?,
        },
        uid: object.metadata.uid.unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        spec,
    })
}

#[cfg(test)]
mod tests;
