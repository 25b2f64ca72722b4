//! One HTTP/1 connection to an origin, kept between the requests of one client connection.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use egress_common::outcome::Outcome;
use http::{HeaderValue, Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
};

use super::{body::RequestBody, client::Client, target};
use crate::{
    policy::{Host, PolicyView},
    proxy::{
        Connection,
        dial::{DialError, Dialled, Payload, Peer, PrivateAnswers, Wanted},
        limits::Limits,
    },
};

/// More fields than this in a head are refused (431 to a client, 502 for an origin). hyper's own bound of 100 is below
/// what some origins send; the bytes of a head are bounded besides.
pub(super) const MOST_FIELDS: usize = 256;
/// Read and write buffer of one leg: two of them, filled, are what a reader that does not read can make us hold.
pub(super) const BUFFER_BYTES: usize = 256 * 1024;

/// A connection to the origin of one host.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The host that it was dialled for.
    pub(super) host: Host,
    port: u16,
    pub(super) peer: Peer,
    /// What a parent proxy is told besides, if it is one that reads the requests.
    parents: Option<ForParent>,
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) traffic: Rc<Traffic>,
    driver: Driver,
}

/// What a request to a parent proxy has and one to an origin has not.
#[derive(Debug)]
struct ForParent {
    credentials: Option<HeaderValue>,
}

/// What went over the connection so far.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) read: Cell<u64>,
    pub(super) written: Cell<u64>,
    /// The origin reset the connection.
    pub(super) is_reset: Cell<bool>,
}

/// The task that moves the bytes; ends with its owner.
#[derive(Debug)]
struct Driver(JoinHandle<Option<Remains>>);

/// What is left of an upstream connection that has become something else.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) stream: TcpStream,
    /// Read behind the 101.
    pub(super) unread: Bytes,
}

impl Upstream {
    /// Whether it leads to where this request may go.
    pub(super) fn serves(&self, connection: &Connection, allowed: &Allowed, payload: Payload) -> bool {
        self.host == allowed.host
            && self.port == allowed.port
            && (self.parents.is_none() || payload == Payload::Requests)
            && allowed.may_reach(connection, &self.peer)
            && !self.sender.is_closed()
    }

    /// Looks the host up and dials it. The policy has allowed it before.
    pub(super) async fn dial(
        connection: &Connection,
        client: &Rc<Client>,
        allowed: &Allowed,
        payload: Payload,
    ) -> Result<Self, DialError> {
        let Dialled { stream, peer } = dial(connection, allowed, payload).await?;
        let reads_requests = peer.is_parent() && payload == Payload::Requests;
        let parent = connection.services.dialer.settings().parent.as_ref();
        let parents = parent.filter(|_| reads_requests).map(|parent| ForParent {
            credentials: parent.credentials().cloned(),
        });
        let traffic = Rc::new(Traffic::default());
        let io = UpstreamIo::new(stream, Rc::clone(&traffic), Rc::clone(client));
        let (sender, driver) = handshake(io, &connection.services.limits)
            .await
            .map_err(|_| DialError::new(Outcome::AgentError))?;
        Ok(Self {
            host: allowed.host.clone(),
            port: allowed.port,
            peer,
            parents,
            sender,
            traffic,
            driver,
        })
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, Box<Unsent>> {
        if let Some(parents) = &self.parents {
            parents.address(&mut request, &self.host, self.port);
        }
        let sent = self.sender.try_send_request(request).await;
        sent.map_err(|mut failure| {
            Box::new(Unsent {
                request: failure.take_message(),
                error: failure.into_error(),
            })
        })
    }

    /// Whether a parent proxy reads what is sent.
    pub(super) const fn is_parents(&self) -> bool {
        self.parents.is_some()
    }

    /// The socket, after a 101.
    pub(super) async fn into_remains(self) -> Option<Remains> {
        let Self {
            sender, mut driver, ..
        } = self;
        let remains = (&mut driver.0).await;
        // The sender outlives the wait: without it hyper's task would take the connection for abandoned.
        drop(sender);
        remains.ok().flatten()
    }
}

/// Where a request may go, and by which policies.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) view: PolicyView,
    /// False in audit: what the policies have against an address is not carried out either.
    pub(super) enforced: bool,
}

impl Allowed {
    /// Whether the policies have nothing against an address that was dialled for the host before, by other policies, or
    /// without regard to them.
    pub(super) fn may_reach(&self, connection: &Connection, peer: &Peer) -> bool {
        let denied = |dialled| {
            connection
                .refused_dialled(&self.view, &self.host, dialled)
                .is_some()
        };
        !self.enforced || !peer.origin().is_some_and(denied)
    }
}

/// Why there is no answer.
pub(super) struct Unsent {
    /// The request, if no byte of it was written.
    pub(super) request: Option<Request<RequestBody>>,
    pub(super) error: hyper::Error,
}

/// Looks the host up and dials it, within what the policies that allowed it let it resolve to.
pub(super) async fn dial(
    connection: &Connection,
    allowed: &Allowed,
    payload: Payload,
) -> Result<Dialled, DialError> {
    let Allowed {
        host,
        port,
        view,
        enforced,
    } = allowed;
    if *enforced {
        let dialled = connection.dial(host, *port, view, payload).await?;
        // That took its time, and nobody else asks whether the policies are still the same.
        let origin = dialled.peer.origin();
        let refused = origin.and_then(|origin| connection.refused_dialled(&connection.view(), host, origin));
        return match refused {
            Some(outcome) => Err(DialError::at(&dialled.peer, outcome)),
            None => Ok(dialled),
        };
    }
    let wanted = Wanted {
        host,
        port: *port,
        sought: connection.sought(),
        private: PrivateAnswers::Allowed,
        payload,
    };
    connection.services.dialer.dial(wanted, &connection.route).await
}

impl ForParent {
    /// The absolute form (RFC 9112 section 3.2.2), of the host that was judged. A parent does not look at `Host` then. Can be
    /// done again to a request that was not sent.
    fn address(&self, request: &mut Request<RequestBody>, host: &Host, port: u16) {
        // Host and path have been in a URL before, that of the record.
        if let Ok(url) = target::url(host, port, request.uri()) {
            *request.uri_mut() = url;
        }
        // The client's own are for the proxy that it knows of.
        let fields = request.headers_mut();
        fields.remove(header::PROXY_AUTHORIZATION);
        if let Some(credentials) = &self.credentials {
            fields.insert(header::PROXY_AUTHORIZATION, credentials.clone());
        }
    }
}

async fn handshake(
    io: UpstreamIo,
    limits: &Limits,
) -> hyper::Result<(http1::SendRequest<RequestBody>, Driver)> {
    let (sender, mut wire) = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MOST_FIELDS)
        .max_header_size(limits.head_bytes)
        .max_buf_size(BUFFER_BYTES.max(limits.head_bytes))
        .handshake::<_, RequestBody>(TokioIo::new(io))
        .await?;
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = std::future::poll_fn(|cx| wire.poll_without_shutdown(cx)).await {
            // Whoever waits for the answer or its body learns of it as well.
            tracing::debug!(%error, "upstream connection");
            return None;
        }
        let http1::Parts { io, read_buf, .. } = wire.into_parts();
        Some(Remains {
            stream: io.into_inner().stream,
            unread: read_buf,
        })
    });
    Ok((sender, Driver(task)))
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The origin's leg, counted.
pub(super) struct UpstreamIo {
    stream: TcpStream,
    traffic: Rc<Traffic>,
    client: Rc<Client>,
}

impl UpstreamIo {
    /// `client` learns when something moves.
    pub(super) const fn new(stream: TcpStream, traffic: Rc<Traffic>, client: Rc<Client>) -> Self {
        Self {
            stream,
            traffic,
            client,
        }
    }

    fn moved(&self, counter: &Cell<u64>, count: usize) {
        counter.set(counter.get() + count as u64);
        self.client.touch();
    }

    fn note(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::ConnectionReset {
            self.traffic.is_reset.set(true);
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &result {
            Poll::Ready(Ok(())) => self.moved(&self.traffic.read, buffer.filled().len() - before),
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Pending => {}
        }
        result
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        match &result {
            Poll::Ready(Ok(count)) => self.moved(&self.traffic.written, *count),
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Pending => {}
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        match &result {
            Poll::Ready(Ok(count)) => self.moved(&self.traffic.written, *count),
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Pending => {}
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
