//! Why a hello is refused, and what that means for the record and for the client.

use egress_common::outcome::Outcome;

use crate::{policy::NameError, proxy::refuse::Alert};

/// Why bytes that began like TLS are not a hello that could be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloRefusal {
    /// A name is an address; RFC 6066 section 3 forbids it.
    #[error("the server name is an address")]
    Address,
    /// A second extension of one kind; RFC 8446 section 4.2.
    #[error("extension {0:#06x} is there twice")]
    DuplicateExtension(u16),
    /// A name of no bytes.
    #[error("the server name is empty")]
    EmptyName,
    /// A handshake record without content; RFC 8446 section 5.1.
    #[error("an empty handshake record")]
    EmptyRecord,
    /// A length that does not fit what is around it, or outside what RFC 8446 section 4.1.2 allows.
    #[error("a wrong length of the {0}")]
    Length(&'static str),
    /// What stands where a name should is no host name.
    #[error("the server name cannot be a host name: {0}")]
    Name(#[source] NameError),
    /// A name of another type than `host_name`.
    #[error("a server name of unknown type {0}")]
    NameType(u8),
    /// A name that is not ASCII; RFC 6066 section 3.
    #[error("the server name is not ASCII")]
    NotAscii,
    /// Another handshake message than ClientHello came first.
    #[error("handshake message {0} instead of a ClientHello")]
    NotClientHello(u8),
    /// A record of another content type came first, or between the pieces of the hello.
    #[error("a record of type {0} instead of a ClientHello")]
    NotHandshake(u8),
    /// A record longer than 2^14 bytes; RFC 8446 section 5.1.
    #[error("a record longer than 2^14 bytes")]
    RecordTooLong,
    /// The major version of a record is not 3.
    #[error("a record of version {0}.x")]
    RecordVersion(u8),
    /// Something follows the hello in its last record.
    #[error("something follows the ClientHello in its record")]
    SharedRecord,
    /// The hello of SSL 2.0, with room for no name.
    #[error("a hello in the format of SSL 2.0")]
    Ssl2,
    /// Longer than the limit.
    #[error("the ClientHello is larger than the limit")]
    TooLarge,
    /// Bytes after the extensions.
    #[error("bytes after the extensions")]
    TrailingBytes,
    /// Two `server_name` extensions.
    #[error("two server_name extensions")]
    TwoNameExtensions,
    /// Two names in the `server_name` extension, equal or not.
    #[error("two server names")]
    TwoNames,
    /// SSL 3.0, or no version of TLS.
    #[error("a ClientHello of version {0:#06x}")]
    Version(u16),
}

impl HelloRefusal {
    /// The word for the record.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::TooLarge => Outcome::HeadTooLarge,
            Self::TwoNameExtensions | Self::TwoNames => Outcome::AmbiguousServerName,
            Self::Address | Self::EmptyName | Self::Name(_) | Self::NameType(_) | Self::NotAscii => {
                Outcome::InvalidServerName
            }
            Self::DuplicateExtension(_)
            | Self::EmptyRecord
            | Self::Length(_)
            | Self::NotClientHello(_)
            | Self::NotHandshake(_)
            | Self::RecordTooLong
            | Self::RecordVersion(_)
            | Self::SharedRecord
            | Self::Ssl2
            | Self::TrailingBytes
            | Self::Version(_) => Outcome::MalformedTls,
        }
    }

    /// What the client is told; see [`Alert`] for the reasons.
    #[must_use]
    pub const fn alert(self) -> Alert {
        match self {
            Self::Length(_) | Self::TrailingBytes => Alert::DecodeError,
            Self::DuplicateExtension(_) | Self::TooLarge | Self::TwoNameExtensions | Self::TwoNames => {
                Alert::IllegalParameter
            }
            Self::RecordVersion(_) | Self::Ssl2 | Self::Version(_) => Alert::ProtocolVersion,
            Self::RecordTooLong => Alert::RecordOverflow,
            Self::EmptyRecord | Self::NotClientHello(_) | Self::NotHandshake(_) | Self::SharedRecord => {
                Alert::UnexpectedMessage
            }
            Self::Address | Self::EmptyName | Self::Name(_) | Self::NameType(_) | Self::NotAscii => {
                Alert::UnrecognizedName
            }
        }
    }
}
