//! What an origin has seen, and how a test waits for it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::Notify, time::timeout};

use crate::patience::stretched;

/// How long something that must happen may take on a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// How many of a connection's first bytes are kept.
const KEPT: usize = 96 * 1024;

/// One connection as the origin saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who connected.
    pub peer: SocketAddr,
    /// To which of the origin's addresses.
    pub local: SocketAddr,
    /// The name in the TLS server name extension, after a full handshake.
    pub server_name: Option<String>,
    /// The protocol that TLS settled on.
    pub alpn: Option<String>,
    /// HTTP requests, in order of arrival.
    pub requests: Vec<Request>,
    /// For raw origins: the first bytes (at most 96 KiB).
    pub first: Vec<u8>,
    /// For raw origins: bytes that arrived.
    pub received: u64,
    /// For raw origins: bytes that the kernel took for sending.
    pub sent: u64,
    /// How it ended, once it has: `closed`, or the error.
    pub end: Option<String>,
}

/// One HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Method.
    pub method: String,
    /// Path and query, or the absolute form if that came.
    pub target: String,
    /// The Host header (HTTP/1) or :authority (HTTP/2).
    pub host: String,
    /// All headers, lower-case names.
    pub headers: Vec<(String, String)>,
    /// `LENGTH SHA256` of the body, once it has arrived whole.
    pub body: Option<String>,
}

impl Request {
    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// The record of all connections to one origin.
#[derive(Debug, Default)]
pub struct Witness {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    /// Local addresses of the lab's own connections, which are not counted.
    markers: BTreeSet<SocketAddr>,
    markers_accepted: BTreeSet<SocketAddr>,
}

/// Writes down one connection.
#[derive(Debug, Clone)]
pub struct Pen {
    witness: Arc<Witness>,
    /// `None` for a marker.
    index: Option<usize>,
}

impl Witness {
    /// Notes a new connection.
    pub(super) fn open(self: &Arc<Self>, peer: SocketAddr, local: SocketAddr) -> Pen {
        let mut state = self.lock();
        let index = if state.markers.contains(&peer) {
            state.markers_accepted.insert(peer);
            None
        } else {
            state.seen.push(Seen {
                peer,
                local,
                server_name: None,
                alpn: None,
                requests: Vec::new(),
                first: Vec::new(),
                received: 0,
                sent: 0,
                end: None,
            });
            Some(state.seen.len() - 1)
        };
        drop(state);
        self.changed.notify_waiters();
        Pen {
            witness: Arc::clone(self),
            index,
        }
    }

    /// What was seen so far.
    pub(super) fn snapshot(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Waits until `is_so` holds of what was seen.
    ///
    /// # Panics
    /// It does not hold soon.
    pub(super) async fn wait(&self, what: &str, is_so: impl Fn(&[Seen]) -> bool) {
        let waited = timeout(stretched(SOON), async {
            loop {
                let changed = self.changed.notified();
                if is_so(&self.lock().seen) {
                    return;
                }
                changed.await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "the origin did not see {what} but {:#?}",
            self.snapshot()
        );
    }

    /// Connects to `address` and waits until that connection is accepted. Listeners accept in order: whatever was
    /// connected before has been noted then, so that "nothing arrived" can be told without waiting.
    pub(super) async fn settle(&self, address: SocketAddr) {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("socket");
        socket
            .bind(&SocketAddr::new(address.ip(), 0).into())
            .expect("bind");
        let own = socket
            .local_addr()
            .expect("an address")
            .as_socket()
            .expect("of the internet");
        self.lock().markers.insert(own);
        socket.connect(&address.into()).expect("connect to the origin");
        let waited = timeout(stretched(SOON), async {
            loop {
                let changed = self.changed.notified();
                if self.lock().markers_accepted.contains(&own) {
                    return;
                }
                changed.await;
            }
        });
        assert!(waited.await.is_ok(), "the origin at {address} does not accept");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pen {
    /// Whether this is one of the lab's own connections.
    pub(super) fn is_marker(&self) -> bool {
        self.index.is_none()
    }

    /// Changes what is noted of the connection.
    pub(super) fn note(&self, change: impl FnOnce(&mut Seen)) {
        let Some(index) = self.index else { return };
        change(&mut self.witness.lock().seen[index]);
        self.witness.changed.notify_waiters();
    }

    /// Notes bytes that arrived.
    pub(super) fn received(&self, bytes: &[u8]) {
        self.note(|seen| {
            seen.received += bytes.len() as u64;
            let room = KEPT - seen.first.len().min(KEPT);
            seen.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
        });
    }

    /// Notes the end.
    pub(super) fn ended(&self, result: Result<(), impl std::fmt::Display>) {
        let end = result.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
        self.note(|seen| seen.end = Some(end));
    }
}

/// A listener. An IPv6 one takes no IPv4, so that each of a world's addresses is its own.
pub(super) fn listen(address: SocketAddr) -> TcpListener {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
    }
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket
        .bind(&address.into())
        .unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket.listen(1024).expect("listen");
    socket.set_nonblocking(true).expect("non-blocking");
    TcpListener::from_std(socket.into()).expect("a listener of the runtime")
}
