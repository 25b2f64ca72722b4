//! What the requests of one HTTP/1 client connection share, and the account of the one that is being answered.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use egress_common::outcome::Class;
use http::{HeaderMap, HeaderValue, Response, Version, header, response};
use tokio::time::Instant;

use super::{
    body::ResponseBody,
    client::Client,
    deny_page::{Particulars, Refused},
    exchange::Exchange,
    judge::Permit,
    proxied::Promised,
    target::Target,
    upstream::{Traffic, Upstream},
};
use crate::{
    access_log::{Ending, Protocol},
    policy::{PolicyView, Verdict},
    proxy::Connection,
};

/// HTTP/1 answers one request after the other, so there is one of everything.
pub(super) struct Lane {
    pub(super) connection: Arc<Connection>,
    pub(super) client: Rc<Client>,
    current: RefCell<Option<Current>>,
    /// The last origin's connection, kept while the host stays the same.
    kept: RefCell<Option<Upstream>>,
    /// The connection that a 101 came from.
    upgraded: RefCell<Option<Upstream>>,
    /// The other end of the tunnel that a CONNECT was promised.
    promised: RefCell<Option<Promised>>,
    idle: Cell<Idle>,
    /// The origin reset its connection in the middle of an answer.
    must_reset: Cell<bool>,
    /// No further request is waited for.
    is_over: Cell<bool>,
    /// A request has come.
    was_used: Cell<bool>,
}

/// The request that is being answered.
struct Current {
    exchange: Exchange,
    /// As what it was allowed; `None` for what is refused, or only recorded.
    permit: Option<Permit>,
    /// What the client's socket had taken before.
    written_before: u64,
    /// The origin's connection, and what had been written to it before.
    origin: Option<(Rc<Traffic>, u64)>,
    /// How it ends once the socket has taken the whole answer.
    over: Option<Ending>,
    /// How it has ended before the answer was complete.
    cut: Option<Ending>,
    /// The client can tell the answer's end from its framing, and not only from the connection's.
    is_framed: bool,
}

/// Between two requests.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// When it began.
    since: Instant,
    /// How much had been read by then.
    read: u64,
    /// When the first byte of the next head was seen.
    head_since: Option<Instant>,
}

/// What to do when nothing has happened for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For the rest of a head.
    Head,
    /// For another request.
    Request,
    /// For bytes of a request that is being answered.
    Bytes,
}

/// How an answer is to be given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) is_html: bool,
    /// The request's body will not be read, or its head was doubtful: what follows cannot be told from a request.
    pub(super) closes: bool,
}

impl Lane {
    pub(super) fn new(connection: Arc<Connection>, client: Rc<Client>) -> Self {
        // The first bytes were read before: the head's time runs from accept.
        let accepted = Instant::from_std(connection.accepted);
        let idle = Idle {
            since: accepted,
            read: 0,
            head_since: Some(accepted),
        };
        Self {
            connection,
            client,
            current: RefCell::default(),
            kept: RefCell::default(),
            upgraded: RefCell::default(),
            promised: RefCell::default(),
            idle: Cell::new(idle),
            must_reset: Cell::new(false),
            is_over: Cell::new(false),
            was_used: Cell::new(false),
        }
    }

    /// Opens the account of a request whose head has arrived, or ought to have.
    pub(super) fn begin(&self, fields: Option<&HeaderMap>) {
        self.end(Ending::Complete);
        self.was_used.set(true);
        self.client.unmute();
        let mut exchange = Exchange::begin(&self.connection, Protocol::Http1);
        if let Some(fields) = fields {
            exchange.fields(fields);
        }
        *self.current.borrow_mut() = Some(Current {
            exchange,
            permit: None,
            written_before: self.client.written(),
            origin: None,
            over: None,
            cut: None,
            is_framed: true,
        });
    }

    /// Adds to the account.
    pub(super) fn note(&self, change: impl FnOnce(&mut Exchange)) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            change(&mut current.exchange);
        }
    }

    /// The request was allowed.
    pub(super) fn permit(&self, permit: Option<Permit>) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            current.permit = permit;
        }
    }

    /// Whether the request that is being answered would be refused now.
    pub(super) fn is_refused(&self, view: &PolicyView) -> bool {
        let current = self.current.borrow();
        let permit = current.as_ref().and_then(|current| current.permit.as_ref());
        permit.is_some_and(|permit| permit.is_refused(&self.connection, view))
    }

    /// For the tunnel behind a 101.
    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.current
            .borrow_mut()
            .as_mut()
            .and_then(|current| current.permit.take())
    }

    /// The request goes to this origin.
    pub(super) fn goes_to(&self, upstream: &Upstream) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            let traffic = &upstream.traffic;
            current.origin = Some((Rc::clone(traffic), traffic.written.get()));
            current.exchange.reached(&upstream.peer);
            if let Some(permit) = &current.permit {
                permit.goes_to(&upstream.peer);
            }
        }
    }

    /// The answer that says why there is no other.
    pub(super) fn explain(
        self: &Rc<Self>,
        target: Option<&Target>,
        verdict: &Verdict,
        particulars: Particulars<'_>,
        manner: Manner,
    ) -> Response<ResponseBody> {
        let page = self.page(target, verdict, particulars, manner);
        page.map(|page| ResponseBody::page(self, page))
    }

    /// The same, not yet made a body of.
    pub(super) fn page(
        &self,
        target: Option<&Target>,
        verdict: &Verdict,
        particulars: Particulars<'_>,
        manner: Manner,
    ) -> Response<Bytes> {
        let refused = Refused {
            verdict,
            host: target.map(|target| &target.host),
            port: target.map_or_else(|| self.connection.original.port(), |target| target.port),
            workload: &self.connection.workload,
            particulars,
        };
        let mut page = refused.page(manner.is_html);
        if manner.closes {
            close(page.headers_mut());
        }
        let ending = match verdict.outcome.class() {
            Class::Deny => Ending::Refused,
            Class::Fail | Class::Allow => Ending::Failed,
        };
        if let Some(current) = &mut *self.current.borrow_mut() {
            current.exchange.answer(page.status(), page.headers());
            current.over = Some(ending);
        }
        page
    }

    /// The whole answer has been handed to hyper.
    pub(super) fn answered_in_full(&self) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            current.over.get_or_insert(Ending::Complete);
            self.client.mute_after_flush();
        }
    }

    /// The origin's head has come.
    pub(super) fn answers(&self, parts: &response::Parts, client_version: Version) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            current.exchange.answer(parts.status, &parts.headers);
            let is_chunked = client_version == Version::HTTP_11 && parts.version == Version::HTTP_11;
            current.is_framed = is_chunked || parts.headers.contains_key(header::CONTENT_LENGTH);
        }
    }

    /// The answer will never be complete. `broken` if that is the origin's doing.
    pub(super) fn cut_off(&self, broken: Option<Ending>) {
        if let Some(current) = &mut *self.current.borrow_mut() {
            let is_reset = current
                .origin
                .as_ref()
                .is_some_and(|(traffic, _)| traffic.is_reset.get());
            // What is cut off must not look finished.
            self.must_reset.set(is_reset || !current.is_framed);
            current.cut = if self.client.is_gone() {
                Some(Ending::ClientAborted)
            } else {
                broken
            };
        }
    }

    /// Closes the account of a request whose answer the socket has taken.
    pub(super) fn settle(&self) {
        if self.client.is_muted() {
            self.end(Ending::Complete);
        }
    }

    /// Closes the account. `otherwise` is how it ends if nothing better is known.
    pub(super) fn end(&self, otherwise: Ending) {
        let (to_client, to_origin) = self.moved();
        let Some(Current {
            mut exchange,
            over,
            cut,
            ..
        }) = self.current.take()
        else {
            return;
        };
        exchange.moved(to_client, to_origin);
        // Complete is what the socket has taken, not what hyper has.
        let over = over.filter(|over| *over != Ending::Complete || self.client.is_muted());
        exchange.finish(cut.or(over).unwrap_or(otherwise));
        self.idle.set(Idle {
            since: Instant::now(),
            read: self.client.read(),
            head_since: None,
        });
    }

    /// Bytes to the client and to the origin for the current request.
    pub(super) fn moved(&self) -> (u64, u64) {
        let current = self.current.borrow();
        let Some(current) = current.as_ref() else {
            return (0, 0);
        };
        let to_origin = current
            .origin
            .as_ref()
            .map_or(0, |(traffic, before)| traffic.written.get() - before);
        (self.client.written() - current.written_before, to_origin)
    }

    pub(super) fn is_answering(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// What is waited for, and until when.
    pub(super) fn deadline(&self) -> (Waiting, Instant) {
        let limits = &self.connection.services.limits;
        if self.is_answering() {
            return (Waiting::Bytes, self.client.moved_at() + limits.idle_timeout);
        }
        let mut idle = self.idle.get();
        if idle.head_since.is_none() && self.client.read() > idle.read {
            idle.head_since = Some(Instant::now());
            self.idle.set(idle);
        }
        match idle.head_since {
            Some(since) => (Waiting::Head, since + limits.head_timeout),
            None => (Waiting::Request, idle.since + limits.keep_alive_timeout),
        }
    }

    /// How long ago the head that is being read was begun; `None` if none was.
    pub(super) fn head_age(&self) -> Option<Duration> {
        let (waiting, _) = self.deadline();
        let since = self.idle.get().head_since.filter(|_| waiting == Waiting::Head)?;
        Some(since.elapsed())
    }

    pub(super) fn was_used(&self) -> bool {
        self.was_used.get()
    }

    pub(super) fn keep(&self, upstream: Upstream) {
        *self.kept.borrow_mut() = Some(upstream);
    }

    pub(super) fn take_kept(&self) -> Option<Upstream> {
        self.kept.take()
    }

    pub(super) fn upgrade(&self, upstream: Upstream) {
        *self.upgraded.borrow_mut() = Some(upstream);
    }

    pub(super) fn take_upgraded(&self) -> Option<Upstream> {
        self.upgraded.take()
    }

    pub(super) fn promise(&self, promised: Promised) {
        *self.promised.borrow_mut() = Some(promised);
    }

    pub(super) fn take_promised(&self) -> Option<Promised> {
        self.promised.take()
    }

    /// No further request is waited for: what comes now is no head.
    pub(super) fn over(&self) {
        self.is_over.set(true);
    }

    /// The connection is not to end as if all were well.
    pub(super) fn reset(&self) {
        self.must_reset.set(true);
    }

    pub(super) fn must_reset(&self) -> bool {
        self.must_reset.get()
    }

    /// Hands the account of an upgraded request over to its tunnel.
    pub(super) fn take_exchange(&self) -> Option<Exchange> {
        self.current.take().map(|current| current.exchange)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The task was ended from outside, or else the account would be closed.
        if self
            .current
            .get_mut()
            .as_ref()
            .is_some_and(|current| current.over.is_none())
        {
            self.client.reset_on_close();
        }
        if !self.is_over.get() && self.head_age().is_some() {
            self.begin(None);
        }
        self.end(Ending::Drained);
    }
}

/// Asks the client to take its next request elsewhere; hyper closes behind such an answer.
pub(super) fn close(fields: &mut HeaderMap) {
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
}
