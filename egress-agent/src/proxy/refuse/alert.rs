//! The TLS alerts that we send. The client has no keys yet, so they go in clear.

use egress_common::outcome::Outcome;

/// A fatal alert, by its number in RFC 8446 section 6 and RFC 6066 section 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alert {
    /// Something came where a ClientHello was due.
    UnexpectedMessage = 10,
    /// A record longer than 2^14 bytes.
    RecordOverflow = 22,
    /// Well-formed and not allowed: two names, a hello above the limit.
    IllegalParameter = 47,
    /// The policy said no. RFC 8446 section 6.2 describes it for authenticated peers; no other alert says as clearly
    /// that someone decided, and clients print it as "access denied".
    AccessDenied = 49,
    /// A length that does not fit.
    DecodeError = 50,
    /// SSL 2.0, SSL 3.0, or no TLS.
    ProtocolVersion = 70,
    /// Not the client's fault: a limit of ours was reached.
    InternalError = 80,
    /// No server name; RFC 8446 section 9.2 gives this alert to servers that require one.
    MissingExtension = 109,
    /// A server name that no server could have; RFC 6066 section 3.
    UnrecognizedName = 112,
}

impl Alert {
    /// The alert for a connection that ends with `outcome`. `None`: the bytes may flow, or the connection is reset as a
    /// failing origin would do it, since the client cannot have done anything about it.
    #[must_use]
    pub const fn for_outcome(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::ForeignSocket
            | Outcome::ListenerAddress
            | Outcome::BoundDevice
            | Outcome::NoStorage
            | Outcome::UnknownFamily
            | Outcome::NoListener
            | Outcome::Unvetted
            | Outcome::QueryAmbiguous
            | Outcome::NoRule
            | Outcome::ClusterDeny
            | Outcome::OutsideCeiling
            | Outcome::UnselectedDenied
            | Outcome::HeadTimeout
            | Outcome::UnknownProtocol
            | Outcome::MalformedHttp
            | Outcome::AmbiguousHost
            | Outcome::ForbiddenMethod
            | Outcome::PrivateAnswer
            | Outcome::AddressMismatch
            | Outcome::NoFlow
            | Outcome::UnknownWorkload
            | Outcome::MalformedDns
            | Outcome::UnsupportedQuery
            | Outcome::Refused
            | Outcome::ForbiddenProtocol
            | Outcome::UnknownCgroup
            | Outcome::DirectFull
            | Outcome::ShareFull
            | Outcome::Revoked
            | Outcome::OpenedBefore
            | Outcome::NoKnownName
            | Outcome::TunnelMismatch => Some(Self::AccessDenied),
            Outcome::NoServerName => Some(Self::MissingExtension),
            Outcome::AmbiguousServerName | Outcome::HeadTooLarge => Some(Self::IllegalParameter),
            Outcome::InvalidServerName => Some(Self::UnrecognizedName),
            Outcome::MalformedTls => Some(Self::DecodeError),
            Outcome::Overload | Outcome::Unlogged => Some(Self::InternalError),
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
            | Outcome::Unselected
            | Outcome::NameNotFound
            | Outcome::LookupFailed
            | Outcome::OriginRefused
            | Outcome::OriginTimeout
            | Outcome::OriginUnreachable
            | Outcome::OriginFailed
            | Outcome::ParentFailed
            | Outcome::ClientGone
            | Outcome::AgentError => None,
        }
    }

    /// The record: alert(21), legacy version 1.2, two bytes: fatal(2) and the description (RFC 8446 sections 5.1, 6).
    /// Clients take the version before theirs is agreed, those that offer nothing above TLS 1.0 included.
    #[must_use]
    pub const fn bytes(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}
