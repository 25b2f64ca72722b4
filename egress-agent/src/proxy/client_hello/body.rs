//! The body of a ClientHello (RFC 8446 section 4.1.2) and the extensions that are read.

use std::net::IpAddr;

use super::{ClientHello, HelloRefusal, cursor::Cursor};
use crate::{access_log::TlsFacts, policy::DomainName};

/// RFC 6066 section 3.
const SERVER_NAME: u16 = 0;
/// RFC 7301 section 3.1.
const ALPN: u16 = 16;
/// RFC 9849 section 11.1. Browsers send it with random content where they know no key (section 6.2), so nothing follows
/// from its presence.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// NameType of RFC 6066 section 3.
const HOST_NAME: u8 = 0;

/// Protocols of the ALPN list that are kept for the record; clients send two or three. The rest is checked and dropped.
const ALPN_KEPT: usize = 16;

/// Reads the handshake message without its header.
pub(super) fn parse(body: &[u8], wire_length: usize) -> Result<ClientHello, HelloRefusal> {
    let mut hello = Cursor::new(body);
    skip_to_extensions(&mut hello)?;
    let mut read = Extensions::default();
    // A hello of TLS 1.2 and before may end here (RFC 5246 section 7.4.1.2).
    if !hello.is_empty() {
        let mut extensions = Cursor::new(hello.vector().ok_or(HelloRefusal::Length("extensions"))?);
        if !hello.is_empty() {
            return Err(HelloRefusal::TrailingBytes);
        }
        while !extensions.is_empty() {
            let kind = extensions
                .number()
                .ok_or(HelloRefusal::Length("extension type"))?;
            let data = extensions.vector().ok_or(HelloRefusal::Length("extension"))?;
            read.take(kind, data)?;
        }
    }
    Ok(ClientHello {
        server_name: read.server_name,
        facts: TlsFacts {
            alpn: read.alpn.unwrap_or_default(),
            ech: read.ech,
        },
        wire_length,
    })
}

/// What was read of the extensions. A second one of a kind that is read is refused: RFC 8446 section 4.2 forbids it for
/// all kinds, but of the others nothing follows for us.
#[derive(Debug, Default)]
struct Extensions {
    server_name: Option<DomainName>,
    alpn: Option<Vec<String>>,
    ech: bool,
}

impl Extensions {
    fn take(&mut self, kind: u16, data: &[u8]) -> Result<(), HelloRefusal> {
        match kind {
            SERVER_NAME if self.server_name.is_some() => Err(HelloRefusal::TwoNameExtensions),
            SERVER_NAME => {
                self.server_name = Some(server_name(data)?);
                Ok(())
            }
            ALPN if self.alpn.is_some() => Err(HelloRefusal::DuplicateExtension(kind)),
            ALPN => {
                self.alpn = Some(protocols(data)?);
                Ok(())
            }
            ENCRYPTED_CLIENT_HELLO if self.ech => Err(HelloRefusal::DuplicateExtension(kind)),
            ENCRYPTED_CLIENT_HELLO => {
                self.ech = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn skip_to_extensions(hello: &mut Cursor<'_>) -> Result<(), HelloRefusal> {
    // TLS 1.3 says 1.2 here, older clients their highest version; a server answers a higher minor version with its own
    // (RFC 5246 appendix E.1). SSL 3.0 must not be spoken (RFC 7568).
    match hello.number().ok_or(HelloRefusal::Length("version"))? {
        0x0301..=0x03ff => {}
        other => return Err(HelloRefusal::Version(other)),
    }
    hello.take(32).ok_or(HelloRefusal::Length("random"))?;
    match hello.short_vector() {
        Some(session) if session.len() <= 32 => {}
        _ => return Err(HelloRefusal::Length("session id")),
    }
    match hello.vector() {
        Some(suites) if !suites.is_empty() && suites.len().is_multiple_of(2) => {}
        _ => return Err(HelloRefusal::Length("cipher suites")),
    }
    match hello.short_vector() {
        Some(methods) if !methods.is_empty() => Ok(()),
        _ => Err(HelloRefusal::Length("compression methods")),
    }
}

/// The only name of a ServerNameList (RFC 6066 section 3).
fn server_name(data: &[u8]) -> Result<DomainName, HelloRefusal> {
    let mut data = Cursor::new(data);
    let mut list = match data.vector() {
        Some(list) if !list.is_empty() && data.is_empty() => Cursor::new(list),
        _ => return Err(HelloRefusal::Length("server name list")),
    };
    let mut host = None;
    while !list.is_empty() {
        match list.byte() {
            Some(HOST_NAME) => {}
            // Servers differ in how they go on after a type that they do not know: some take the next name.
            other => return Err(HelloRefusal::NameType(other.unwrap_or_default())),
        }
        let name = list.vector().ok_or(HelloRefusal::Length("server name"))?;
        if host.replace(name).is_some() {
            return Err(HelloRefusal::TwoNames);
        }
    }
    canonical(host.unwrap_or_default())
}

/// RFC 6066 section 3: ASCII, no trailing dot, no literal address. A trailing dot makes no other name of it and some
/// clients send one, so [`DomainName`] drops it; the rest is refused.
fn canonical(name: &[u8]) -> Result<DomainName, HelloRefusal> {
    if name.is_empty() {
        return Err(HelloRefusal::EmptyName);
    }
    let Some(text) = str::from_utf8(name).ok().filter(|text| text.is_ascii()) else {
        return Err(HelloRefusal::NotAscii);
    };
    let unbracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if unbracketed.parse::<IpAddr>().is_ok() {
        return Err(HelloRefusal::Address);
    }
    DomainName::parse(text).map_err(HelloRefusal::Name)
}

/// A ProtocolNameList (RFC 7301 section 3.1).
fn protocols(data: &[u8]) -> Result<Vec<String>, HelloRefusal> {
    let mut data = Cursor::new(data);
    let mut list = match data.vector() {
        Some(list) if !list.is_empty() && data.is_empty() => Cursor::new(list),
        _ => return Err(HelloRefusal::Length("protocol name list")),
    };
    let mut protocols = Vec::new();
    while !list.is_empty() {
        match list.short_vector() {
            Some([]) | None => return Err(HelloRefusal::Length("protocol name")),
            Some(_) if protocols.len() == ALPN_KEPT => {}
            Some(name) => protocols.push(String::from_utf8_lossy(name).into_owned()),
        }
    }
    Ok(protocols)
}
