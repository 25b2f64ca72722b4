//! The first message of a TLS client: whom it wants to reach, read without I/O and without being TLS.
//!
//! The message is put together over any segmentation and over any fragmentation into records (RFC 8446 section 5.1),
//! in work linear in its length. What can be read in two ways is refused, since the origin might read it the other
//! way. What does not concern the name (suites, shares, the order of extensions) is left to the origin.

mod body;
mod cursor;
mod refusal;

use crate::{access_log::TlsFacts, policy::DomainName};

pub use refusal::HelloRefusal;

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The one host name of the `server_name` extension; `None` if there is no such extension. If the hello carries
    /// Encrypted Client Hello this is the outer name, the one that a network can judge (RFC 9849 section 3.1).
    pub server_name: Option<DomainName>,
    /// What the record of the connection tells besides the name.
    pub facts: TlsFacts,
    /// How many of the received bytes the hello took, record headers included. What came after is early data.
    pub wire_length: usize,
}

/// What is known after the bytes received so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The whole hello, and it is unambiguous.
    Hello(ClientHello),
    /// A good beginning.
    Incomplete,
    /// It cannot become a hello that could be judged, whatever follows.
    Refused(HelloRefusal),
}

/// Reads a ClientHello as its bytes come in.
#[derive(Debug, Clone)]
pub struct HelloReader {
    bound: usize,
    /// Length of the complete records read so far. Everything before it is in `message`.
    consumed: usize,
    /// The handshake message as far as complete records brought it; stays empty for a hello in one record.
    message: Vec<u8>,
}

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// RFC 8446 section 5.1: `length` of TLSPlaintext.
const LONGEST_FRAGMENT: usize = 1 << 14;
/// ContentType of RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;
/// HandshakeType of RFC 8446 section 4.
const CLIENT_HELLO: u8 = 1;

impl HelloReader {
    /// A reader that refuses a hello of more than `bound` bytes, record headers included.
    #[must_use]
    pub const fn new(bound: usize) -> Self {
        Self {
            bound,
            consumed: 0,
            message: Vec::new(),
        }
    }

    /// Reads on. `received` is everything received since the connection began, so it only ever grows; the answer does
    /// not depend on how often it was asked. While it is [`Parsed::Incomplete`], fewer than `bound` bytes were given.
    #[must_use]
    pub fn read(&mut self, received: &[u8]) -> Parsed {
        match self.advance(received) {
            Ok(Some(hello)) => Parsed::Hello(hello),
            Ok(None) => Parsed::Incomplete,
            Err(refusal) => Parsed::Refused(refusal),
        }
    }

    fn advance(&mut self, received: &[u8]) -> Result<Option<ClientHello>, HelloRefusal> {
        loop {
            let rest = received.get(self.consumed..).unwrap_or_default();
            let Some(length) = self.record_length(rest)? else {
                return Ok(None);
            };
            let arrived = rest.get(RECORD_HEADER..).unwrap_or_default();
            let wanted = self.wanted(arrived, length)?;
            let Some(fragment) = arrived.get(..length) else {
                return Ok(None);
            };
            let is_whole = wanted == Some(length);
            let message = if is_whole && self.message.is_empty() {
                fragment
            } else {
                self.message.extend_from_slice(fragment);
                &self.message
            };
            let wire_length = self.consumed + RECORD_HEADER + length;
            if is_whole {
                let body = message.get(MESSAGE_HEADER..).unwrap_or_default();
                return body::parse(body, wire_length).map(Some);
            }
            self.consumed = wire_length;
        }
    }

    /// Checks a record header byte by byte as it comes, and gives the length of its fragment.
    fn record_length(&self, header: &[u8]) -> Result<Option<usize>, HelloRefusal> {
        // Not even the shortest further record would fit.
        if self.consumed + RECORD_HEADER + 1 > self.bound {
            return Err(HelloRefusal::TooLarge);
        }
        match header.first() {
            None | Some(&HANDSHAKE) => {}
            Some(first) if first & 0x80 != 0 && self.consumed == 0 => return Err(HelloRefusal::Ssl2),
            Some(kind) => return Err(HelloRefusal::NotHandshake(*kind)),
        }
        // RFC 8446 section 5.1: legacy_record_version is to be ignored. Every implementation looks at its major half
        // all the same, and clients have sent each of 0x0300 to 0x0304.
        match header.get(1) {
            None | Some(3) => {}
            Some(major) => return Err(HelloRefusal::RecordVersion(*major)),
        }
        let &[_, _, _, high, low, ..] = header else {
            return Ok(None);
        };
        match usize::from(u16::from_be_bytes([high, low])) {
            // RFC 8446 section 5.1 forbids empty fragments of handshake messages: a client could send them for ever.
            0 => Err(HelloRefusal::EmptyRecord),
            length if length > LONGEST_FRAGMENT => Err(HelloRefusal::RecordTooLong),
            length if self.consumed + RECORD_HEADER + length > self.bound => Err(HelloRefusal::TooLarge),
            length => Ok(Some(length)),
        }
    }

    /// How many bytes the message still wants from the current record on; `None` while its header is incomplete.
    /// `arrived` begins with what has come of this record's fragment of `length` bytes.
    fn wanted(&self, arrived: &[u8], length: usize) -> Result<Option<usize>, HelloRefusal> {
        let mut header = self.message.iter().chain(arrived.iter().take(length)).copied();
        match header.next() {
            None => return Ok(None),
            Some(CLIENT_HELLO) => {}
            Some(other) => return Err(HelloRefusal::NotClientHello(other)),
        }
        let (Some(high), Some(middle), Some(low)) = (header.next(), header.next(), header.next()) else {
            return Ok(None);
        };
        let body = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let wanted = (MESSAGE_HEADER + body).saturating_sub(self.message.len());
        if self.consumed + RECORD_HEADER + wanted > self.bound {
            return Err(HelloRefusal::TooLarge);
        }
        // Nothing may share the hello's last record: the keys change after it, or an answer must come first (RFC 8446
        // section 5.1). Records that follow are early data, and are not looked at.
        if length > wanted {
            return Err(HelloRefusal::SharedRecord);
        }
        Ok(Some(wanted))
    }
}

/// Reads a ClientHello from the whole of what was received; [`HelloReader`] is for bytes that are still coming.
#[must_use]
pub fn parse(received: &[u8], bound: usize) -> Parsed {
    HelloReader::new(bound).read(received)
}

#[cfg(test)]
mod tests;
