//! Which protocol a client speaks, told from its first bytes and never from the port.
//!
//! The answer is final: once it is not [`Detected::Incomplete`], no further byte changes it. It only says who is to
//! read on: a request line or a hello that begins well and ends badly is refused there, in words of that protocol.

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detected {
    /// A TLS record, or the hello of SSL 2.0: for [`super::client_hello`], which refuses what is no ClientHello.
    Tls,
    /// A method token and a space, as HTTP/1.0 and 1.1 requests begin.
    Http1,
    /// The whole connection preface of HTTP/2 with prior knowledge.
    Http2,
    /// Nothing of the above, whatever may follow.
    Unknown,
    /// Too few bytes to tell.
    Incomplete,
}

/// RFC 9113 section 3.4.
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for one. The longest registered with IANA, UPDATEREDIRECTREF, has 17 letters.
pub const LONGEST_METHOD: usize = 32;

/// With this many bytes the answer is never [`Detected::Incomplete`]: an empty line, a method, its space.
pub const DECIDED_WITHIN: usize = 2 + LONGEST_METHOD + 1;

/// Tells the protocol of a connection that began with `received`.
#[must_use]
pub fn detect(received: &[u8]) -> Detected {
    match received.first() {
        None => Detected::Incomplete,
        Some(first) if is_record_type(*first) => detect_record(received),
        Some(first) if first & 0x80 != 0 => detect_ssl2(received),
        Some(_) if begins_alike(received, HTTP2_PREFACE) => {
            if received.len() < HTTP2_PREFACE.len() {
                Detected::Incomplete
            } else {
                Detected::Http2
            }
        }
        Some(_) => detect_request_line(received),
    }
}

/// change_cipher_spec(20) to heartbeat(24), RFC 8446 section 5.1 and RFC 6520 section 3. Only handshake(22) may come
/// first; the others are TLS that breaks its rules, and HTTP has no control characters with which to be confused.
const fn is_record_type(byte: u8) -> bool {
    matches!(byte, 20..=24)
}

/// The major version of SSL 3.0 and every TLS is 3 (RFC 8446 section 5.1).
fn detect_record(received: &[u8]) -> Detected {
    match received.get(1) {
        None => Detected::Incomplete,
        Some(3) => Detected::Tls,
        Some(_) => Detected::Unknown,
    }
}

/// An SSL 2.0 CLIENT-HELLO (RFC 5246 appendix E.2): a length with its highest bit set, message type 1, and version 0.2
/// or 3.x. It has no room for a name, and TLS 1.3 forbids it; it is told apart to be refused by a TLS alert.
fn detect_ssl2(received: &[u8]) -> Detected {
    match (received.get(2), received.get(3), received.get(4)) {
        (None, ..) | (Some(1), None, _) | (Some(1), Some(0), None) => Detected::Incomplete,
        (Some(1), Some(3), _) | (Some(1), Some(0), Some(2)) => Detected::Tls,
        _ => Detected::Unknown,
    }
}

/// `method SP`. One empty line before it is passed over, as RFC 9112 section 2.2 asks of servers; a second one, or one
/// that ends in a bare LF, makes the bytes unknown.
fn detect_request_line(received: &[u8]) -> Detected {
    if begins_alike(received, b"\r\n") && received.len() < 2 {
        return Detected::Incomplete;
    }
    let line = received.strip_prefix(b"\r\n").unwrap_or(received);
    // RFC 4253 section 4.2: an identification such as `SSH-2.0-OpenSSH_9.2p1 Debian` is a token and a space too. No
    // method begins so, and ssh reports a reset better than a page in HTML.
    if line.starts_with(b"SSH-") {
        return Detected::Unknown;
    }
    let method = line
        .iter()
        .take(LONGEST_METHOD + 1)
        .take_while(|byte| is_token(**byte))
        .count();
    match line.get(method) {
        _ if method > LONGEST_METHOD => Detected::Unknown,
        None => Detected::Incomplete,
        Some(b' ') if method > 0 => Detected::Http1,
        Some(_) => Detected::Unknown,
    }
}

/// `tchar` of RFC 9110 section 5.6.2. Methods are case-sensitive tokens and their list is open (section 9.1), so a
/// method in lower case or of nobody's knowledge is one; what may be done with it is the policy's matter.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether one of the two is a prefix of the other.
fn begins_alike(left: &[u8], right: &[u8]) -> bool {
    left.iter().zip(right).all(|(one, other)| one == other)
}

#[cfg(test)]
mod tests;
