//! Against an API server in memory: what the watch asks, and what becomes of its answers.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

const UID: &str = "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55";

type Bytes = bytes::Bytes;
type Reply = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// Answers lists at once and lets the test speak in watches.
#[derive(Clone, Default)]
struct Server {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: Vec<String>,
    pods: Vec<Value>,
    /// What lists of pods are refused with first.
    refusals: VecDeque<u16>,
    watches: Vec<mpsc::Sender<Value>>,
}

impl Server {
    fn cluster(&self) -> Cluster {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let reply = server.reply(&request);
            async move { Ok::<_, std::convert::Infallible>(reply) }
        });
        Cluster::with_client(Client::new(service, "default"), "n1")
    }

    fn reply(&self, request: &Request<Body>) -> Reply {
        let mut state = self.state.lock().unwrap();
        let asked = request.uri().to_string();
        state.asked.push(asked.clone());
        let is_pods = asked.starts_with("/api/v1/pods?");
        if asked.contains("watch=true") {
            let (sender, receiver) = mpsc::channel::<Value>(8);
            if is_pods {
                state.watches.push(sender);
            } else {
                // Nothing happens to namespaces; the watch stays open.
                std::mem::forget(sender);
            }
            let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let line = format!("{}\n", receiver.recv().await?);
                Some((Ok(Frame::data(Bytes::from(line))), receiver))
            });
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        if is_pods && let Some(status) = state.refusals.pop_front() {
            return Response::builder()
                .status(status)
                .body(whole(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "no", "code": status})))
                .unwrap();
        }
        let (kind, items) = if is_pods {
            ("PodList", state.pods.clone())
        } else {
            let namespace = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "team", "labels": {"tier": "front"}}});
            ("PartialObjectMetadataList", vec![namespace])
        };
        Response::new(whole(
            &json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": items}),
        ))
    }

    /// Says something in the newest watch of pods, once there is one.
    async fn say(&self, kind: &str, object: Value) {
        let sender = loop {
            let newest = self.state.lock().unwrap().watches.last().cloned();
            match newest {
                Some(sender) => break sender,
                None => tokio::task::yield_now().await,
            }
        };
        sender
            .send(json!({"type": kind, "object": object}))
            .await
            .unwrap();
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
}

fn whole(value: &Value) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    body.map_err(|never| match never {}).boxed_unsync()
}

fn pod(app: &str, version: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"uid": UID, "namespace": "team", "name": "web", "labels": {"app": app}, "resourceVersion": version},
        "spec": {"containers": [], "nodeName": "n1"}
    })
}

/// Waits until the directory says so; the paused clock makes the bound one of virtual time.
async fn until(directory: &PodDirectory, holds: impl Fn(Option<&Workload>) -> bool) {
    let mut changes = directory.changes();
    let waited = async {
        while !holds(directory.workload(UID.parse().unwrap(), None, "/x").as_ref()) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waited)
        .await
        .unwrap();
}

fn app_is(app: &str) -> impl Fn(Option<&Workload>) -> bool {
    move |workload| {
        workload.is_some_and(|workload| workload.labels.get("app").is_some_and(|found| found == app))
    }
}

#[tokio::test(start_paused = true)]
async fn the_pods_of_this_node_alone_are_followed() {
    let server = Server::default();
    server.state.lock().unwrap().pods = vec![pod("first", "9")];
    let directory = PodDirectory::new(Exemptions::default());
    let _watch = directory.follow(&server.cluster(), None);
    directory.listed().await;
    until(&directory, app_is("first")).await;
    server.say("MODIFIED", pod("second", "11")).await;
    until(&directory, app_is("second")).await;
    assert!(directory.counts().is_listed);
    for asked in server
        .asked()
        .iter()
        .filter(|asked| asked.starts_with("/api/v1/pods"))
    {
        assert!(asked.contains("fieldSelector=spec.nodeName%3Dn1"), "{asked}");
    }
    let workload = directory.workload(UID.parse().unwrap(), None, "/x").unwrap();
    assert_eq!(workload.namespace_labels["tier"], "front");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_is_asked_again_and_again() {
    let server = Server::default();
    {
        let mut state = server.state.lock().unwrap();
        state.pods = vec![pod("first", "9")];
        state.refusals = vec![403, 403, 403, 500].into();
    }
    let directory = PodDirectory::new(Exemptions::default());
    let _watch = directory.follow(&server.cluster(), None);
    until(&directory, app_is("first")).await;
}

/// What is known stays known; what happened meanwhile is learned from a new list.
#[tokio::test(start_paused = true)]
async fn a_watch_that_has_fallen_behind_begins_with_a_list() {
    let server = Server::default();
    server.state.lock().unwrap().pods = vec![pod("first", "9")];
    let directory = PodDirectory::new(Exemptions::default());
    let _watch = directory.follow(&server.cluster(), None);
    until(&directory, app_is("first")).await;
    server.state.lock().unwrap().pods = vec![pod("missed", "99")];
    let expired = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
    server.say("ERROR", expired).await;
    assert!(directory.workload(UID.parse().unwrap(), None, "/x").is_some());
    until(&directory, app_is("missed")).await;
}

/// An agent that starts while the server is away knows the pods that the last one knew, and the server has the last word.
#[tokio::test]
async fn the_pods_are_remembered_for_a_start_without_a_server() {
    let state = tempfile::tempdir().unwrap();
    let memory = || PodMemory::in_directory(state.path());
    let server = Server::default();
    server.state.lock().unwrap().pods = vec![pod("first", "9")];
    let directory = PodDirectory::new(Exemptions::default());
    let watch = directory.follow(&server.cluster(), Some(memory()));
    until(&directory, app_is("first")).await;
    directory.listed().await;
    assert_eq!(directory.counts().recalled_from, None);
    while memory().recall().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(watch);

    let away = Server::default();
    away.state.lock().unwrap().refusals = [500; 3].into();
    away.state.lock().unwrap().pods = vec![pod("second", "99")];
    let directory = PodDirectory::new(Exemptions::default());
    let _watch = directory.follow(&away.cluster(), Some(memory()));
    let counts = directory.counts();
    assert!(!counts.is_listed && counts.recalled_from.is_some(), "{counts:?}");
    let workload = directory.workload(UID.parse().unwrap(), None, "/x").unwrap();
    assert!(app_is("first")(Some(&workload)));
    assert_eq!(workload.namespace_labels["tier"], "front");
    until(&directory, app_is("second")).await;
    directory.listed().await;
    assert_eq!(directory.counts().recalled_from, None);
}
