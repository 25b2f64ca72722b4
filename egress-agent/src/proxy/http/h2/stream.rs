//! One stream: judged, forwarded or refused, and accounted for.

use std::{error::Error, fmt, io, rc::Rc, sync::Arc};

use egress_common::outcome::{Class, Outcome};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header, request, uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    super::{
        deny_page::{Particulars, Refused, wants_html},
        exchange::Exchange,
        judge::{Judged, Permit, judge},
        target::Head,
        upstream::Allowed,
    },
    Shared,
    body::{Broken, Revocation, StreamBody, Upload, UploadBody, head_bytes},
    pool::{Lease, Unsent},
};
use crate::{
    access_log::{Ending, Protocol},
    policy::{Host, Verdict},
    proxy::dial::DialError,
};

/// The account of one stream, closed when it is dropped.
pub(super) struct Account {
    shared: Rc<Shared>,
    exchange: Option<Exchange>,
    upload: Rc<Upload>,
    /// Bytes of the request's head, once it was passed on.
    to_origin_head: u64,
    pub(super) to_client: u64,
    /// The answer has been handed over in full.
    pub(super) is_complete: bool,
    /// How it ends if the answer is complete.
    otherwise: Ending,
    /// Why the answer is not complete.
    pub(super) cut: Option<Ending>,
    /// As what the request was allowed; `None` for what is refused, or only recorded.
    permit: Option<Permit>,
}

/// The stream is to be reset, for the reason of `source` if it has one.
#[derive(Debug)]
pub(super) struct Reset {
    source: Broken,
}

/// How to tell a client no.
struct Asker {
    is_html: bool,
    /// `Content-Type` of a gRPC call.
    grpc: Option<HeaderValue>,
}

/// Why no answer came.
enum Failure {
    Dial(DialError),
    /// The origin, or the client, reset the stream: so is the other side's.
    Reset(Broken),
}

/// Answers one stream.
pub(super) async fn handle(
    shared: Rc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<StreamBody>, Reset> {
    let (parts, body) = request.into_parts();
    let mut account = Account::open(shared, &parts.headers);
    let asker = Asker::of(&parts.headers);
    let connection = Rc::clone(&account.shared);
    let connection = &connection.connection;
    let head = Head::of(&parts);
    match judge(connection, &head) {
        Judged::Pass {
            target,
            verdict,
            view,
            enforced,
        } => {
            account.note(|exchange| {
                exchange.asked(&head, Some(&target));
                exchange.verdict(verdict.clone(), enforced);
            });
            let allowed = Allowed {
                host: target.host.clone(),
                port: target.port,
                view,
                enforced,
            };
            account.permit = enforced.then(|| Permit::new(&head, &target));
            forward(account, parts, body, allowed, verdict, &asker).await
        }
        Judged::Refuse {
            target,
            verdict,
            refusal,
        } => {
            account.note(|exchange| {
                exchange.asked(&head, target.as_ref());
                exchange.verdict(verdict.clone(), true);
            });
            let host = target.as_ref().map(|target| &target.host);
            let detail = refusal.map(|refusal| refusal.to_string());
            let particulars = Particulars {
                detail: detail.as_deref(),
                errno: None,
            };
            Ok(account.explain(host, &verdict, particulars, &asker))
        }
    }
}

async fn forward(
    mut account: Account,
    mut parts: request::Parts,
    body: Incoming,
    allowed: Allowed,
    mut verdict: Verdict,
    asker: &Asker,
) -> Result<Response<StreamBody>, Reset> {
    parts.uri = whole(parts.uri, &allowed);
    account.to_origin_head = head_bytes(&parts.headers);
    let body = UploadBody::new(body, &account.upload, account.revocation());
    let request = Request::from_parts(parts, body);
    let revocation = account.revocation();
    let sent = tokio::select! {
        sent = send(&mut account, &allowed, request) => sent,
        () = revocation => Err(Failure::Reset(Broken::Revoked)),
    };
    match sent {
        Ok((response, lease)) => {
            let (parts, body) = response.into_parts();
            account.answers(&parts.status, &parts.headers);
            let revocation = account.revocation();
            Ok(Response::from_parts(
                parts,
                StreamBody::origin(body, lease, revocation, account),
            ))
        }
        Err(Failure::Dial(error)) => {
            verdict.outcome = error.outcome;
            account.note(|exchange| exchange.failed(error.outcome));
            let particulars = Particulars {
                detail: None,
                errno: error.source.as_ref().and_then(io::Error::raw_os_error),
            };
            Ok(account.explain(Some(&allowed.host), &verdict, particulars, asker))
        }
        Err(Failure::Reset(source)) => {
            match source {
                Broken::Sender(_) => account.cut = Some(Ending::OriginAborted),
                Broken::Revoked => account.revoke(),
            }
            Err(Reset { source })
        }
    }
}

/// Sends the request over the host's connection; once more, over a new one, if that had gone stale and it does no harm
/// (as in HTTP/1: nothing was sent, or the method may be repeated and there is no body).
async fn send(
    account: &mut Account,
    allowed: &Allowed,
    mut request: Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let shared = Rc::clone(&account.shared);
    let mut may_repeat = true;
    loop {
        let mut lease = shared.pool.lease(&shared, allowed).await.map_err(|error| {
            account.note(|exchange| exchange.not_reached(&error));
            Failure::Dial(error)
        })?;
        account.note(|exchange| exchange.reached(&lease.link.peer));
        if let Some(permit) = &account.permit {
            permit.goes_to(&lease.link.peer);
        }
        may_repeat &= lease.was_kept;
        let spare = (may_repeat && is_repeatable(&request)).then(|| repeat(&request));
        let Unsent {
            request: unsent,
            error,
        } = match lease.link.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(unsent) => *unsent,
        };
        tracing::debug!(%error, host = %allowed.host, "no answer");
        if is_stream_reset(&error) {
            return Err(Failure::Reset(Broken::Sender(error)));
        }
        request = match unsent.filter(|_| may_repeat).or(spare) {
            Some(request) => request,
            None => return Err(Failure::Dial(DialError::new(Outcome::OriginFailed))),
        };
        may_repeat = false;
    }
}

impl Account {
    fn open(shared: Rc<Shared>, fields: &HeaderMap) -> Self {
        shared.active.set(shared.active.get() + 1);
        shared.was_used.set(true);
        let mut exchange = Exchange::begin(&shared.connection, Protocol::Http2);
        exchange.fields(fields);
        Self {
            shared,
            exchange: Some(exchange),
            upload: Rc::default(),
            to_origin_head: 0,
            to_client: 0,
            is_complete: false,
            otherwise: Ending::Complete,
            cut: None,
            permit: None,
        }
    }

    /// Ready once new policies refuse the request; each body watches for itself, since hyper wakes them one by one.
    fn revocation(&self) -> Revocation {
        let Some(permit) = self.permit.clone() else {
            return Box::pin(std::future::pending());
        };
        let connection = Arc::clone(&self.shared.connection);
        Box::pin(async move {
            let connection = &connection;
            connection
                .revoked(|view| permit.is_refused(connection, view))
                .await;
        })
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.upload.is_revoked.get()
    }

    pub(super) fn revoke(&self) {
        self.upload.is_revoked.set(true);
    }

    fn note(&mut self, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = &mut self.exchange {
            change(exchange);
        }
    }

    fn answers(&mut self, status: &http::StatusCode, fields: &HeaderMap) {
        self.to_client += head_bytes(fields);
        self.note(|exchange| exchange.answer(*status, fields));
    }

    /// The answer that says why there is no other.
    fn explain(
        mut self,
        host: Option<&Host>,
        verdict: &Verdict,
        particulars: Particulars<'_>,
        asker: &Asker,
    ) -> Response<StreamBody> {
        let shared = Rc::clone(&self.shared);
        let refused = Refused {
            verdict,
            host,
            port: shared.connection.original.port(),
            workload: &shared.connection.workload,
            particulars,
        };
        let page = match &asker.grpc {
            Some(content_type) => refused.grpc(content_type),
            None => refused.page(asker.is_html),
        };
        self.otherwise = match verdict.outcome.class() {
            Class::Deny => Ending::Refused,
            Class::Fail | Class::Allow => Ending::Failed,
        };
        self.answers(&page.status(), page.headers());
        page.map(|page| StreamBody::page(page, self))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
        self.shared.idle_since.set(Instant::now());
        let Some(mut exchange) = self.exchange.take() else {
            return;
        };
        exchange.moved(self.to_client, self.to_origin_head + self.upload.bytes.get());
        let ending = match self.cut {
            _ if self.is_revoked() => Ending::PolicyChanged,
            Some(cut) => cut,
            None if self.is_complete => self.otherwise,
            None => self.shared.ending.get(),
        };
        exchange.finish(ending);
    }
}

impl Asker {
    fn of(fields: &HeaderMap) -> Self {
        let is_grpc = |value: &&HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        Self {
            is_html: wants_html(fields),
            grpc: fields.get(header::CONTENT_TYPE).filter(is_grpc).cloned(),
        }
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream is given up")
    }
}

impl Error for Reset {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Whether the origin reset the one stream, and not its whole connection.
fn is_stream_reset(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<::h2::Error>() {
            return error.is_reset();
        }
        source = error.source();
    }
    false
}

/// A target with scheme and authority, which HTTP/2 needs: a client may name its host in `Host` alone (RFC 9113 section
/// 8.3.1).
fn whole(sent: Uri, allowed: &Allowed) -> Uri {
    if sent.authority().is_some() && sent.scheme().is_some() {
        return sent;
    }
    let mut parts = sent.clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = parts.authority.or_else(|| allowed.host.to_string().parse().ok());
    parts
        .path_and_query
        .get_or_insert(uri::PathAndQuery::from_static("/"));
    Uri::from_parts(parts).unwrap_or(sent)
}

/// RFC 9110 section 9.2.2, and nothing that would have to be read twice.
fn is_repeatable(request: &Request<UploadBody>) -> bool {
    let is_idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    is_idempotent && request.body().is_end_stream()
}

fn repeat(request: &Request<UploadBody>) -> Request<UploadBody> {
    let mut copy = Request::new(UploadBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
