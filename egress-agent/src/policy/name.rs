//! Host names in one canonical form: lower-case A-labels without the trailing dot.

use std::{fmt, net::IpAddr};

/// A canonical DNS host name: lower-case A-labels (RFC 5890), no trailing dot, at most 253 bytes. Two equal names are
/// equal byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Box<str>);

/// A name or a literal address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A host name.
    Name(DomainName),
    /// A literal address (`Host: 192.0.2.1`), or the dialled address of a connection that names nothing.
    Address(IpAddr),
}

/// Why a text is not a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// Over 253 bytes.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// An empty label, or one over 63 bytes.
    #[error("a label is empty or longer than 63 bytes")]
    Label,
    /// A byte that host names cannot have, or an invalid internationalised label.
    #[error("the name has a character that host names cannot have")]
    Character,
    /// All-numeric last label: an IPv4 address in disguise.
    #[error("the last label is a number, so this is an address and not a name")]
    Numeric,
}

impl DomainName {
    /// Reads a name as it stands on the wire or in a document.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        Ok(Self(text.to_ascii_lowercase().into_boxed_str()))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Host {
    /// As in a URL's authority: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}
