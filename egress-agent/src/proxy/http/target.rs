//! Where a request goes: one host, or a refusal. Pure; nothing is read or sent here.
//!
//! A request can name its host in up to three places (absolute-form target, `Host`, `:authority`). They must agree, or
//! two readers of the same bytes could pick different ones; what disagrees is refused with 400 instead of guessed at.

use std::net::SocketAddr;

use egress_common::outcome::Outcome;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request};

use crate::policy::Host;

/// The only scheme that clear text on an intercepted port can have, and its default port.
const SCHEME: &str = "http";
const DEFAULT_PORT: u16 = 80;

/// What a request asks for, as far as judging and logging need it. What is passed on to the origin is the request as it
/// came, never a rendering of this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host to judge and to dial.
    pub host: Host,
    /// The port to judge and to dial: the one that the workload dialled, or named to the explicit proxy.
    pub port: u16,
    /// The port written behind the host, if one was. Without a proxy it is **not** judged and not dialled. It may differ
    /// from the dialled one: behind a port forward a client rightly says `Host: name:8080` while it dials 80, and the
    /// port in a header opens nothing. Only a contradiction between two places of one request is refused.
    pub port_in_authority: Option<u16>,
    /// Absolute URL for the log: the judged host and port, unless that is 80, path and query as sent. Of a CONNECT the
    /// host and port alone.
    pub url: Uri,
}

/// The parts of a request head that name its target.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Request-target; for HTTP/2 `:scheme`, `:authority` and `:path`.
    pub uri: &'a Uri,
    /// Version on the client's side.
    pub version: Version,
    /// All fields.
    pub headers: &'a HeaderMap,
}

/// Why a request has no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// RFC 9112 section 3.2: 400 for HTTP/1.1 without Host.
    #[error("the request names no host")]
    NoHost,
    /// RFC 9112 section 3.2: 400 for more than one Host line.
    #[error("the request has more than one Host field")]
    SeveralHosts,
    /// The request-target (or `:authority`) says one host or port and `Host` another.
    #[error("the request-target and the Host field name different hosts")]
    Contradiction,
    /// `user@host`: RFC 9110 section 4.2.4 makes it an error, and parsers disagree about where the host begins.
    #[error("the host is preceded by user information")]
    UserInfo,
    /// Not a host name, an IPv4 address or a bracketed IPv6 address.
    #[error("the host is no name and no address")]
    BadHost,
    /// Not a number from 1 to 65535.
    #[error("the port is no number from 1 to 65535")]
    BadPort,
    /// Absolute-form with a scheme that the origin would have to fetch for us.
    #[error("the scheme of the request-target is not http")]
    Scheme,
    /// Neither a path nor a URL nor `*` for OPTIONS.
    #[error("the request-target is neither a path nor an http URL")]
    Form,
    /// CONNECT where no proxy was dialled, plain or extended: what would flow through it could not be judged.
    #[error("CONNECT is not possible here: connect to the destination itself")]
    Connect,
    /// Sent to the explicit proxy as to an origin: RFC 9112 section 3.2.2 wants the absolute form.
    #[error("a proxy is asked for a whole http URL, or for HOST:PORT by CONNECT")]
    NotForProxy,
}

/// `host[:port]`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

impl<'a> Head<'a> {
    /// Of a request as hyper gives it.
    #[must_use]
    pub const fn of(parts: &'a request::Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            version: parts.version,
            headers: &parts.headers,
        }
    }
}

impl Target {
    /// Reads the target of a request on a connection that dialled `original`.
    ///
    /// HTTP/1.0 without `Host` names nothing: it is judged as the dialled address, which only a `cidr` rule allows.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn read(head: &Head<'_>, original: SocketAddr) -> Result<Self, Refusal> {
        if head.method == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        check_form(head)?;
        let stated = head
            .uri
            .authority()
            .map(|text| Authority::parse(text.as_str()))
            .transpose()?;
        let field = host_field(head.headers)?;
        if field.is_none() && head.version == Version::HTTP_11 {
            return Err(Refusal::NoHost);
        }
        let authority = agree(stated, field)?;
        let (host, port_in_authority) = match authority {
            Some(Authority { host, port }) => (host, port),
            None if head.version < Version::HTTP_11 => (Host::Address(original.ip().to_canonical()), None),
            None => return Err(Refusal::NoHost),
        };
        let port = original.port();
        let url = url(&host, port, head.uri)?;
        Ok(Self {
            host,
            port,
            port_in_authority,
            url,
        })
    }

    /// Reads the target of a request to the explicit proxy: a whole URL, or the authority of a CONNECT.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn read_for_proxy(head: &Head<'_>) -> Result<Self, Refusal> {
        if head.version > Version::HTTP_11 {
            return Err(Refusal::NotForProxy);
        }
        let is_connect = head.method == Method::CONNECT;
        let stated = match (head.uri.authority(), head.uri.scheme_str()) {
            (Some(stated), None) if is_connect => Authority::parse(stated.as_str())?,
            (Some(stated), Some(_)) if !is_connect => {
                check_form(head)?;
                Authority::parse(stated.as_str())?
            }
            _ => return Err(Refusal::NotForProxy),
        };
        let field = host_field(head.headers)?;
        if is_connect {
            // Nothing else can be meant, and clients leave the field or its port out.
            let agrees = |field: &Authority| {
                field.host == stated.host && field.port.is_none_or(|port| Some(port) == stated.port)
            };
            if !field.as_ref().is_none_or(agrees) {
                return Err(Refusal::Contradiction);
            }
        } else if field.is_none() && head.version == Version::HTTP_11 {
            return Err(Refusal::NoHost);
        }
        let authority = if is_connect {
            stated
        } else {
            agree(Some(stated), field)?.ok_or(Refusal::NoHost)?
        };
        let port = match authority.port {
            Some(port) => port,
            // RFC 9110 section 9.3.6: there is no default.
            None if is_connect => return Err(Refusal::BadPort),
            None => DEFAULT_PORT,
        };
        let host = authority.host;
        let url = if is_connect {
            Uri::builder()
                .authority(format!("{host}:{port}"))
                .build()
                .map_err(|_| Refusal::BadHost)?
        } else {
            url(&host, port, head.uri)?
        };
        Ok(Self {
            host,
            port,
            port_in_authority: authority.port,
            url,
        })
    }

    /// What to log for a request whose target cannot be told: the dialled address in the place of the host.
    #[must_use]
    pub fn url_of_dialled(sent: &Uri, original: SocketAddr) -> Option<Uri> {
        url(
            &Host::Address(original.ip().to_canonical()),
            original.port(),
            sent,
        )
        .ok()
    }
}

impl Refusal {
    /// The outcome for record and answer.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::NoHost | Self::SeveralHosts | Self::Contradiction | Self::UserInfo | Self::BadHost => {
                Outcome::AmbiguousHost
            }
            Self::BadPort | Self::Scheme | Self::Form | Self::NotForProxy => Outcome::MalformedHttp,
            Self::Connect => Outcome::ForbiddenMethod,
        }
    }
}

impl Authority {
    /// Reads `host[:port]` (RFC 3986 section 3.2), without userinfo. Percent-encoded and non-ASCII hosts are refused:
    /// who decodes them, and when, differs from reader to reader.
    fn parse(text: &str) -> Result<Self, Refusal> {
        if text.contains('@') {
            return Err(Refusal::UserInfo);
        }
        let (host, port) = split_port(text)?;
        if host.is_empty() {
            return Err(Refusal::NoHost);
        }
        Ok(Self {
            host: parse_host(host)?,
            port,
        })
    }

    /// The same host and, with the scheme's default filled in, the same port.
    fn agrees_with(&self, other: &Self) -> bool {
        self.host == other.host && self.port.unwrap_or(DEFAULT_PORT) == other.port.unwrap_or(DEFAULT_PORT)
    }
}

/// Origin-form, absolute-form with `http`, or `*` with OPTIONS (RFC 9112 section 3.2). HTTP/2 always has a scheme.
fn check_form(head: &Head<'_>) -> Result<(), Refusal> {
    if let Some(scheme) = head.uri.scheme_str() {
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Refusal::Scheme);
        }
    } else if head.uri.authority().is_some() && head.version < Version::HTTP_2 {
        return Err(Refusal::Form);
    }
    let path = head.uri.path();
    if path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Refusal::Form)
    }
}

fn host_field(headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
    let mut fields = headers.get_all(header::HOST).iter();
    let Some(field) = fields.next() else {
        return Ok(None);
    };
    if fields.next().is_some() {
        return Err(Refusal::SeveralHosts);
    }
    Authority::parse(text_of(field)?).map(Some)
}

fn text_of(field: &HeaderValue) -> Result<&str, Refusal> {
    // Visible ASCII only, and no list: `Host: a, b` must not be read as either.
    field.to_str().map_err(|_| Refusal::BadHost)
}

fn agree(stated: Option<Authority>, field: Option<Authority>) -> Result<Option<Authority>, Refusal> {
    match (stated, field) {
        (Some(stated), Some(field)) if !stated.agrees_with(&field) => Err(Refusal::Contradiction),
        (Some(authority), _) | (None, Some(authority)) => Ok(Some(authority)),
        (None, None) => Ok(None),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), Refusal> {
    // The colon that ends the host is the one after the bracket, if there is a bracket.
    let host_end = match text.strip_prefix('[') {
        Some(_) => text.find(']').map(|at| at + 1).ok_or(Refusal::BadHost)?,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at_checked(host_end).ok_or(Refusal::BadHost)?;
    let Some(port) = rest.strip_prefix(':') else {
        return if rest.is_empty() {
            Ok((host, None))
        } else {
            Err(Refusal::BadHost)
        };
    };
    if port.is_empty() {
        // RFC 3986 section 3.2.3 allows `host:`.
        return Ok((host, None));
    }
    // u16's own parser takes a sign.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::BadPort);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(Refusal::BadPort),
        Ok(port) => Ok((host, Some(port))),
    }
}

fn parse_host(text: &str) -> Result<Host, Refusal> {
    let is_host_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'[' | b']' | b':');
    if !text.bytes().all(is_host_byte) {
        return Err(Refusal::BadHost);
    }
    Host::parse(text).map_err(|_| Refusal::BadHost)
}

/// The absolute URL of a request to `host` and `port`, with path and query as sent.
pub(super) fn url(host: &Host, port: u16, sent: &Uri) -> Result<Uri, Refusal> {
    let authority = if port == DEFAULT_PORT {
        host.to_string()
    } else {
        format!("{host}:{port}")
    };
    let path = match sent.query() {
        // `*` has no place behind an authority.
        _ if sent.path() == "*" => "/*".to_owned(),
        Some(query) => format!("{}?{query}", sent.path()),
        None => sent.path().to_owned(),
    };
    Uri::builder()
        .scheme(SCHEME)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| Refusal::BadHost)
}

#[cfg(test)]
mod tests;
