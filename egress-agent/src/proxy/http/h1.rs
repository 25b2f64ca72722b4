//! HTTP/1.0 and 1.1: hyper reads heads and bodies, the lane answers, and the end is told for what it is.

use std::{
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::{BufMut, Bytes, BytesMut};
use egress_common::outcome::Outcome;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::LocalSet, time::sleep_until};

use super::{
    body::ResponseBody,
    client::{Client, ClientIo},
    clock::poll_deadline,
    deny_page::{Particulars, wants_html},
    exchange::Exchange,
    forward::{Gone, Passed},
    judge::{Judged, Permit, judge},
    lane::{Lane, Manner, Waiting},
    proxied::{Opened, Promised},
    target::Head,
    upstream::{Allowed, BUFFER_BYTES, MOST_FIELDS, Upstream},
};
use crate::{
    access_log::Ending,
    drain::DrainWatcher,
    policy::{PolicyView, Verdict},
    proxy::{Connection, tunnel},
};

/// Why the conversation with the client is over.
enum End {
    /// hyper is through with it.
    Hyper(hyper::Result<()>),
    /// Nothing happened for too long.
    Waited(Waiting),
    /// New policies refuse the request that is being answered.
    Revoked,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Gone>>>>;

/// Serves one client connection to its end, or until it has become a tunnel by CONNECT. `prefix` was read from it before.
pub(super) async fn serve(
    connection: Arc<Connection>,
    stream: TcpStream,
    prefix: Bytes,
    drain: DrainWatcher,
) -> Option<Opened> {
    // The tasks of upstream connections live in here and end with it.
    LocalSet::new()
        .run_until(converse(connection, stream, prefix, drain))
        .await
}

async fn converse(
    connection: Arc<Connection>,
    stream: TcpStream,
    prefix: Bytes,
    drain: DrainWatcher,
) -> Option<Opened> {
    let client = Client::new(stream, prefix);
    let lane = Rc::new(Lane::new(connection, client));
    let (end, unread) = drive(&lane, drain).await;
    lane.over();
    match end {
        End::Hyper(Ok(())) => {
            if let Some(promised) = lane.take_promised() {
                return opened(lane, promised, unread);
            }
            if let Some(upstream) = lane.take_upgraded() {
                tunnelled(lane, upstream, unread).await;
                return None;
            }
            lane.end(Ending::Complete);
        }
        End::Hyper(Err(error)) => broken(&lane, &error).await,
        End::Waited(waiting) => waited(&lane, waiting).await,
        End::Revoked => {
            lane.end(Ending::PolicyChanged);
            lane.reset();
        }
    }
    if lane.must_reset() {
        lane.client.reset_on_close();
    } else {
        lane.client.linger().await;
    }
    None
}

/// What the client has been promised, if it is still there.
fn opened(lane: Rc<Lane>, promised: Promised, unread: Bytes) -> Option<Opened> {
    let (to_client, _) = lane.moved();
    let mut pending = lane.take_exchange()?.into_pending()?;
    pending.bytes_to_client = to_client;
    let client = Rc::clone(&lane.client);
    let connection = Arc::clone(&lane.connection);
    drop(lane);
    Some(Opened {
        connection,
        stream: client.into_stream()?,
        unread,
        promised,
        pending,
    })
}

/// Lets hyper read, and the lane answer, until one of them or the clock has had enough. Also gives what hyper has read
/// and not used.
async fn drive(lane: &Rc<Lane>, mut drain: DrainWatcher) -> (End, Bytes) {
    let limits = &lane.connection.services.limits;
    let service = service_fn({
        let lane = Rc::clone(lane);
        move |request| -> Answering { Box::pin(handle(Rc::clone(&lane), request)) }
    });
    let mut wire = http1::Builder::new()
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_headers(MOST_FIELDS)
        .max_header_size(limits.head_bytes)
        .max_buf_size(BUFFER_BYTES.max(limits.head_bytes))
        .serve_connection(TokioIo::new(ClientIo(Rc::clone(&lane.client))), service);
    let mut timer = pin!(sleep_until(lane.deadline().1));
    let mut draining = pin!(drain.started());
    let mut revoked = pin!(lane.connection.revoked(|view| lane.is_refused(view)));
    let mut is_draining = false;
    let mut has_ended = false;
    let end = std::future::poll_fn(|cx| {
        if lane.client.poll_interim(cx).is_err() {
            lane.client.mark_gone();
        }
        loop {
            match Pin::new(&mut wire).poll(cx) {
                // A connection that was, or could have been, upgraded ends without having been flushed: the second poll
                // does that.
                Poll::Ready(Ok(())) if !has_ended => has_ended = true,
                Poll::Ready(result) => return Poll::Ready(End::Hyper(result)),
                // Not before the first request, which may be here already and not yet read: its client would see a new
                // connection fail.
                Poll::Pending if !is_draining && lane.was_used() && draining.as_mut().poll(cx).is_ready() => {
                    is_draining = true;
                    // An idle connection is closed, any other behind the answer that is due.
                    Pin::new(&mut wire).graceful_shutdown();
                }
                Poll::Pending => break,
            }
        }
        lane.settle();
        if revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Revoked);
        }
        let (waiting, deadline) = lane.deadline();
        poll_deadline(timer.as_mut(), deadline, cx).map(|()| End::Waited(waiting))
    })
    .await;
    (end, wire.into_parts().read_buf)
}

async fn handle(lane: Rc<Lane>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Gone> {
    let (parts, body) = request.into_parts();
    lane.begin(Some(&parts.headers));
    let head = Head::of(&parts);
    let is_html = wants_html(&parts.headers);
    match judge(&lane.connection, &head) {
        Judged::Pass {
            target,
            verdict,
            view,
            enforced,
        } => {
            lane.note(|exchange| {
                exchange.asked(&head, Some(&target));
                exchange.verdict(verdict.clone(), enforced);
            });
            lane.permit(enforced.then(|| Permit::new(&head, &target)));
            let allowed = Allowed {
                host: target.host.clone(),
                port: target.port,
                view,
                enforced,
            };
            let passed = Passed {
                target,
                verdict,
                allowed,
                is_html,
            };
            if parts.method == Method::CONNECT {
                // Nothing is allowed yet to a request in it.
                lane.permit(None);
                return Ok(lane.connect(passed).await);
            }
            lane.forward(parts, body, passed).await
        }
        Judged::Refuse {
            target,
            verdict,
            refusal,
        } => {
            lane.note(|exchange| {
                exchange.asked(&head, target.as_ref());
                exchange.verdict(verdict.clone(), true);
            });
            let closes = target.is_none() || !body.is_end_stream();
            let detail = refusal.map(|refusal| refusal.to_string());
            let particulars = Particulars {
                detail: detail.as_deref(),
                errno: None,
            };
            Ok(lane.explain(target.as_ref(), &verdict, particulars, Manner { is_html, closes }))
        }
    }
}

/// hyper gave up: in the middle of an answer, or over a head.
async fn broken(lane: &Rc<Lane>, error: &hyper::Error) {
    tracing::debug!(%error, client = %lane.connection.client, "client connection");
    // The head that could not be read came right behind an answer.
    lane.settle();
    if lane.is_answering() {
        let is_gone = lane.client.is_gone();
        return lane.end(if is_gone {
            Ending::ClientAborted
        } else {
            Ending::OriginAborted
        });
    }
    if error.is_parse() {
        // 414 and 431.
        let is_large = error.is_parse_too_large() || lane.client.swallowed_status() == Some(414);
        let outcome = if is_large {
            Outcome::HeadTooLarge
        } else {
            Outcome::MalformedHttp
        };
        return last_word(lane, outcome).await;
    }
    if let Some(age) = lane.head_age() {
        lane.begin(None);
        lane.note(|exchange| exchange.began(age));
        lane.end(Ending::ClientAborted);
    }
}

async fn waited(lane: &Rc<Lane>, waiting: Waiting) {
    match waiting {
        Waiting::Request => {}
        Waiting::Head => last_word(lane, Outcome::HeadTimeout).await,
        Waiting::Bytes => {
            lane.end(Ending::IdleTimeout);
            lane.reset();
        }
    }
}

/// Answers a head that never became a request.
async fn last_word(lane: &Rc<Lane>, outcome: Outcome) {
    let age = lane.head_age().unwrap_or_default();
    let verdict = Verdict::without_rule(outcome);
    lane.begin(None);
    lane.note(|exchange| {
        exchange.began(age);
        exchange.verdict(verdict.clone(), true);
    });
    let manner = Manner {
        is_html: false,
        closes: true,
    };
    let page = lane.page(None, &verdict, Particulars::default(), manner);
    if let Err(error) = lane.client.say(written_out(&page)).await {
        tracing::debug!(%error, "cannot say why");
    }
    lane.end(Ending::Refused);
}

/// As hyper would write it.
fn written_out(page: &Response<Bytes>) -> Bytes {
    let mut text = BytesMut::new();
    let status = page.status();
    let reason = status.canonical_reason().unwrap_or_default();
    text.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in page.headers() {
        text.put_slice(name.as_str().as_bytes());
        text.put_slice(b": ");
        text.put_slice(value.as_bytes());
        text.put_slice(b"\r\n");
    }
    text.put_slice(format!("content-length: {}\r\n\r\n", page.body().len()).as_bytes());
    text.put_slice(page.body());
    text.freeze()
}

/// Behind a 101: bytes both ways, whatever they are.
async fn tunnelled(lane: Rc<Lane>, upstream: Upstream, to_origin: Bytes) {
    let before = lane.moved();
    let permit = lane.take_permit();
    let mut exchange = lane.take_exchange();
    if let Some(exchange) = &mut exchange {
        exchange.opened();
    }
    let client = Rc::clone(&lane.client);
    let connection = Arc::clone(&lane.connection);
    drop(lane);
    let mut account = TunnelAccount {
        exchange,
        counters: tunnel::Counters::default(),
        before,
    };
    let remains = upstream.into_remains().await;
    let (Some(remains), Some(stream)) = (remains, client.into_stream()) else {
        return account.end(Ending::OriginAborted);
    };
    let prefixes = tunnel::Prefixes {
        to_origin,
        to_client: remains.unread,
    };
    let limits = &connection.services.limits;
    let is_refused = |view: &PolicyView| {
        permit
            .as_ref()
            .is_some_and(|permit| permit.is_refused(&connection, view))
    };
    let ending = tokio::select! {
        ending = tunnel::tunnel_with(stream, remains.stream, prefixes, limits, &account.counters) => ending,
        // The tunnel is dropped before its end: both legs are reset.
        () = connection.revoked(is_refused) => Ending::PolicyChanged,
    };
    account.end(ending);
}

/// The account of an upgraded request; closed also if the tunnel is ended from outside.
struct TunnelAccount {
    exchange: Option<Exchange>,
    counters: tunnel::Counters,
    before: (u64, u64),
}

impl TunnelAccount {
    fn end(&mut self, ending: Ending) {
        if let Some(mut exchange) = self.exchange.take() {
            let (to_client, to_origin) = self.before;
            exchange.moved(
                to_client + self.counters.to_client(),
                to_origin + self.counters.to_origin(),
            );
            exchange.finish(ending);
        }
    }
}

impl Drop for TunnelAccount {
    fn drop(&mut self) {
        self.end(Ending::Drained);
    }
}
