//! What the tests of the lanes are made of: origins on loopback addresses that share one port (the dialled one), a client
//! whose connection was "redirected", and the records.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet},
    time::timeout,
};

use super::super::{exchange::tap, serve};
use crate::{
    access_log::{AccessLog, Protocol, Record},
    dns::{DnsLog, ForwardSettings, Forwarder, NameTable, names::NameLimits},
    drain::{self, DrainTrigger, DrainWatcher},
    identity::{Process, Workload},
    netns::Netns,
    policy::{self, PolicySet, PolicyStore},
    proxy::{
        connection::{Connection, Route, Services, Via},
        dial::{DialSettings, Dialer, ParentProxy},
        explicit::ExplicitProxy,
        limits::Limits,
        resolve::{NameServers, ResolveSettings},
    },
};

/// Long enough for a busy machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Allowed hosts, with an origin each; `denied.test` has one as well, which must never hear anything.
const HOSTS: [(&str, [u8; 4]); 5] = [
    ("good.test", [127, 0, 1, 1]),
    ("also.test", [127, 0, 1, 2]),
    ("denied.test", [127, 0, 1, 3]),
    ("api.test", [127, 0, 1, 4]),
    ("closed.test", [127, 0, 1, 5]),
];
/// The last one does not listen.
const LISTENING: usize = HOSTS.len() - 1;

/// A request for a WebSocket with good.test.
pub(super) const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/// The origin's consent.
pub(super) const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// One test's world.
pub(super) struct Lab {
    services: Arc<Services>,
    port: u16,
    origins: BTreeMap<&'static str, Origin>,
    /// Read by the resolver.
    _hosts: tempfile::NamedTempFile,
    served: Vec<JoinHandle<()>>,
    trigger: DrainTrigger,
    watcher: DrainWatcher,
}

/// A listening origin.
pub(super) struct Origin {
    listener: TcpListener,
}

/// One end of a connection, read by hand.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

/// A message, framed by its own head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    pub(super) trailers: String,
}

/// Runs a test in a world of its own, in one thread as a worker would.
pub(super) fn run(test: impl AsyncFnOnce(&mut Lab)) {
    run_with(Limits::default(), test);
}

pub(super) fn run_with(limits: Limits, test: impl AsyncFnOnce(&mut Lab)) {
    start(limits, false, test);
}

/// Runs a test in a world whose way out is a parent proxy: api.test's place, and `user:word` are its credentials.
pub(super) fn run_behind_a_parent(test: impl AsyncFnOnce(&mut Lab)) {
    start(Limits::default(), true, test);
}

fn start(limits: Limits, has_parent: bool, test: impl AsyncFnOnce(&mut Lab)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let work = async {
        let mut lab = Lab::new(limits, has_parent).await;
        test(&mut lab).await;
    };
    let local = LocalSet::new();
    let work = local.run_until(async { timeout(PATIENCE, work).await });
    runtime.block_on(work).expect("the test hangs");
}

impl Lab {
    async fn new(limits: Limits, has_parent: bool) -> Self {
        let (port, origins) = listen_everywhere().await;
        let mut hosts = tempfile::NamedTempFile::new().unwrap();
        for (name, address) in HOSTS {
            writeln!(hosts, "{} {name}", IpAddr::from(address)).unwrap();
        }
        let settings = DialSettings {
            resolve: ResolveSettings {
                servers: NameServers::List(Vec::new()),
                hosts: Some(hosts.path().to_owned()),
                ..ResolveSettings::default()
            },
            internal: vec!["127.0.0.0/8".parse().unwrap()],
            parent: has_parent.then(|| parent_at(port)),
            ..DialSettings::default()
        };
        let dialer = Dialer::new(settings);
        tap::clear();
        let (trigger, watcher) = drain::channel();
        let names = Arc::new(NameTable::new(NameLimits::default()));
        let services = Arc::new(Services {
            policy: policies(port),
            dialer,
            dns: Forwarder::new(ForwardSettings::default(), Arc::clone(&names), DnsLog::default()),
            names,
            client_first: vec![80],
            proxy: ExplicitProxy::default(),
            log: AccessLog::default(),
            limits,
        });
        Self {
            services,
            port,
            origins,
            _hosts: hosts,
            served: Vec::new(),
            trigger,
            watcher,
        }
    }

    /// A client that dialled `good.test`.
    pub(super) async fn client(&mut self) -> Wire {
        self.client_of(Protocol::Http1).await
    }

    pub(super) async fn client_of(&mut self, protocol: Protocol) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, client) = listener.accept().await.unwrap();
        let connection = Arc::new(Connection {
            services: Arc::clone(&self.services),
            accepted: Instant::now(),
            accepted_at: jiff::Timestamp::now(),
            client,
            original: SocketAddr::from(([127, 0, 1, 1], self.port)),
            via: Via::Connect,
            workload: Arc::new(Workload {
                namespace: "shop".to_owned(),
                name: "cart-1".to_owned(),
                ..Workload::default()
            }),
            identity: None,
            process: Process::default(),
            foreign: false,
            route: route(),
        });
        let served = serve(connection, accepted, Bytes::new(), protocol, self.watcher.clone());
        self.served
            .push(tokio::task::spawn_local(async { drop(served.await) }));
        Wire::new(stream)
    }

    pub(super) fn origin(&self, host: &str) -> &Origin {
        &self.origins[host]
    }

    /// A client and its origin, good.test, behind the upgrade.
    pub(super) async fn websocket(&mut self) -> (Wire, Wire) {
        let mut client = self.client().await;
        client.send(UPGRADE).await;
        let mut origin = self.accept("good.test").await;
        origin.head().await;
        origin.send(SWITCH).await;
        client.head().await;
        (client, origin)
    }

    /// The next connection to an origin.
    pub(super) async fn accept(&self, host: &str) -> Wire {
        self.origin(host).accept().await
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    /// The records, once every client connection has ended.
    pub(super) async fn records(&mut self) -> Vec<Record> {
        for served in self.served.drain(..) {
            served.await.unwrap();
        }
        tap::records()
    }

    /// Starts the drain, with time enough.
    pub(super) fn drain(&self) {
        self.trigger.start(PATIENCE);
    }

    /// Puts policies in force that allow what was allowed, but deny the address of `host`.
    pub(super) fn deny_address_of(&self, host: &str) {
        let (_, address) = HOSTS.into_iter().find(|(name, _)| *name == host).unwrap();
        let denial = format!(
            "---\napiVersion: egress-enforcer.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {{name: no}}\n\
             spec:\n  deny:\n  - to: [{{cidr: {}/32}}]\n",
            IpAddr::from(address)
        );
        self.services
            .policy
            .replace(set(&(allowing(self.port) + &denial)));
    }

    /// Puts policies in force that allow `host` and nothing else.
    pub(super) fn allow_only(&self, host: &str) {
        let text = format!(
            "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  egress:\n  - to: [{{domain: {host}}}]\n    ports: [{{port: {}}}]\n",
            self.port
        );
        self.services.policy.replace(set(&text));
    }

    /// Ends the tasks that serve, as a shutdown does.
    pub(super) fn abort(&self) {
        for served in &self.served {
            served.abort();
        }
    }

    /// The records so far.
    pub(super) fn records_now(&self) -> Vec<Record> {
        tap::records()
    }
}

fn parent_at(port: u16) -> ParentProxy {
    let parent: ParentProxy = format!("api.test:{port}").parse().unwrap();
    parent.with_credentials("user:word").unwrap()
}

fn policies(port: u16) -> PolicyStore {
    store(&allowing(port))
}

fn allowing(port: u16) -> String {
    format!(
        "apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {{name: web, namespace: shop}}
spec:
  egress:
    - to: [{{domain: good.test}}, {{domain: also.test}}, {{domain: closed.test}}, {{domain: nowhere.test}}]
      ports: [{{port: {port}}}]
    - to: [{{domain: api.test}}]
      ports: [{{port: {port}}}]
      http: [{{methods: [GET], path: /v1/**}}]
"
    )
}

/// The policies of `text` in force.
pub(super) fn store(text: &str) -> PolicyStore {
    let store = PolicyStore::default();
    store.replace(set(text));
    store
}

fn set(text: &str) -> Arc<PolicySet> {
    let policies = policy::read_text(Path::new("test.yaml"), text).unwrap();
    Arc::new(PolicySet::build(policies, policy::Settings::default()).unwrap())
}

async fn listen_everywhere() -> (u16, BTreeMap<&'static str, Origin>) {
    // The port that the first is given may be taken on another of the addresses.
    for _ in 0..50 {
        let mut origins = BTreeMap::new();
        let mut port = 0;
        for (name, address) in HOSTS.into_iter().take(LISTENING) {
            let Ok(listener) = TcpListener::bind(SocketAddr::from((address, port))).await else {
                break;
            };
            port = listener.local_addr().unwrap().port();
            origins.insert(name, Origin { listener });
        }
        if origins.len() == LISTENING {
            return (port, origins);
        }
    }
    panic!("no port is free on all of the loopback addresses");
}

fn route() -> Route {
    Route {
        netns: Netns::current().unwrap(),
        source: None,
        device: None,
        user: None,
    }
}

impl Origin {
    pub(super) async fn accept(&self) -> Wire {
        Wire::new(self.listener.accept().await.unwrap().0)
    }

    /// Nobody has connected, and nobody is about to.
    pub(super) fn heard_nothing(&self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(
            self.listener.poll_accept(&mut context).is_pending(),
            "the origin was reached"
        );
    }
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads up to and with `mark`.
    pub(super) async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return self.buffer.drain(..at + mark.len()).collect();
            }
            let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(
                count > 0,
                "closed after {:?}",
                self.buffer.escape_ascii().to_string()
            );
        }
    }

    pub(super) async fn head(&mut self) -> String {
        String::from_utf8(self.until(b"\r\n\r\n").await).unwrap()
    }

    pub(super) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let read = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(read > 0, "closed after {} of {count} bytes", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// Reads to the end of the stream, which must be an orderly one.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        self.stream.read_to_end(&mut self.buffer).await.unwrap();
        std::mem::take(&mut self.buffer)
    }

    /// Reads until the stream fails, and gives what came before.
    pub(super) async fn until_reset(&mut self) -> Vec<u8> {
        let error = self.stream.read_to_end(&mut self.buffer).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        std::mem::take(&mut self.buffer)
    }

    /// Reads one message with its body. `is_bodiless`: the answer to HEAD.
    pub(super) async fn message(&mut self) -> Message {
        self.message_to(false).await
    }

    pub(super) async fn message_to(&mut self, is_bodiless: bool) -> Message {
        let head = self.head().await;
        let mut message = Message {
            body: Vec::new(),
            trailers: String::new(),
            head,
        };
        let status = message.status();
        if is_bodiless || matches!(status, Some(100..=199 | 204 | 304)) {
            return message;
        }
        if message.field("transfer-encoding").is_some() {
            (message.body, message.trailers) = self.chunks().await;
        } else if let Some(length) = message.field("content-length") {
            message.body = self.exactly(length.parse().unwrap()).await;
        } else if status.is_some() {
            message.body = self.rest().await;
        }
        message
    }

    pub(super) async fn chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8(self.until(b"\r\n").await).unwrap();
            let size = usize::from_str_radix(line.trim_end().split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                let mut trailers = String::new();
                loop {
                    let line = String::from_utf8(self.until(b"\r\n").await).unwrap();
                    if line == "\r\n" {
                        return (body, trailers);
                    }
                    trailers.push_str(&line);
                }
            }
            body.extend(self.exactly(size).await);
            assert_eq!(self.exactly(2).await, b"\r\n");
        }
    }

    /// The peer has sent nothing so far.
    pub(super) async fn is_silent(&self, pause: Duration) -> bool {
        self.buffer.is_empty() && timeout(pause, self.stream.readable()).await.is_err()
    }
}

impl Message {
    pub(super) fn status(&self) -> Option<u16> {
        let code = self.head.strip_prefix("HTTP/1.")?.get(2..5)?;
        Some(code.parse().unwrap())
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}
