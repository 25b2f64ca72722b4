//! Connections to origins, one per host, shared by the streams of one client connection.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use egress_common::outcome::Outcome;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;

use super::{
    super::upstream::{Allowed, Traffic, UpstreamIo, dial},
    CONNECTION_WINDOW, LocalExecutor, MOST_RESETS_CAUSED, STREAM_BACKLOG, STREAM_WINDOW, Shared,
    body::UploadBody,
};
use crate::{
    policy::Host,
    proxy::{
        dial::{DialError, Dialled, Payload, Peer},
        limits::Limits,
    },
};

/// Connections kept while no stream uses them. Those in use are bounded by the number of streams.
const MOST_UNUSED: usize = 16;

/// By host. Each client connection has its own: streams of two workloads never share a connection.
#[derive(Debug, Default)]
pub(super) struct Pool {
    slots: RefCell<HashMap<Host, Rc<Slot>>>,
}

/// The place of one host's connection. Whoever comes while it is being dialled waits for it.
#[derive(Debug, Default)]
struct Slot {
    link: Mutex<Option<Link>>,
}

/// A connection to an origin.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) sender: http2::SendRequest<UploadBody>,
    pub(super) peer: Peer,
}

/// A stream's use of a link.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) link: Link,
    /// It was there before: it may have gone stale.
    pub(super) was_kept: bool,
    /// Keeps the slot from being cleared away.
    _slot: Rc<Slot>,
}

/// Why there is no answer.
pub(super) struct Unsent {
    /// The request, if nothing of it was sent.
    pub(super) request: Option<Request<UploadBody>>,
    pub(super) error: hyper::Error,
}

impl Pool {
    /// The connection for a host; dialled if there is none that works.
    pub(super) async fn lease(&self, shared: &Shared, allowed: &Allowed) -> Result<Lease, DialError> {
        let slot = self.slot(&allowed.host);
        let mut link = slot.link.lock().await;
        let serves =
            |link: &&Link| !link.sender.is_closed() && allowed.may_reach(&shared.connection, &link.peer);
        if let Some(link) = link.as_ref().filter(serves) {
            return Ok(Lease {
                link: link.clone(),
                was_kept: true,
                _slot: Rc::clone(&slot),
            });
        }
        let fresh = Link::dial(shared, allowed).await?;
        *link = Some(fresh.clone());
        drop(link);
        Ok(Lease {
            link: fresh,
            was_kept: false,
            _slot: slot,
        })
    }

    fn slot(&self, host: &Host) -> Rc<Slot> {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.get(host) {
            return Rc::clone(slot);
        }
        if slots.len() >= MOST_UNUSED {
            slots.retain(|_, slot| Rc::strong_count(slot) > 1);
        }
        Rc::clone(slots.entry(host.clone()).or_default())
    }
}

impl Link {
    async fn dial(shared: &Shared, allowed: &Allowed) -> Result<Self, DialError> {
        let Dialled { stream, peer } = dial(&shared.connection, allowed, Payload::Bytes).await?;
        let io = UpstreamIo::new(stream, Rc::<Traffic>::default(), Rc::clone(&shared.client));
        let handshake = builder(&shared.connection.services.limits)
            .handshake(TokioIo::new(io))
            .await;
        let (sender, wire) = handshake.map_err(|error| {
            tracing::debug!(%error, host = %allowed.host, "h2c handshake");
            DialError::at(&peer, Outcome::OriginFailed)
        })?;
        drop(tokio::task::spawn_local(async move {
            // Whoever waits for an answer or its body learns of it as well.
            if let Err(error) = wire.await {
                tracing::debug!(%error, "upstream connection");
            }
        }));
        Ok(Self { sender, peer })
    }

    pub(super) async fn send(
        &mut self,
        request: Request<UploadBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, Box<Unsent>> {
        let sent = self.sender.try_send_request(request).await;
        sent.map_err(|mut failure| {
            Box::new(Unsent {
                request: failure.take_message(),
                error: failure.into_error(),
            })
        })
    }
}

fn builder(limits: &Limits) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_BACKLOG)
        .max_local_error_reset_streams(MOST_RESETS_CAUSED);
    builder
}
