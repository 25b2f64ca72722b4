//! Denials as Events on the pods: what `kubectl describe pod` shows to those who own them.

mod text;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value as Json, json};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

use super::{
    FIELD_MANAGER,
    aggregate::{Aggregate, Series},
};
use crate::{
    cluster::Cluster,
    policy::{
        Denial,
        fnv::{BASIS, hash},
    },
};

/// Events that are written at once when there were none for a while.
const BURST: u32 = 20;
/// How long it takes until a further one may be written: two each second, from a node.
const REFILL: Duration = Duration::from_millis(500);
/// How often what is remembered is swept.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
/// What a pod's name may take of an Event's, which has 253 bytes.
const MOST_NAME: usize = 230;

/// Tells denials until the feed is closed.
pub async fn tell_denials(cluster: Cluster, mut denials: mpsc::Receiver<Denial>) {
    let mut aggregate = Aggregate::default();
    let mut allowance = BURST;
    let mut refill = tokio::time::interval(REFILL);
    refill.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep = tokio::time::interval(SWEEP_PERIOD);
    loop {
        tokio::select! {
            denial = denials.recv() => match denial {
                Some(denial) => aggregate.add(denial, Instant::now(), Timestamp::now()),
                None => return,
            },
            _tick = refill.tick() => {
                allowance = BURST.min(allowance + 1);
                while allowance > 0 && let Some(series) = aggregate.next_due(Instant::now()) {
                    allowance -= 1;
                    write(&cluster, &series).await;
                }
            }
            _tick = sweep.tick() => aggregate.sweep(Instant::now()),
        }
    }
}

/// Failures concern the Event alone: the namespace is being deleted, or the server is away.
async fn write(cluster: &Cluster, series: &Series) {
    let event = event(series, cluster.node());
    let Some(name) = event.pointer("/metadata/name").and_then(Json::as_str) else {
        return;
    };
    let api: Api<Event> = Api::namespaced(cluster.client(), &series.denial.namespace);
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    if let Err(error) = api.patch(name, &apply, &Patch::Apply(&event)).await {
        tracing::debug!(%error, name, "an Event could not be written");
    }
}

fn event(series: &Series, node: &str) -> Json {
    let denial = &series.denial;
    let message = text::message(series);
    // The same denial is the same Event, whoever tells it: its count grows, and `kubectl get events` has one line.
    let what = format!("{}|{}", denial.uid, text::subject(series));
    let pod: String = denial.pod.chars().take(MOST_NAME).collect();
    let pod = pod.trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{pod}.{:016x}", hash(what.as_bytes(), BASIS)),
            "namespace": denial.namespace,
        },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": denial.namespace,
            "name": denial.pod,
            "uid": denial.uid,
        },
        "type": if denial.enforced { "Warning" } else { "Normal" },
        "reason": if denial.enforced { "EgressDenied" } else { "EgressAudited" },
        "message": message,
        "count": series.count,
        "firstTimestamp": format!("{:.0}", series.first),
        "lastTimestamp": format!("{:.0}", series.last),
        "source": {"component": FIELD_MANAGER, "host": node},
    })
}

#[cfg(test)]
mod tests;
