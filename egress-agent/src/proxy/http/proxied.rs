//! What the explicit proxy does besides: a request in absolute form is made fit for its origin, and a CONNECT becomes a
//! tunnel, which the caller of the lane goes on with.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Uri, header, request};
use hyper::ext::ReasonPhrase;
use tokio::net::TcpStream;

use super::{
    body::ResponseBody,
    forward::Passed,
    lane::Lane,
    target::Target,
    upstream::{Allowed, dial},
};
use crate::{
    access_log::Pending,
    policy::Host,
    proxy::{
        Connection,
        dial::{Dialled, Payload},
    },
};

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// squid's own words, which some clients show.
const ESTABLISHED: &[u8] = b"Connection established";

/// A tunnel that was allowed and dialled, and whose client has been told so.
#[derive(Debug)]
pub struct Opened {
    /// The client's connection to the proxy.
    pub connection: Arc<Connection>,
    /// The client.
    pub stream: TcpStream,
    /// What it has sent already, behind its CONNECT.
    pub unread: Bytes,
    /// What was dialled for it.
    pub promised: Promised,
    /// The record of the CONNECT, with what has been sent so far.
    pub pending: Pending,
}

/// The other end of a tunnel.
#[derive(Debug)]
pub struct Promised {
    /// The host that the CONNECT named.
    pub host: Host,
    /// And the port.
    pub port: u16,
    /// The connection to it.
    pub dialled: Dialled,
    /// Whether verdicts are carried out.
    pub enforced: bool,
}

/// Makes an origin's request of a proxy's: RFC 9112 section 3.2.1 has the origin-form there. What is meant for the proxy
/// alone does not go on, credentials least of all.
pub(super) fn for_origin(parts: &mut request::Parts, target: &Target) {
    parts.headers.remove(PROXY_CONNECTION);
    parts.headers.remove(header::PROXY_AUTHORIZATION);
    if !parts.headers.contains_key(header::HOST)
        && let Some(field) = parts
            .uri
            .authority()
            .map(|authority| HeaderValue::from_str(authority.as_str()))
            .or_else(|| {
                target
                    .url
                    .authority()
                    .map(|own| HeaderValue::from_str(own.as_str()))
            })
            .and_then(Result::ok)
    {
        // A client of HTTP/1.0: its origin has many hosts nevertheless.
        parts.headers.insert(header::HOST, field);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
}

impl Lane {
    /// Dials what a CONNECT names, and says so. The rest is the tunnel's.
    pub(super) async fn connect(self: &Rc<Self>, passed: Passed) -> Response<ResponseBody> {
        let Allowed {
            host, port, enforced, ..
        } = &passed.allowed;
        match dial(&self.connection, &passed.allowed, Payload::Bytes).await {
            Ok(dialled) => {
                self.note(|exchange| exchange.reached(&dialled.peer));
                self.promise(Promised {
                    host: host.clone(),
                    port: *port,
                    dialled,
                    enforced: *enforced,
                });
                let mut answer = Response::new(ResponseBody::page(self, Bytes::new()));
                answer
                    .extensions_mut()
                    .insert(ReasonPhrase::from_static(ESTABLISHED));
                self.note(|exchange| exchange.answer(StatusCode::OK, answer.headers()));
                answer
            }
            Err(error) => {
                self.note(|exchange| exchange.not_reached(&error));
                self.fail(&error, &passed, false)
            }
        }
    }
}
