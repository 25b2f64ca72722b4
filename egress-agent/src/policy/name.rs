//! Host names in one canonical form: lower-case A-labels without the trailing dot.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Longest name in text form without the trailing dot (RFC 1035 section 2.3.4: 255 bytes on the wire).
const MAX_NAME: usize = 253;
/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;
/// No text longer than this can become a name: UTS 46 maps one character of up to 4 bytes to at least one byte, or
/// drops it. Bounds the work that a peer can cause.
const MAX_TEXT: usize = 4 * (MAX_NAME + 1);

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
    /// Brackets that hold no IPv6 address (a zone is refused as well).
    #[error("the brackets do not hold an IPv6 address")]
    Brackets,
}

impl DomainName {
    /// Reads a name as it stands on the wire or in a document.
    ///
    /// Unicode is mapped to A-labels by UTS 46 (non-transitional), and an A-label that no U-label maps to is refused, so
    /// one name has one form. Underscores are allowed, and hyphens anywhere: real hosts have both. A last label that
    /// URL parsers read as a number (`127.1`, `0x7f.1`) is refused: some resolvers would make an address of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_TEXT {
            return Err(NameError::TooLong);
        }
        let mapped = to_a_labels(text)?;
        let name = mapped.strip_suffix('.').unwrap_or(&mapped);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        if name
            .split('.')
            .any(|label| label.is_empty() || label.len() > MAX_LABEL)
        {
            return Err(NameError::Label);
        }
        if !name.bytes().all(is_host_byte) {
            return Err(NameError::Character);
        }
        if name.rsplit('.').next().is_none_or(is_number) {
            return Err(NameError::Numeric);
        }
        Ok(Self(Box::from(name)))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Host {
    /// Reads the host part of an authority (`Host` header, `:authority`, URL), without userinfo and port: a name, a
    /// dotted-quad IPv4 address, or an IPv6 address in brackets (RFC 3986 section 3.2.2). An IPv4-mapped IPv6 address
    /// becomes the IPv4 address that it reaches. Other spellings of addresses (`127.1`, `0x7f.1`, `017700000001`,
    /// `1.2.3.4.`) are refused: clients and servers disagree about them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if let Some(rest) = text.strip_prefix('[') {
            let address: Ipv6Addr = rest
                .strip_suffix(']')
                .and_then(|inner| inner.parse().ok())
                .ok_or(NameError::Brackets)?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(IpAddr::V4(address)));
        }
        DomainName::parse(text).map(Self::Name)
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

/// Lower-case A-labels. Nearly every name on the wire is plain ASCII and skips UTS 46.
fn to_a_labels(text: &str) -> Result<Cow<'_, str>, NameError> {
    let plain = text.is_ascii() && !text.split('.').any(has_ace_prefix);
    if !plain {
        return idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::EMPTY)
            .map_err(|idna::Errors { .. }| NameError::Character);
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(Cow::Owned(text.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(text))
}

/// Whether a label claims to be an A-label and so must be checked to be a valid one.
fn has_ace_prefix(label: &str) -> bool {
    label
        .get(..4)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case("xn--"))
}

const fn is_host_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')
}

/// Whether URL parsers read the label as part of an IPv4 address: digits, or `0x` and hexadecimal digits (WHATWG URL,
/// "ends in a number checker").
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x");
    label.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests;
