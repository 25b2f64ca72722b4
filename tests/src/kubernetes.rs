//! A node of a cluster: an API server of the laboratory's own that lists and watches pods and namespaces, and cgroups as a
//! kubelet makes them. Real ones are tested by `cargo xtask cluster`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    agent::{Running, verb},
    clients::Client,
    lab::{AGENT_DNS, Place, World, traces::entries_of},
};

/// Where the API server listens.
const API_SERVER: &str = "198.51.100.1:6443";

/// The node's name.
pub const NODE: &str = "node-1";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The API server. Dropping it ends it, and all watches.
#[derive(Debug)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    stop: Option<watch::Sender<()>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By kind (`pods`, `namespaces`) and UID or name.
    objects: BTreeMap<(&'static str, String), Value>,
    history: Vec<(&'static str, u64, String)>,
    watches: Vec<(&'static str, mpsc::Sender<String>)>,
}

impl ApiServer {
    /// Starts one among the origins.
    ///
    /// # Panics
    /// Its port is taken.
    pub async fn start(world: &World) -> Self {
        let mut server = Self {
            state: Arc::default(),
            stop: None,
            accepting: None,
        };
        server.begin(&world.origins).await;
        server
    }

    /// Ends the server: connections are reset, new ones refused.
    ///
    /// # Panics
    /// It had failed.
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(accepting) = self.accepting.take() {
            accepting.await.expect("the API server panicked");
        }
        self.lock().watches.clear();
    }

    /// Starts it again, with what it knew.
    ///
    /// # Panics
    /// Its port is taken.
    pub async fn begin(&mut self, place: &Place) {
        let (stop, stopped) = watch::channel(());
        let address: SocketAddr = API_SERVER.parse().expect("an address");
        let listener = place
            .run(async move { TcpListener::bind(address).await })
            .await
            .expect("the API server's port is free");
        let state = Arc::clone(&self.state);
        self.accepting = Some(place.spawn(accept(listener, state, stopped)));
        self.stop = Some(stop);
    }

    /// A namespace with labels.
    pub fn namespace(&self, name: &str, labels: Value) {
        let object = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "uid": name, "labels": labels}});
        self.apply("namespaces", name, object);
    }

    /// A pod, new or changed.
    pub fn pod(&self, pod: &Pod) {
        self.apply("pods", &pod.uid, pod.object());
    }

    /// A pod is gone.
    pub fn delete(&self, pod: &Pod) {
        let mut state = self.lock();
        if let Some(object) = state.objects.remove(&("pods", pod.uid.clone())) {
            state.tell("pods", "DELETED", object);
        }
    }

    fn apply(&self, kind: &'static str, key: &str, object: Value) {
        let mut state = self.lock();
        let event = match state.objects.contains_key(&(kind, key.to_owned())) {
            true => "MODIFIED",
            false => "ADDED",
        };
        let object = state.tell(kind, event, object);
        state.objects.insert((kind, key.to_owned()), object);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, kind: &'static str, event: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let line = format!("{}\n", json!({"type": event, "object": object}));
        self.history.push((kind, self.version, line.clone()));
        // A watch whose client has gone, or does not read.
        self.watches
            .retain(|(of, watch)| *of != kind || watch.try_send(line.clone()).is_ok());
        object
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, mut stopped: watch::Receiver<()>) {
    loop {
        let accepted = tokio::select! {
            _stop = stopped.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (state, mut stopped) = (Arc::clone(&state), stopped.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let reply = answer(&request, &state);
                async move { Ok::<_, Infallible>(reply) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _stop = stopped.changed() => {}
                // Whatever the client did: the next connection is another one.
                _ended = serving => {}
            }
        });
    }
}

fn answer(request: &Request<Incoming>, state: &Mutex<State>) -> Response<Body> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let (kind, list) = match request.uri().path() {
        "/api/v1/pods" => ("pods", "PodList"),
        "/api/v1/namespaces" => ("namespaces", "PartialObjectMetadataList"),
        _ => {
            return whole(
                404,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 404}),
            );
        }
    };
    let query = request.uri().query().unwrap_or_default();
    let asked = |key: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    if kind == "pods" && !asked("fieldSelector").is_some_and(|selector| selector.contains(NODE)) {
        return whole(
            403,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 403, "message": "the pods of this node alone"}),
        );
    }
    if asked("watch") == Some("true") {
        let since: u64 = asked("resourceVersion")
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let missed: Vec<String> = state
            .history
            .iter()
            .filter(|(of, version, _)| *of == kind && *version > since)
            .map(|(_, _, line)| line.clone())
            .collect();
        let (sender, receiver) = mpsc::channel(4096);
        for line in missed {
            sender.try_send(line).expect("room for what was missed");
        }
        state.watches.push((kind, sender));
        let lines = stream::unfold(receiver, |mut receiver| async move {
            let line = receiver.recv().await?;
            Some((Ok(Frame::data(Bytes::from(line))), receiver))
        });
        return Response::new(StreamBody::new(lines).boxed_unsync());
    }
    let items: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((of, _), _)| *of == kind)
        .map(|(_, object)| object)
        .collect();
    let version = state.version.to_string();
    whole(
        200,
        &json!({"kind": list, "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
    )
}

fn whole(status: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = status.try_into().expect("a status");
    response
}

/// A pod of the node.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Value,
    /// Its annotations.
    pub annotations: Value,
    /// Its containers; the first one is `main`.
    pub containers: Value,
}

impl Pod {
    /// A pod with a UID made from `number`.
    #[must_use]
    pub fn new(number: u32, namespace: &str, name: &str) -> Self {
        Self {
            uid: format!("{number:08x}-0000-4000-8000-000000000000"),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: json!({"app": name}),
            annotations: json!({}),
            containers: json!([{"name": "main"}]),
        }
    }

    /// The path of its only container's cgroup below the kubelet's root.
    #[must_use]
    pub fn container(&self) -> String {
        format!("burstable/pod{}/{}", self.uid, self.container_id())
    }

    fn container_id(&self) -> String {
        self.uid.replace('-', "").repeat(2)
    }

    fn object(&self) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "uid": self.uid, "namespace": self.namespace, "name": self.name,
                "labels": self.labels, "annotations": self.annotations
            },
            "spec": {"nodeName": NODE, "serviceAccountName": "runner", "containers": self.containers},
            "status": {"containerStatuses": [{
                "name": "main", "containerID": format!("containerd://{}", self.container_id()),
                "image": "", "imageID": "", "ready": true, "restartCount": 0
            }]}
        })
    }
}

/// An agent on the node.
#[derive(Debug)]
pub struct Node<'w> {
    world: &'w World,
    /// The agent's process.
    pub running: Running<'w>,
    /// Its name among the agents of the machine.
    pub instance: String,
    /// The kubelet's root cgroup.
    pub kubepods: PathBuf,
}

impl<'w> Node<'w> {
    /// Starts an agent with the policies in the world's directory `policies`; `more` goes into its configuration, below
    /// `kubernetes:`.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start(world: &'w World, more: &str) -> Self {
        let own = world.cgroup.child("daemon");
        Self::start_in(world, own, more).await
    }

    /// The same with the agent in the cgroup `own`.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start_in(world: &'w World, own: PathBuf, more: &str) -> Self {
        world.cgroup.child("kubepods");
        Self::begin(world, own, more).await
    }

    /// Starts it while the kubelet has not made its cgroup yet.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start_before_the_kubelet(world: &'w World) -> Self {
        let own = world.cgroup.child("daemon");
        Self::begin(world, own, "").await
    }

    async fn begin(world: &'w World, own: PathBuf, more: &str) -> Self {
        let kubepods = world.cgroup.path().join("kubepods");
        let top = world
            .cgroup
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let instance = format!("test-{top}");
        let kubeconfig = world.file(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
                 clusters:\n- {{name: lab, cluster: {{server: \"http://{API_SERVER}\"}}}}\n\
                 users:\n- {{name: lab, user: {{}}}}\n\
                 contexts:\n- {{name: lab, context: {{cluster: lab, user: lab}}}}\n"
            ),
        );
        world.file("policies/README", "Policies are put beside this file.\n");
        let config = world.file(
            "config.yaml",
            &format!(
                "instance: {instance}\nnameservers: [{AGENT_DNS:?}]\ncgroup: {}\npolicyDir: {}\n\
                 accessLog:\n- {{format: json, target: {}}}\n\
                 kubernetes:\n  nodeName: {NODE}\n  kubeconfig: {}\n  policies: false\n  events: false\n{more}\n",
                kubepods.display(),
                world.path("policies").display(),
                world.path("log.json").display(),
                kubeconfig.display()
            ),
        );
        let words = ["run", "--config", &config.display().to_string()];
        let node = Self {
            world,
            running: verb(world, &world.client, &words).cgroup(&own).start(),
            instance,
            kubepods,
        };
        let pid = node.running.pid().as_raw();
        node.eventually("it answers", async || {
            node.status().await.is_some_and(|status| status["pid"] == pid)
        })
        .await;
        node
    }

    /// What `status` tells of it.
    pub async fn status(&self) -> Option<Value> {
        let output = verb(self.world, &self.world.client, &["status", "--output", "json"])
            .start()
            .finish()
            .await;
        let all: Value = serde_json::from_str(&output.text()).ok()?;
        let mut all = all.as_array()?.iter();
        all.find(|status| status["instance"] == self.instance.as_str())
            .cloned()
    }

    /// Waits for what no event tells from outside.
    ///
    /// # Panics
    /// It does not come about in 40 s.
    pub async fn eventually(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        for _ in 0..400 {
            if is_so().await {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("never: {what}; the agent said:\n{}", self.running.stderr());
    }

    /// How many entries one of the kernel's tables has.
    ///
    /// # Panics
    /// `bpftool` failed.
    pub async fn map_entries(&self, map: &str) -> usize {
        let pin = PathBuf::from("/sys/fs/bpf/egress").join(&self.instance).join(map);
        entries_of(&pin).await.len()
    }

    /// Starts `client` in a pod's container, with `place` as the pod's network namespace.
    #[must_use]
    pub fn start_client(&self, pod: &Pod, place: &Place, client: &Client) -> Running<'w> {
        let cgroup = self.world.cgroup.child(&format!("kubepods/{}", pod.container()));
        self.world.start_in(place, &cgroup, client)
    }

    /// The access log's records so far.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.world.path("log.json")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_default())
            .collect()
    }
}
