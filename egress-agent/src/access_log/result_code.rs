//! squid's words for what became of a connection or request: `%Ss`, `%Sh`, `%>Hs`.
//!
//! Observed on squid 5.7 (Debian 12), which the oracle test runs again each time; `docs/access-log.md` has the table in
//! prose. `any` is what the origin or our own answer said.
//!
//! | what happened | request | tunnel | nothing known |
//! |---|---|---|---|
//! | passed | `TCP_MISS:HIER_DIRECT` any | `TCP_TUNNEL:HIER_DIRECT` 200 | as tunnel |
//! | passed, protocol switched | `TCP_TUNNEL:HIER_DIRECT` 101 | | |
//! | client left first | `TCP_MISS_ABORTED` any | `NONE_NONE:HIER_NONE` 0 | `NONE_NONE:HIER_NONE` 0 |
//! | refused by policy | `TCP_DENIED:HIER_NONE` 403 | `TCP_DENIED:HIER_NONE` 403 | `TCP_DENIED:HIER_NONE` 403 |
//! | unreadable | `NONE_NONE:HIER_NONE` 400 | `NONE_NONE:HIER_NONE` 400 | `NONE_NONE:HIER_NONE` 400 |
//! | head too large | `NONE_NONE:HIER_NONE` 431 | `NONE_NONE:HIER_NONE` 431 | `NONE_NONE:HIER_NONE` 431 |
//! | name has no address | `TCP_MISS:HIER_NONE` 502 | `NONE_NONE:HIER_NONE` 500 | as tunnel |
//! | origin not reached | `TCP_MISS:HIER_DIRECT` 503 | `NONE_NONE:HIER_DIRECT` 503 | as tunnel |
//! | origin broke off | `TCP_MISS:HIER_DIRECT` 502 | `TCP_TUNNEL:HIER_DIRECT` 200 | as tunnel |
//! | agent failed | `NONE_NONE:HIER_NONE` 500 | `NONE_NONE:HIER_NONE` 500 | `NONE_NONE:HIER_NONE` 500 |

use std::fmt;

use egress_common::outcome::Outcome;

use super::record::{Asked, Carrier, Ending, Record};

/// The three fields that squid derives from how it treated a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultCode {
    /// `%Ss` without its suffix.
    pub tag: Tag,
    /// What `%Ss` says of an abnormal end.
    pub suffix: Suffix,
    /// `%Sh`.
    pub hierarchy: Hierarchy,
    /// `%>Hs`: the status the client got, or the one squid gives where our protocol has none to send; 0 for no answer.
    pub status: u16,
}

/// How a request was served. squid has many more, all of them for caches and peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// Ended before it was served.
    None,
    /// Fetched from the origin.
    Miss,
    /// Refused by the rules.
    Denied,
    /// Bytes passed through unread.
    Tunnel,
    /// A datagram, refused by the rules: not one of squid's words for what it proxies, but made as they are.
    DeniedDatagram,
    /// Datagrams passed.
    PassedDatagram,
    /// What is neither TCP nor UDP, refused by the rules.
    DeniedOther,
    /// What is neither TCP nor UDP passed.
    PassedOther,
}

/// What squid appends to a [`Tag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suffix {
    /// A normal end.
    None,
    /// A side went away, or the agent broke it off.
    Aborted,
    /// Nothing moved for too long.
    TimedOut,
}

/// Where the answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hierarchy {
    /// Nobody was asked.
    None,
    /// The origin itself.
    Direct,
    /// The parent proxy.
    Parent,
}

/// The rows of the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// Bytes flowed.
    Passed,
    /// The client went away, or said nothing, before there was something to judge.
    LeftFirst,
    /// Policy, or what stands in for it.
    Denied,
    /// Not to be read.
    Malformed,
    /// Larger than the limit.
    TooLarge,
    /// No address for the name.
    NoAddress,
    /// No connection to the address.
    NotReached,
    /// The origin went away before it answered.
    BrokenOff,
    /// Our own fault.
    AgentFailed,
}

impl Course {
    pub(super) fn of(record: &Record) -> Self {
        let course = Self::of_outcome(record.verdict.outcome);
        match course {
            // Audit and observe: the verdict was only written down.
            Self::Denied | Self::Malformed | Self::TooLarge | Self::LeftFirst if !record.enforced => {
                match record.ending {
                    Ending::Failed => Self::NotReached,
                    Ending::Complete
                    | Ending::Refused
                    | Ending::ClientAborted
                    | Ending::OriginAborted
                    | Ending::IdleTimeout
                    | Ending::Drained
                    | Ending::PolicyChanged
                    | Ending::Open => {
                        if record.upstream.is_some() {
                            Self::Passed
                        } else {
                            Self::LeftFirst
                        }
                    }
                }
            }
            // Allowed, and nobody said what went wrong.
            Self::Passed if record.ending == Ending::Failed => Self::NotReached,
            Self::Passed
            | Self::LeftFirst
            | Self::Denied
            | Self::Malformed
            | Self::TooLarge
            | Self::NoAddress
            | Self::NotReached
            | Self::BrokenOff
            | Self::AgentFailed => course,
        }
    }

    const fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Internal
            | Outcome::Exempt
            | Outcome::Redirected
            | Outcome::Held
            | Outcome::OtherTcp
            | Outcome::OtherUdp
            | Outcome::OtherSocket
            | Outcome::Direct
            | Outcome::InboundReply
            | Outcome::DatagramConnect
            | Outcome::Query
            | Outcome::QueryHeld
            | Outcome::AllowedByRule
            | Outcome::Unselected => Self::Passed,
            Outcome::ForeignSocket
            | Outcome::ListenerAddress
            | Outcome::BoundDevice
            | Outcome::NoStorage
            | Outcome::UnknownFamily
            | Outcome::Refused
            | Outcome::ForbiddenProtocol
            | Outcome::UnknownCgroup
            | Outcome::DirectFull
            | Outcome::ShareFull
            | Outcome::Revoked
            | Outcome::OpenedBefore
            | Outcome::NoListener
            | Outcome::Unvetted
            | Outcome::QueryAmbiguous
            | Outcome::NoRule
            | Outcome::ClusterDeny
            | Outcome::OutsideCeiling
            | Outcome::UnselectedDenied
            | Outcome::NoServerName
            | Outcome::AmbiguousServerName
            | Outcome::InvalidServerName
            | Outcome::UnknownProtocol
            | Outcome::ForbiddenMethod
            | Outcome::PrivateAnswer
            | Outcome::AddressMismatch
            | Outcome::NoFlow
            | Outcome::NoKnownName
            | Outcome::TunnelMismatch
            | Outcome::Overload
            | Outcome::Unlogged
            | Outcome::UnknownWorkload
            | Outcome::MalformedDns
            | Outcome::UnsupportedQuery => Self::Denied,
            Outcome::MalformedTls | Outcome::MalformedHttp | Outcome::AmbiguousHost => Self::Malformed,
            Outcome::HeadTooLarge => Self::TooLarge,
            Outcome::HeadTimeout | Outcome::ClientGone => Self::LeftFirst,
            Outcome::NameNotFound | Outcome::LookupFailed => Self::NoAddress,
            Outcome::OriginRefused
            | Outcome::OriginTimeout
            | Outcome::OriginUnreachable
            | Outcome::ParentFailed => Self::NotReached,
            Outcome::OriginFailed => Self::BrokenOff,
            Outcome::AgentError => Self::AgentFailed,
        }
    }
}

impl ResultCode {
    /// Reads the table.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let course = Course::of(record);
        let code = match record.asked {
            Asked::Request { .. } => Self::of_request(course, record),
            Asked::Tunnel { .. } | Asked::Connect { .. } | Asked::Nothing => Self::of_tunnel(course, record),
        };
        match code.hierarchy {
            Hierarchy::Direct if record.by_parent => Self {
                hierarchy: Hierarchy::Parent,
                ..code
            },
            Hierarchy::None | Hierarchy::Direct | Hierarchy::Parent => code,
        }
    }

    fn of_request(course: Course, record: &Record) -> Self {
        let reached = if record.upstream.is_some() {
            Hierarchy::Direct
        } else {
            Hierarchy::None
        };
        let (tag, hierarchy, status) = match course {
            Course::Passed if record.status == 101 => (Tag::Tunnel, Hierarchy::Direct, 101),
            Course::Passed if record.ending != Ending::Complete => (Tag::Miss, reached, 0),
            Course::Passed => (Tag::Miss, Hierarchy::Direct, 0),
            Course::LeftFirst => (Tag::Miss, reached, 0),
            Course::Denied => (Tag::Denied, Hierarchy::None, 403),
            Course::Malformed => (Tag::None, Hierarchy::None, 400),
            Course::TooLarge => (Tag::None, Hierarchy::None, 431),
            Course::NoAddress => (Tag::Miss, Hierarchy::None, 502),
            Course::NotReached => (Tag::Miss, Hierarchy::Direct, 503),
            Course::BrokenOff => (Tag::Miss, Hierarchy::Direct, 502),
            Course::AgentFailed => (Tag::None, Hierarchy::None, 500),
        };
        // What was really sent wins over what squid would have sent.
        let status = if record.status == 0 { status } else { record.status };
        let suffix = match tag {
            Tag::Miss => Suffix::of(record.ending),
            // squid's tunnels never carry a suffix, nor do its own refusals.
            Tag::None
            | Tag::Denied
            | Tag::Tunnel
            | Tag::DeniedDatagram
            | Tag::PassedDatagram
            | Tag::DeniedOther
            | Tag::PassedOther => Suffix::None,
        };
        Self {
            tag,
            suffix,
            hierarchy,
            status,
        }
    }

    fn of_tunnel(course: Course, record: &Record) -> Self {
        let (tag, hierarchy, status) = match course {
            // The client left, or we had to, before the origin was there.
            Course::Passed if record.upstream.is_none() && record.ending != Ending::Complete => {
                (Tag::None, Hierarchy::None, 0)
            }
            Course::Passed | Course::BrokenOff => (Tag::Tunnel, Hierarchy::Direct, 200),
            Course::LeftFirst => (Tag::None, Hierarchy::None, 0),
            Course::Denied => (Tag::Denied, Hierarchy::None, 403),
            Course::Malformed => (Tag::None, Hierarchy::None, 400),
            Course::TooLarge => (Tag::None, Hierarchy::None, 431),
            Course::NoAddress => (Tag::None, Hierarchy::None, 500),
            Course::NotReached => (Tag::None, Hierarchy::Direct, 503),
            Course::AgentFailed => (Tag::None, Hierarchy::None, 500),
        };
        // TLS has no status to send: the log says what squid's CONNECT would have been answered. Before anything was
        // understood an HTTP answer (408, 400) may have been sent after all.
        let status = match record.asked {
            Asked::Nothing if record.status != 0 => record.status,
            Asked::Nothing | Asked::Tunnel { .. } | Asked::Connect { .. } | Asked::Request { .. } => status,
        };
        Self {
            tag: tag.carried_by(record.carrier),
            suffix: Suffix::None,
            hierarchy,
            status,
        }
    }

    /// squid's name for the error page that it would have sent (`%err_code`), if the outcome is an error.
    #[must_use]
    pub const fn error(outcome: Outcome) -> Option<&'static str> {
        Some(match Course::of_outcome(outcome) {
            Course::Passed => return None,
            Course::LeftFirst if matches!(outcome, Outcome::HeadTimeout) => "ERR_REQUEST_PARSE_TIMEOUT",
            Course::LeftFirst => "ERR_CLIENT_GONE",
            Course::Denied if matches!(outcome, Outcome::Overload | Outcome::Unlogged) => {
                "ERR_CANNOT_FORWARD"
            }
            Course::Denied => "ERR_ACCESS_DENIED",
            Course::Malformed => "ERR_INVALID_REQ",
            Course::TooLarge => "ERR_TOO_BIG",
            Course::NoAddress => "ERR_DNS_FAIL",
            Course::NotReached => "ERR_CONNECT_FAIL",
            Course::BrokenOff => "ERR_ZERO_SIZE_OBJECT",
            Course::AgentFailed => "ERR_CANNOT_FORWARD",
        })
    }
}

impl Suffix {
    const fn of(ending: Ending) -> Self {
        match ending {
            // squid passes a truncated answer on as far as it came and calls that a normal end.
            Ending::Complete | Ending::Refused | Ending::Failed | Ending::OriginAborted | Ending::Open => {
                Self::None
            }
            Ending::ClientAborted | Ending::Drained | Ending::PolicyChanged => Self::Aborted,
            Ending::IdleTimeout => Self::TimedOut,
        }
    }

    /// The text after the tag.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Aborted => "_ABORTED",
            Self::TimedOut => "_TIMEDOUT",
        }
    }
}

impl Tag {
    /// The same for what is not TCP. squid, which has no such thing, begins its words with what carried the request.
    const fn carried_by(self, carrier: Carrier) -> Self {
        match (self, carrier.as_str().as_bytes()) {
            (tag, b"tcp") => tag,
            (Self::Denied, b"udp") => Self::DeniedDatagram,
            (Self::Tunnel, b"udp") => Self::PassedDatagram,
            (Self::Denied, _) => Self::DeniedOther,
            (Self::Tunnel, _) => Self::PassedOther,
            (tag, _) => tag,
        }
    }

    /// squid's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE_NONE",
            Self::Miss => "TCP_MISS",
            Self::Denied => "TCP_DENIED",
            Self::Tunnel => "TCP_TUNNEL",
            Self::DeniedDatagram => "UDP_DENIED",
            Self::PassedDatagram => "UDP_TUNNEL",
            Self::DeniedOther => "NONE_DENIED",
            Self::PassedOther => "NONE_TUNNEL",
        }
    }
}

impl Hierarchy {
    /// squid's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "HIER_NONE",
            Self::Direct => "HIER_DIRECT",
            Self::Parent => "FIRSTUP_PARENT",
        }
    }
}

impl fmt::Display for ResultCode {
    /// `TCP_MISS_ABORTED:HIER_DIRECT`, as in `%Ss:%Sh`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}:{}",
            self.tag.as_str(),
            self.suffix.as_str(),
            self.hierarchy.as_str()
        )
    }
}

#[cfg(test)]
mod tests;
