//! Audit and observe: the connection goes to where it was dialled, at once and whatever its bytes are. They are only
//! looked at as they pass, and the record says what would have happened. When policies come that enforce, it is judged by
//! what was seen.

use std::{cell::RefCell, ops::ControlFlow, sync::Arc};

use bytes::{Bytes, BytesMut};
use egress_common::outcome::Outcome;
use tokio::net::TcpStream;

use super::{begin, explicit, tls, unnamed};
use crate::{
    access_log::{Asked, Ending, Pending, Protocol},
    policy::{Host, PolicyView, Verdict},
    proxy::{
        connection::{Connection, Via},
        http,
        read_head::{Opening, OpeningReader, Unreadable},
        refuse,
        tunnel::{self, Counters},
    },
};

/// What was seen of the client's first bytes.
struct Seen {
    reader: OpeningReader,
    received: BytesMut,
    opening: Option<Opening>,
    /// The request, for HTTP/1 whose head is whole.
    request: Option<http::Observed>,
}

pub(super) async fn serve(connection: &Connection, stream: TcpStream) {
    let mut pending = begin(connection, Outcome::ClientGone);
    pending.enforced = false;
    let dialer = &connection.services.dialer;
    let dialled = match dialer.dial_original(connection.original, &connection.route).await {
        Ok(dialled) => dialled,
        Err(error) => {
            pending.verdict = Verdict::without_rule(error.outcome);
            error.note(&mut pending);
            refuse::reset(stream);
            return pending.finish(Ending::Failed);
        }
    };
    pending.status = 200;
    dialled.peer.note(&mut pending);
    // What stands if the task is dropped before anything was seen: judged by the address alone.
    judge(connection, &Host::Address(connection.original.ip()), &mut pending);
    pass(connection, stream, Bytes::new(), dialled.stream, pending).await;
}

/// Lets everything pass to `origin`, beginning with what was `received` already, and notes what can be seen of it.
pub(super) async fn pass(
    connection: &Connection,
    stream: TcpStream,
    received: Bytes,
    origin: TcpStream,
    mut pending: Pending,
) {
    pending.opened();
    let counters = Arc::new(Counters::default());
    pending.count(Arc::clone(&counters) as _);
    let limits = &connection.services.limits;
    let seen = RefCell::new(Seen {
        reader: OpeningReader::new(limits.head_bytes),
        received: BytesMut::new(),
        opening: None,
        request: None,
    });
    // Whether that is enough or not: looking again costs nothing.
    let _more_is_wanted = seen.borrow_mut().look(connection, &received);
    let look = |bytes: &[u8]| seen.borrow_mut().look(connection, bytes);
    let revoked = connection.revoked(|view| seen.borrow().is_refused(connection, view));
    let ending = tokio::select! {
        ending = tunnel::sniff(stream, origin, received, limits, &counters, look) => ending,
        // The tunnel is dropped before its end: both legs are reset.
        () = revoked => Ending::PolicyChanged,
    };
    seen.into_inner().note(connection, &mut pending);
    pending.finish(ending);
}

impl Seen {
    /// Looks at the client's next bytes, until it is known what they are or they are too many.
    fn look(&mut self, connection: &Connection, bytes: &[u8]) -> ControlFlow<()> {
        let bound = connection.services.limits.head_bytes;
        let room = bound.saturating_sub(self.received.len());
        self.received
            .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        if self.opening.is_none() {
            self.opening = self.reader.read(&self.received);
        }
        let is_known = match &self.opening {
            // The target stands in the rest of the head.
            Some(Opening::Http1) => {
                self.request = http::observe(&self.received, connection);
                self.request.is_some()
            }
            Some(Opening::Http2 | Opening::Tls(_) | Opening::Unreadable(_)) => true,
            None => false,
        };
        if is_known || self.received.len() >= bound {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Whether a connection that had passed unjudged is refused by `view`, which enforces. No byte is taken back and no
    /// name looked up: what counts is the name that was seen, and the address that the workload dialled.
    fn is_refused(&self, connection: &Connection, view: &PolicyView) -> bool {
        let original = connection.original;
        let is_host_refused = |host: &Host| tls::is_refused(connection, view, host, Some(original));
        let server_may_begin = !connection.services.client_first.contains(&original.port());
        match (&self.opening, &connection.via) {
            // Its requests flow by unseen after the first one.
            (Some(Opening::Http1 | Opening::Http2), _) => true,
            (Some(Opening::Tls(hello)), Via::Tunnel(host)) => {
                let name = hello.server_name.as_ref();
                explicit::contradiction(connection, host, name).is_some() || is_host_refused(host)
            }
            (Some(Opening::Tls(hello)), Via::Connect | Via::Proxy) => match &hello.server_name {
                Some(name) => is_host_refused(&Host::Name(name.clone())),
                None if server_may_begin => unnamed::is_refused(connection, view),
                None => is_host_refused(&Host::Address(original.ip())),
            },
            // Nothing that could be judged, and on such a port there has to be.
            (Some(Opening::Unreadable(_)) | None, _) if !server_may_begin => true,
            (Some(Opening::Unreadable(Unreadable::Tls(_))), _) => true,
            (Some(Opening::Unreadable(_)) | None, Via::Tunnel(host)) => is_host_refused(host),
            (Some(Opening::Unreadable(_)) | None, Via::Connect | Via::Proxy) => {
                unnamed::is_refused(connection, view)
            }
        }
    }

    /// Puts what was seen, and the verdict on it, into the record.
    fn note(self, connection: &Connection, pending: &mut Pending) {
        pending.protocol = self.opening.as_ref().map_or(Protocol::Unknown, Opening::protocol);
        match self.opening {
            Some(Opening::Tls(hello)) => {
                pending.tls = Some(hello.facts);
                match (&connection.via, hello.server_name) {
                    (Via::Tunnel(host), name) => {
                        let refused = explicit::contradiction(connection, host, name.as_ref());
                        if let Some(outcome) = refused {
                            pending.verdict = Verdict::without_rule(outcome);
                        }
                    }
                    (Via::Connect | Via::Proxy, Some(name)) => judge(connection, &Host::Name(name), pending),
                    (Via::Connect | Via::Proxy, None) => {
                        judge(connection, &Host::Address(connection.original.ip()), pending);
                    }
                }
            }
            Some(Opening::Http1) => {
                if let Some(request) = self.request {
                    pending.verdict = request.verdict;
                    pending.asked = request.asked;
                    pending.referer = request.referer;
                    pending.user_agent = request.user_agent;
                }
            }
            // The CONNECT has a name, whatever is spoken behind it.
            Some(Opening::Unreadable(_)) if connection.via != Via::Connect => {}
            Some(Opening::Unreadable(why)) => pending.verdict = Verdict::without_rule(why.outcome()),
            // HTTP/2 has many streams with a name each, and the first bytes have none of them.
            Some(Opening::Http2) | None => {}
        }
    }
}

fn judge(connection: &Connection, host: &Host, pending: &mut Pending) {
    let port = connection.original.port();
    pending.verdict = connection.judge(&connection.view(), host, port, None);
    pending.asked = Asked::Tunnel {
        host: host.clone(),
        port,
    };
}
