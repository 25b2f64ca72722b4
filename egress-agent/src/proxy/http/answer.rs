//! Which answer an outcome becomes: HTTP status, squid's name for the error, and a sentence.
//!
//! One exhaustive match, so that a new outcome cannot be answered by accident. `docs/denials.md` is the same table for
//! people.

use egress_common::outcome::Outcome;
use http::StatusCode;

/// How an outcome is told to an HTTP client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status code: what squid 5.7 was seen to answer for the same mishap, but for timeouts, where it says 503.
    pub status: StatusCode,
    /// squid's name of the error page, the first word of `X-Squid-Error`.
    pub squid_page: &'static str,
    /// The error of the system call, the second word; 0 where there is none.
    pub errno: i32,
    /// What happened, in words.
    pub words: &'static str,
}

const ACCESS_DENIED: &str = "ERR_ACCESS_DENIED";
const INVALID_REQUEST: &str = "ERR_INVALID_REQ";
const CANNOT_FORWARD: &str = "ERR_CANNOT_FORWARD";
const CONNECT_FAIL: &str = "ERR_CONNECT_FAIL";
const DNS_FAIL: &str = "ERR_DNS_FAIL";

impl Answer {
    /// The answer to a request that became `outcome`. An outcome that lets bytes flow has none of ours; should one get
    /// here, it is answered as an internal error.
    #[must_use]
    pub const fn to(outcome: Outcome) -> Self {
        use Outcome as O;
        match outcome {
            O::NoRule => denied("No rule of the workload's policies allows it."),
            O::ClusterDeny => denied("A policy of the whole cluster denies it."),
            O::OutsideCeiling => {
                denied("It lies outside what a policy of the whole cluster lets any namespace allow.")
            }
            O::UnselectedDenied => {
                denied("No policy selects the workload, and such workloads may not leave.")
            }
            O::PrivateAnswer => {
                denied("The name resolves to private addresses only, and it is not declared internal.")
            }
            O::AddressMismatch => denied("The address that was dialled is none of the name's."),
            O::ForbiddenMethod => {
                denied("CONNECT and upgrades are not possible here: what flows could not be judged.")
            }
            O::MalformedDns | O::UnsupportedQuery => {
                denied("This is about a DNS query, not about a request.")
            }
            O::UnknownWorkload => denied("It is not known yet which workload this is."),
            O::NoKnownName => {
                denied("Neither the connection nor an earlier DNS answer names the destination.")
            }
            O::Refused
            | O::ForbiddenProtocol
            | O::UnknownCgroup
            | O::DirectFull
            | O::ShareFull
            | O::Revoked
            | O::OpenedBefore => denied("The kernel refuses it."),
            O::TunnelMismatch => denied("The tunnel was opened to another host."),
            O::NoFlow => denied("No connect of a workload explains this connection."),
            O::NoServerName | O::AmbiguousServerName | O::InvalidServerName | O::MalformedTls => {
                denied("The TLS handshake does not name one host beyond doubt.")
            }
            O::UnknownProtocol => denied("The bytes are of no protocol that carries a name."),
            O::ForeignSocket
            | O::ListenerAddress
            | O::BoundDevice
            | O::NoStorage
            | O::UnknownFamily
            | O::NoListener
            | O::Unvetted
            | O::QueryAmbiguous => denied("The kernel programs refuse it."),
            O::AmbiguousHost => invalid("The request does not name one host beyond doubt."),
            O::MalformedHttp => invalid("The request breaks the rules of HTTP."),
            O::HeadTooLarge => Self::new(
                431,
                "ERR_TOO_BIG",
                "The head of the request is larger than the limit.",
            ),
            O::HeadTimeout => Self::new(
                408,
                "ERR_REQUEST_PARSE_TIMEOUT",
                "The head of the request did not come in time.",
            ),
            O::Overload => Self::new(
                503,
                CANNOT_FORWARD,
                "The egress enforcer is at a limit; try again later.",
            ),
            O::Unlogged => Self::new(
                503,
                CANNOT_FORWARD,
                "The egress enforcer cannot write its log, and lets nothing pass unlogged.",
            ),
            O::NameNotFound => Self::new(502, DNS_FAIL, "The name does not exist or has no usable address."),
            O::LookupFailed => Self::new(502, DNS_FAIL, "The name servers failed or did not answer."),
            O::OriginRefused => Self::new(503, CONNECT_FAIL, "The origin refused the connection.")
                .with_errno(libc::ECONNREFUSED),
            O::OriginTimeout => {
                Self::new(504, CONNECT_FAIL, "The origin did not answer in time.").with_errno(libc::ETIMEDOUT)
            }
            O::OriginUnreachable => {
                Self::new(503, CONNECT_FAIL, "There is no route to the origin.").with_errno(libc::ENETUNREACH)
            }
            O::ParentFailed => Self::new(
                502,
                CANNOT_FORWARD,
                "The proxy that the egress enforcer goes through refused, or could not reach the origin.",
            ),
            O::OriginFailed => Self::new(
                502,
                "ERR_ZERO_SIZE_OBJECT",
                "The origin went away before it answered, or answered against the rules of HTTP.",
            ),
            O::Internal
            | O::Exempt
            | O::Redirected
            | O::Held
            | O::OtherTcp
            | O::OtherUdp
            | O::OtherSocket
            | O::Direct
            | O::InboundReply
            | O::DatagramConnect
            | O::Query
            | O::QueryHeld
            | O::AllowedByRule
            | O::Unselected
            | O::ClientGone
            | O::AgentError => Self::new(
                500,
                CANNOT_FORWARD,
                "Something failed in the egress enforcer itself.",
            ),
        }
    }

    /// The gRPC status that says the same (gRPC's own list: 3 INVALID_ARGUMENT, 7 PERMISSION_DENIED, 14 UNAVAILABLE).
    #[must_use]
    pub const fn grpc_status(&self) -> u8 {
        match self.status.as_u16() {
            403 => 7,
            400..=499 => 3,
            _ => 14,
        }
    }

    /// The same, with the very error that the kernel gave.
    #[must_use]
    pub const fn with_errno(mut self, errno: i32) -> Self {
        self.errno = errno;
        self
    }

    /// The value of `X-Squid-Error`.
    #[must_use]
    pub fn squid_error(&self) -> String {
        format!("{} {}", self.squid_page, self.errno)
    }

    const fn new(status: u16, squid_page: &'static str, words: &'static str) -> Self {
        Self {
            status: match StatusCode::from_u16(status) {
                Ok(status) => status,
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            squid_page,
            errno: 0,
            words,
        }
    }
}

const fn denied(words: &'static str) -> Answer {
    Answer::new(403, ACCESS_DENIED, words)
}

const fn invalid(words: &'static str) -> Answer {
    Answer::new(400, INVALID_REQUEST, words)
}

#[cfg(test)]
mod tests;
