//! An allowed HTTP/1 request on its way to the origin, and the answer on its way back.

use std::{io, rc::Rc, task::Poll};

use egress_common::outcome::Outcome;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header, request};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    body::{RequestBody, ResponseBody, UploadState, lists},
    deny_page::Particulars,
    framing,
    interim::Gate,
    lane::{Lane, Manner, close},
    proxied,
    target::Target,
    upgrade::{self, Offer},
    upstream::{Allowed, Unsent, Upstream},
};
use crate::{
    policy::Verdict,
    proxy::{
        Via,
        dial::{DialError, Payload},
    },
};

/// The client has gone; there is nobody to answer.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub(super) struct Gone;

/// A request that may go on.
pub(super) struct Passed {
    pub(super) target: Target,
    pub(super) verdict: Verdict,
    pub(super) allowed: Allowed,
    pub(super) is_html: bool,
}

/// What has to be remembered of a request until its answer comes.
struct Sent {
    offer: Offer,
    version: Version,
    has_body: bool,
    upload: Rc<UploadState>,
}

/// Why no answer came.
enum Failure {
    Dial(DialError),
    /// The origin broke off or broke the rules.
    Origin,
    /// The request's body broke the rules.
    Request,
    ClientGone,
}

impl Lane {
    pub(super) async fn forward(
        self: &Rc<Self>,
        mut parts: request::Parts,
        body: Incoming,
        passed: Passed,
    ) -> Result<Response<ResponseBody>, Gone> {
        if self.connection.via == Via::Proxy {
            proxied::for_origin(&mut parts, &passed.target);
        }
        let gate = expects_continue(&parts, &body).then(Gate::default);
        let sent = Sent {
            offer: upgrade::filter(&mut parts),
            version: parts.version,
            has_body: !body.is_end_stream(),
            upload: Rc::default(),
        };
        let body = RequestBody::new(body, gate.as_ref(), &sent.upload);
        let mut request = Request::from_parts(parts, body);
        self.hear_interim(&mut request, gate, sent.version == Version::HTTP_11);
        let answer = self.send(&passed.allowed, request, &sent.upload).await;
        self.interim_sent().await;
        match answer {
            Ok((response, upstream)) => Ok(self.relay(response, upstream, &passed, &sent)),
            Err(Failure::ClientGone) => Err(Gone),
            Err(Failure::Origin) => {
                Ok(self.fail(&DialError::new(Outcome::OriginFailed), &passed, sent.has_body))
            }
            Err(Failure::Request) => Ok(self.fail(&DialError::new(Outcome::MalformedHttp), &passed, true)),
            Err(Failure::Dial(error)) => {
                self.note(|exchange| exchange.not_reached(&error));
                Ok(self.fail(&error, &passed, sent.has_body))
            }
        }
    }

    /// Sends the request over the kept connection if it leads to the same host, else over a new one.
    ///
    /// A kept connection that the origin has closed in the meantime is no fault of the request: it is sent once more over
    /// a new one if no byte of it was written, or if it is one that may be repeated (RFC 9110 section 9.2.2), has no
    /// body, and no byte of an answer came.
    async fn send(
        &self,
        allowed: &Allowed,
        mut request: Request<RequestBody>,
        upload: &UploadState,
    ) -> Result<(Response<Incoming>, Upstream), Failure> {
        let payload = payload(&request);
        let kept = self
            .take_kept()
            .filter(|kept| kept.serves(&self.connection, allowed, payload));
        if let Some(mut kept) = kept
            && kept.sender.ready().await.is_ok()
        {
            let spare = is_repeatable(&request).then(|| repeat(&request));
            self.goes_to(&kept);
            let read_before = kept.traffic.read.get();
            match kept.send(request).await {
                Ok(response) => return Ok((response, kept)),
                Err(unsent) => {
                    let is_silent = kept.traffic.read.get() == read_before;
                    let again = unsent.request.or_else(|| spare.filter(|_| is_silent));
                    request = again.ok_or_else(|| self.failure(upload))?;
                }
            }
        }
        let mut upstream = Upstream::dial(&self.connection, &self.client, allowed, payload)
            .await
            .map_err(Failure::Dial)?;
        self.goes_to(&upstream);
        match upstream.send(request).await {
            Ok(response) => Ok((response, upstream)),
            Err(unsent) => {
                let Unsent { error, .. } = *unsent;
                tracing::debug!(%error, host = %allowed.host, "no answer");
                Err(self.failure(upload))
            }
        }
    }

    /// Who broke off: a request's body that ends early fails the connection to the origin as well.
    fn failure(&self, upload: &UploadState) -> Failure {
        if self.client.is_gone() {
            Failure::ClientGone
        } else if upload.is_broken.get() {
            Failure::Request
        } else {
            Failure::Origin
        }
    }

    /// Makes the answer the client's.
    fn relay(
        self: &Rc<Self>,
        response: Response<Incoming>,
        upstream: Upstream,
        passed: &Passed,
        sent: &Sent,
    ) -> Response<ResponseBody> {
        let (mut parts, body) = response.into_parts();
        if !framing::settle(&mut parts.headers) {
            return self.fail(&DialError::new(Outcome::OriginFailed), passed, true);
        }
        if upstream.is_parents() && parts.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            // The client knows of no proxy, or of another one: it could not do anything about it.
            return self.fail(&DialError::new(Outcome::ParentFailed), passed, true);
        }
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrade::is_taken(sent.offer, &parts.headers) {
                // Nobody offered what it switches to.
                return self.fail(&DialError::new(Outcome::OriginFailed), passed, true);
            }
            self.answers(&parts, sent.version);
            self.upgrade(upstream);
            return Response::from_parts(parts, ResponseBody::page(self, bytes::Bytes::new()));
        }
        // An answer before the body was asked for: client and origin may not agree on whether the body still comes, and
        // what one takes for a body the other could take for a request that nobody judged.
        let is_settled = sent.upload.is_open.get();
        if !is_settled {
            close(&mut parts.headers);
        }
        self.answers(&parts, sent.version);
        let body = ResponseBody::origin(self, body, upstream, is_settled);
        Response::from_parts(parts, body)
    }

    /// The news that the request was allowed and came to nothing.
    pub(super) fn fail(
        self: &Rc<Self>,
        error: &DialError,
        passed: &Passed,
        closes: bool,
    ) -> Response<ResponseBody> {
        let mut verdict = passed.verdict.clone();
        verdict.outcome = error.outcome;
        self.note(|exchange| exchange.failed(error.outcome));
        let particulars = Particulars {
            detail: None,
            errno: error.source.as_ref().and_then(io::Error::raw_os_error),
        };
        let manner = Manner {
            is_html: passed.is_html,
            closes,
        };
        self.explain(Some(&passed.target), &verdict, particulars, manner)
    }

    /// Has the origin's 1xx heads passed on, and 100 open the gate.
    fn hear_interim(&self, request: &mut Request<RequestBody>, gate: Option<Gate>, passes: bool) {
        let interim = self.client.interim.clone();
        hyper::ext::on_informational(request, move |head| {
            if head.status() == StatusCode::CONTINUE {
                // hyper says 100 to the client when the body is first read.
                if let Some(gate) = &gate {
                    gate.open();
                }
            } else if passes {
                // RFC 9110 section 15.2: not to a client of HTTP/1.0.
                interim.push(head.status(), head.headers());
            }
        });
    }

    /// Waits until the heads that came before the answer are out. Whoever sends them wakes this task.
    async fn interim_sent(&self) {
        std::future::poll_fn(|_| {
            if self.client.interim.is_empty() || self.client.is_gone() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// What a parent proxy would be sent: an upgrade, and an `OPTIONS *`, which has no absolute form, are not for it to
/// understand.
fn payload(request: &Request<RequestBody>) -> Payload {
    if request.headers().contains_key(header::UPGRADE) || request.uri().path() == "*" {
        Payload::Bytes
    } else {
        Payload::Requests
    }
}

fn expects_continue(parts: &request::Parts, body: &Incoming) -> bool {
    parts.version == Version::HTTP_11
        && !body.is_end_stream()
        && lists(&parts.headers, &header::EXPECT, "100-continue")
}

/// RFC 9110 section 9.2.2, and nothing that would have to be read twice.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    let is_idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    is_idempotent && request.body().is_end_stream()
}

fn repeat(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = HeaderMap::clone(request.headers());
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
