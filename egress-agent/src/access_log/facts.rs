//! A log line's facts, in the words that every format shares.

use std::{borrow::Cow, io::Write as _, net::SocketAddr};

use http::{Uri, Version};
use jiff::Timestamp;

use super::{
    record::{Asked, Record},
    result_code::{Course, Hierarchy, ResultCode, Suffix, Tag},
};
use crate::policy::Host;

/// squid's MAX_URL less the terminating NUL (src/defines.h): `%ru` never gets longer.
const LONGEST_URL: usize = 8191;

/// One line to write.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// What happened; none for a line about the log itself.
    pub(super) record: Option<&'a Record>,
    /// squid's summary of it.
    pub(super) result: ResultCode,
    /// When it ended, which is what squid's time fields show.
    pub(super) ended: Timestamp,
    lost: u64,
    target: Target<'a>,
}

/// What a log line says was asked for.
#[derive(Debug)]
enum Target<'a> {
    Request {
        method: &'a str,
        url: &'a Uri,
        version: Version,
    },
    Tunnel {
        host: Cow<'a, Host>,
        port: u16,
        version: Version,
    },
    /// One of squid's pseudo URLs, for what never became a request.
    Pseudo {
        url: Cow<'static, str>,
        version: &'static str,
    },
}

impl<'a> Facts<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        Self {
            record: Some(record),
            result: ResultCode::of(record),
            ended: record
                .started
                .checked_add(record.duration)
                .unwrap_or(record.started),
            lost: 0,
            target: Target::of(record),
        }
    }

    /// A line that says how many records are missing at this place.
    pub(super) fn lost(count: u64, now: Timestamp) -> Self {
        Self {
            record: None,
            result: ResultCode {
                tag: Tag::None,
                suffix: Suffix::None,
                hierarchy: Hierarchy::None,
                status: 0,
            },
            ended: now,
            lost: count,
            target: Target::Pseudo {
                url: Cow::Owned(format!("error:{count}-records-lost")),
                version: "0.0",
            },
        }
    }

    /// `GET`, `CONNECT`; none where nothing was asked.
    pub(super) fn method(&self) -> Option<&str> {
        match &self.target {
            Target::Request { method, .. } => Some(method),
            Target::Tunnel { .. } => Some("CONNECT"),
            Target::Pseudo { .. } => None,
        }
    }

    /// `1.1`.
    pub(super) const fn version(&self) -> &'static str {
        match &self.target {
            Target::Request { version, .. } | Target::Tunnel { version, .. } => match *version {
                Version::HTTP_09 => "0.9",
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2.0",
                Version::HTTP_3 => "3.0",
                _ => "1.1",
            },
            Target::Pseudo { version, .. } => version,
        }
    }

    /// `%>ru`: the URL of a request, `host:port` of a tunnel.
    pub(super) fn url(&self, out: &mut Vec<u8>) {
        match &self.target {
            Target::Request { url, .. } => {
                if let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) {
                    out.extend_from_slice(scheme.as_bytes());
                    out.extend_from_slice(b"://");
                    out.extend_from_slice(authority.as_str().as_bytes());
                }
                self.path(out);
            }
            // Writing to memory cannot fail.
            Target::Tunnel { host, port, .. } => drop(write!(out, "{host}:{port}")),
            Target::Pseudo { url, .. } => out.extend_from_slice(url.as_bytes()),
        }
    }

    /// `%ru`: as [`Self::url`], at most [`LONGEST_URL`] bytes, the query left out on demand, and wholly percent-encoded
    /// as soon as there is one control byte (C1 included) in it.
    pub(super) fn clean_url(&self, strip_query_terms: bool, out: &mut Vec<u8>) {
        let start = out.len();
        self.url(out);
        out.truncate(start + LONGEST_URL);
        if strip_query_terms {
            self.cut_query(start, out);
        }
        let is_control = |byte: &u8| matches!(byte, 0..=0x1f | 0x7f..=0x9f);
        if out.iter().skip(start).any(is_control) {
            let raw = out.split_off(start);
            super::squid::quoting::url_unescaped(&raw, out);
            out.truncate(start + LONGEST_URL);
        }
    }

    /// The URL for JSON, which needs no other protection than its own.
    pub(super) fn plain_url(&self, strip_query_terms: bool, out: &mut Vec<u8>) {
        let start = out.len();
        self.url(out);
        if strip_query_terms {
            self.cut_query(start, out);
        }
    }

    /// Cuts off what follows the question mark of a request's URL that begins at `start`.
    fn cut_query(&self, start: usize, out: &mut Vec<u8>) {
        if matches!(self.target, Target::Request { .. })
            && let Some(at) = out.iter().skip(start).position(|&byte| byte == b'?')
        {
            out.truncate(start + at + 1);
        }
    }

    /// `%>rs`.
    pub(super) fn scheme(&self) -> Option<&str> {
        match &self.target {
            Target::Request { url, .. } => url.scheme_str(),
            Target::Tunnel { .. } | Target::Pseudo { .. } => None,
        }
    }

    /// `%>rd`: IPv6 in brackets.
    pub(super) fn domain(&self) -> Option<Cow<'_, str>> {
        match &self.target {
            Target::Request { url, .. } => url.host().map(Cow::Borrowed),
            Target::Tunnel { host, .. } => Some(match host.as_ref() {
                Host::Name(name) => Cow::Borrowed(name.as_str()),
                address @ Host::Address(_) => Cow::Owned(address.to_string()),
            }),
            Target::Pseudo { .. } => None,
        }
    }

    /// `%>rP`.
    pub(super) fn url_port(&self) -> Option<u16> {
        match &self.target {
            Target::Request { url, .. } => Some(url.port_u16().unwrap_or(80)),
            Target::Tunnel { port, .. } => Some(*port),
            Target::Pseudo { .. } => None,
        }
    }

    /// `%>rp`: path and query.
    pub(super) fn path(&self, out: &mut Vec<u8>) {
        if let Target::Request { url, .. } = &self.target {
            out.extend_from_slice(url.path().as_bytes());
            if let Some(query) = url.query() {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
        }
    }

    /// The address dialled.
    pub(super) fn upstream(&self) -> Option<SocketAddr> {
        self.record.and_then(|record| record.upstream)
    }

    /// How many records are missing at this place; not 0 only where there is no record.
    pub(super) const fn lost_records(&self) -> u64 {
        self.lost
    }
}

impl<'a> Target<'a> {
    fn of(record: &'a Record) -> Self {
        match &record.asked {
            Asked::Request { method, url, version } => Self::Request {
                method: method.as_str(),
                url,
                version: *version,
            },
            Asked::Tunnel { host, port } => Self::Tunnel {
                host: Cow::Borrowed(host),
                port: *port,
                version: Version::HTTP_11,
            },
            Asked::Connect { host, port, version } => Self::Tunnel {
                host: Cow::Borrowed(host),
                port: *port,
                version: *version,
            },
            Asked::Nothing => Self::of_nothing(record),
        }
    }

    /// Where no name was read, the dialled address stands in for it, as in a squid that intercepts.
    fn of_nothing(record: &Record) -> Self {
        let pseudo = |url, version| Self::Pseudo {
            url: Cow::Borrowed(url),
            version,
        };
        match Course::of(record) {
            Course::LeftFirst => pseudo("error:transaction-end-before-headers", "0.0"),
            Course::Malformed => pseudo("error:invalid-request", "1.1"),
            Course::TooLarge => pseudo("error:request-too-large", "1.1"),
            Course::Passed
            | Course::Denied
            | Course::NoAddress
            | Course::NotReached
            | Course::BrokenOff
            | Course::AgentFailed => Self::Tunnel {
                host: Cow::Owned(Host::Address(record.original.ip().to_canonical())),
                port: record.original.port(),
                version: Version::HTTP_11,
            },
        }
    }
}
