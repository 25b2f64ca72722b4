//! From an accepted connection to what its client opened with, within the limits, and every byte kept for replay.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use egress_common::outcome::Outcome;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout_at,
};

use super::{
    client_hello::{ClientHello, HelloReader, HelloRefusal, Parsed},
    detect::{DECIDED_WITHIN, Detected, detect},
    limits::Limits,
    refuse::Alert,
};
use crate::access_log::Protocol;

/// How a client opened, and all bytes received by the time it was known: nothing of them was answered or passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub opening: Opening,
    /// The bytes, exactly as they came; more than the opening itself where the client sent on.
    pub received: Bytes,
}

/// What a client opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// A ClientHello that can be judged.
    Tls(ClientHello),
    /// The beginning of a request line; the rest of the head is for the HTTP lane to read and to bound.
    Http1,
    /// The connection preface of HTTP/2 with prior knowledge.
    Http2,
    /// Nothing that can be judged.
    Unreadable(Unreadable),
}

/// Why an opening cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The client closed or reset, having got as far as this protocol.
    Gone(Protocol),
    /// The client said nothing at all for so long that it must be waiting for its server to speak first.
    Silent,
    /// The time was over, having got as far as this protocol.
    TooSlow(Protocol),
    /// TLS whose hello is refused.
    Tls(HelloRefusal),
    /// Bytes of no protocol that carries a name.
    Unknown,
}

/// Reads an opening from growing bytes, without I/O: for a connection whose bytes are already on their way to where
/// they were sent (audit), as well as for [`read_head`].
#[derive(Debug, Clone)]
pub struct OpeningReader {
    detected: Detected,
    hello: HelloReader,
}

/// The first allocation: more than a ClientHello with a post-quantum share takes, so that one is seldom moved.
const FIRST_BUFFER: usize = 2048;

impl Opening {
    /// The protocol for the record.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::Tls(_) => Protocol::Tls,
            Self::Http1 => Protocol::Http1,
            Self::Http2 => Protocol::Http2,
            Self::Unreadable(why) => why.protocol(),
        }
    }
}

impl Unreadable {
    /// The word for the record.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Gone(_) => Outcome::ClientGone,
            Self::Silent => Outcome::NoKnownName,
            Self::TooSlow(_) => Outcome::HeadTimeout,
            Self::Tls(refusal) => refusal.outcome(),
            Self::Unknown => Outcome::UnknownProtocol,
        }
    }

    /// The protocol for the record.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Gone(protocol) | Self::TooSlow(protocol) => protocol,
            Self::Tls(_) => Protocol::Tls,
            Self::Unknown | Self::Silent => Protocol::Unknown,
        }
    }

    /// What the client is told; `None`: nothing it would understand, so it is reset.
    #[must_use]
    pub const fn alert(self) -> Option<Alert> {
        match self {
            Self::Tls(refusal) => Some(refusal.alert()),
            Self::TooSlow(Protocol::Tls) => Alert::for_outcome(Outcome::HeadTimeout),
            Self::Gone(_) | Self::TooSlow(_) | Self::Unknown | Self::Silent => None,
        }
    }
}

impl OpeningReader {
    /// A reader that refuses a ClientHello of more than `bound` bytes.
    #[must_use]
    pub const fn new(bound: usize) -> Self {
        Self {
            detected: Detected::Incomplete,
            hello: HelloReader::new(bound),
        }
    }

    /// Reads on. `received` is everything received since the connection began. `None`: more is needed.
    #[must_use]
    pub fn read(&mut self, received: &[u8]) -> Option<Opening> {
        if self.detected == Detected::Incomplete {
            self.detected = detect(received);
        }
        match self.detected {
            Detected::Incomplete => None,
            Detected::Http1 => Some(Opening::Http1),
            Detected::Http2 => Some(Opening::Http2),
            Detected::Unknown => Some(Opening::Unreadable(Unreadable::Unknown)),
            Detected::Tls => match self.hello.read(received) {
                Parsed::Incomplete => None,
                Parsed::Hello(hello) => Some(Opening::Tls(hello)),
                Parsed::Refused(refusal) => Some(Opening::Unreadable(Unreadable::Tls(refusal))),
            },
        }
    }

    /// The protocol as far as it is known.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self.detected {
            Detected::Tls => Protocol::Tls,
            Detected::Http1 => Protocol::Http1,
            Detected::Http2 => Protocol::Http2,
            Detected::Unknown | Detected::Incomplete => Protocol::Unknown,
        }
    }
}

/// Reads until it is known what the client opened with, or `limits` end it: `head_timeout` counts from `accepted`, and
/// no more than `head_bytes` are taken from the socket. What was read is lost if the future is dropped.
///
/// With `silence`, a client that has said nothing for so long since `accepted` is [`Unreadable::Silent`]. One byte is
/// enough to be heard to the end.
pub async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    limits: &Limits,
    accepted: Instant,
    silence: Option<Duration>,
) -> Head {
    let deadline = tokio::time::Instant::from_std(accepted) + limits.head_timeout;
    let bound = limits.head_bytes.max(DECIDED_WITHIN);
    let mut reader = OpeningReader::new(limits.head_bytes);
    let mut received = BytesMut::new();
    if let Some(silence) = silence {
        let first = fill_once(stream, &mut received, bound);
        let silent_at = (tokio::time::Instant::from_std(accepted) + silence).min(deadline);
        let opening = match timeout_at(silent_at, first).await {
            Ok(Ok(())) => reader.read(&received),
            Ok(Err(_)) => Some(Opening::Unreadable(Unreadable::Gone(reader.protocol()))),
            Err(_) => Some(Opening::Unreadable(Unreadable::Silent)),
        };
        if let Some(opening) = opening {
            let received = received.freeze();
            return Head { opening, received };
        }
    }
    let opening = match timeout_at(deadline, fill(stream, &mut reader, &mut received, bound)).await {
        Ok(Ok(opening)) => opening,
        // Whatever the error says, the client's side of the connection is no more.
        Ok(Err(_)) => Opening::Unreadable(Unreadable::Gone(reader.protocol())),
        Err(_) => Opening::Unreadable(Unreadable::TooSlow(reader.protocol())),
    };
    Head {
        opening,
        received: received.freeze(),
    }
}

async fn fill(
    stream: &mut (impl AsyncRead + Unpin),
    reader: &mut OpeningReader,
    received: &mut BytesMut,
    bound: usize,
) -> io::Result<Opening> {
    loop {
        fill_once(stream, received, bound).await?;
        if let Some(opening) = reader.read(received) {
            return Ok(opening);
        }
    }
}

async fn fill_once(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut BytesMut,
    bound: usize,
) -> io::Result<()> {
    // Both readers settle within the bound, so that there is room left here; without room the read gives 0.
    let room = bound.saturating_sub(received.len());
    if received.capacity() == received.len() {
        received.reserve(received.len().max(FIRST_BUFFER).min(room));
    }
    if stream.read_buf(&mut (&mut *received).limit(room)).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
