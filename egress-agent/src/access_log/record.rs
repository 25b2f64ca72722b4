//! What is known of a connection or request when it has ended, in our own terms.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Uri, Version};

use crate::{
    identity::{Process, Workload},
    policy::{Host, Verdict},
};

/// One connection (one request for HTTP), consumed exactly once by [`super::AccessLog::record`].
#[derive(Debug, Clone)]
pub struct Record {
    /// When it began: accept for a connection, the head's arrival for a request.
    pub started: jiff::Timestamp,
    /// From `started` to the last byte.
    pub duration: Duration,
    /// The workload's own address and port as its peers would see it (squid's `%>a`), never the loopback leg's.
    pub client: SocketAddr,
    /// The address the workload dialled.
    pub original: SocketAddr,
    /// Whose connection.
    pub workload: Arc<Workload>,
    /// The process that dialled.
    pub process: Process,
    /// What carried the bytes, as an IP protocol number: 6 for TCP.
    pub carrier: Carrier,
    /// What the bytes were.
    pub protocol: Protocol,
    /// What was asked for, as far as it became known.
    pub asked: Asked,
    /// TLS facts, for TLS.
    pub tls: Option<TlsFacts>,
    /// The status the client got: of the origin or of our refusal; 200 for an allowed tunnel; 0 if none was sent.
    pub status: u16,
    /// Bytes sent to the client (squid's `%<st`): head and body.
    pub bytes_to_client: u64,
    /// Bytes received from the client and passed on.
    pub bytes_to_origin: u64,
    /// `Referer` of the request.
    pub referer: Option<HeaderValue>,
    /// `User-Agent` of the request.
    pub user_agent: Option<HeaderValue>,
    /// `Content-Type` of the answer.
    pub content_type: Option<HeaderValue>,
    /// The address dialled for it; `None` if none was.
    pub upstream: Option<SocketAddr>,
    /// Whether that is the parent proxy, and not an address of the origin.
    pub by_parent: bool,
    /// Whether `original` is among the name's addresses; `None` if the name was not looked up, or by a
    /// parent proxy.
    pub relation: Option<AddressRelation>,
    /// The verdict with its evidence; if the origin then failed, its outcome says how.
    pub verdict: Verdict,
    /// False in audit and observe: the verdict was logged and not carried out.
    pub enforced: bool,
    /// How it ended.
    pub ending: Ending,
    /// How many attempts alike the record stands for: what the kernel refuses can be tried a million times a second.
    pub attempts: u64,
}

/// An IP protocol, by its number (IANA's protocol numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Carrier(pub u16);

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that could be told.
    Nothing,
    /// A tunnel to a name: logged as `CONNECT host:port`.
    Tunnel {
        /// Server name, or the dialled address where there is none.
        host: Host,
        /// The dialled port.
        port: u16,
    },
    /// A tunnel by CONNECT: logged alike.
    Connect {
        /// Name or address.
        host: Host,
        /// Port.
        port: u16,
        /// Version on the client's side.
        version: Version,
    },
    /// An HTTP request.
    Request {
        /// Method.
        method: Method,
        /// Absolute URL as squid would log it: `http://host[:port if not 80]/path?query`.
        url: Uri,
        /// Version on the client's side.
        version: Version,
    },
}

/// What the first bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TLS ClientHello.
    Tls,
    /// HTTP/1.0 or 1.1 in clear.
    Http1,
    /// HTTP/2 with prior knowledge in clear.
    Http2,
    /// Anything else, or nothing.
    Unknown,
}

/// What a ClientHello said besides the name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFacts {
    /// ALPN protocols in the client's order, lossy text.
    pub alpn: Vec<String>,
    /// Whether an encrypted_client_hello extension was there. No signal by itself: browsers send GREASE ECH.
    pub ech: bool,
}

/// Whether the address that the workload dialled belongs to the name it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressRelation {
    /// It is among our resolver's answers; it is the one dialled.
    Match,
    /// It is not; one of our answers was dialled instead.
    Mismatch,
    /// No name was involved: an address was asked for.
    Literal,
    /// It dialled the explicit proxy and gave the name alone.
    Named,
}

/// How a connection or request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both sides finished.
    Complete,
    /// We refused.
    Refused,
    /// The client reset, or vanished.
    ClientAborted,
    /// The origin reset, or vanished.
    OriginAborted,
    /// Nothing moved for the idle timeout.
    IdleTimeout,
    /// The origin could not be reached.
    Failed,
    /// The agent was told to stop and the drain deadline passed.
    Drained,
    /// A new policy set reversed the verdict.
    PolicyChanged,
    /// Not yet: the record tells that a tunnel was opened, and another one will tell of its end.
    Open,
}

impl Carrier {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// Multipath TCP, which is TCP on the wire.
    const MPTCP: Self = Self(262);

    /// The word in logs; `ip` for those that have none here.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TCP | Self::MPTCP => "tcp",
            Self::UDP => "udp",
            Self(1) => "icmp",
            Self(33) => "dccp",
            Self(58) => "icmpv6",
            Self(132) => "sctp",
            Self(136) => "udplite",
            Self(_) => "ip",
        }
    }
}

impl Record {
    /// The name or address that was asked for, without brackets, the port, and whether by UDP; nothing
    /// where a request names no host.
    pub(super) fn subject(&self) -> Option<(String, Option<u16>, bool)> {
        let plain = |host: &Host| match host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        };
        let dialled = self.original.port();
        let (host, port) = match &self.asked {
            Asked::Nothing => (self.original.ip().to_string(), dialled),
            Asked::Tunnel { host, .. } => (plain(host), dialled),
            // What was dialled is the explicit proxy.
            Asked::Connect { host, port, .. } => (plain(host), *port),
            Asked::Request { url, .. } => {
                let host = url.host()?.trim_matches(['[', ']']).to_owned();
                (host, url.port_u16().unwrap_or(80))
            }
        };
        Some((host, Some(port), self.carrier == Carrier::UDP))
    }
}

impl Protocol {
    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Unknown => "unknown",
        }
    }
}

impl AddressRelation {
    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::Literal => "literal",
            Self::Named => "named",
        }
    }
}

impl Ending {
    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::ClientAborted => "client_aborted",
            Self::OriginAborted => "origin_aborted",
            Self::IdleTimeout => "idle_timeout",
            Self::Failed => "failed",
            Self::Drained => "drained",
            Self::PolicyChanged => "policy_changed",
            Self::Open => "open",
        }
    }
}
