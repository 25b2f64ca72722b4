//! What the lab's own client does and tells: a script of steps on one TCP connection, or on many at once.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::{from_hex, hex};

/// Where to connect and what to do then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Script {
    address: SocketAddr,
    steps: Vec<Step>,
    copies: usize,
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// Sends hexadecimal bytes, `chunk` at a time with TCP_NODELAY, and `pause` milliseconds between.
    Send {
        /// The bytes.
        hex: String,
        /// How many go in one write.
        chunk: usize,
        /// Milliseconds between two writes.
        pause: u64,
    },
    /// Sends that many bytes of the payload.
    SendPayload(u64),
    /// Sends that many bytes of the payload and reads as many at the same time.
    Exchange(u64),
    /// Sends the end of the stream; reading goes on.
    FinishSending,
    /// Reads until what came since the last such step ends with these hexadecimal bytes.
    ReadUntil(String),
    /// Reads that many bytes.
    ReadExact(u64),
    /// Reads to the end.
    ReadToEnd,
    /// Waits for so many milliseconds.
    Pause(u64),
    /// Waits until all copies are here.
    Rendezvous,
    /// Prints a line, for the test to see that the script is here.
    Say(String),
    /// Waits until a file exists.
    AwaitFile(PathBuf),
    /// Ends with RST.
    Reset,
    /// Does nothing for ever.
    Hold,
}

/// What came of a script.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What getsockname(2) said.
    pub local: Option<SocketAddr>,
    /// What getpeername(2) said.
    pub peer: Option<SocketAddr>,
    /// The first 64 KiB received, hexadecimal.
    pub received: String,
    /// `LENGTH SHA256` of all that was received.
    pub digest: String,
    /// The step that failed (0 is the connect) and how, such as `ConnectionReset`.
    pub failure: Option<(usize, String)>,
    /// Whether the peer's end of stream was read.
    pub saw_end: bool,
    /// Milliseconds from the start to the end of the connect and of each step done.
    pub times: Vec<u64>,
}

impl Script {
    /// Connects to `address`.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self {
            address,
            steps: Vec::new(),
            copies: 1,
        }
    }

    /// Where it connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many times at once.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// All at once, so many times.
    #[must_use]
    pub fn times(mut self, copies: usize) -> Self {
        self.copies = copies;
        self
    }

    /// Any step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Sends bytes at once.
    #[must_use]
    pub fn send(self, bytes: &[u8]) -> Self {
        self.send_in_pieces(bytes, usize::MAX, 0)
    }

    /// Sends bytes `chunk` at a time, `pause` milliseconds apart.
    #[must_use]
    pub fn send_in_pieces(self, bytes: &[u8], chunk: usize, pause: u64) -> Self {
        self.step(Step::Send {
            hex: hex(bytes),
            chunk,
            pause,
        })
    }

    /// Reads until the text came.
    #[must_use]
    pub fn read_until(self, text: &[u8]) -> Self {
        self.step(Step::ReadUntil(hex(text)))
    }

    /// Reads to the end.
    #[must_use]
    pub fn read_to_end(self) -> Self {
        self.step(Step::ReadToEnd)
    }

    /// Sends the end of the stream.
    #[must_use]
    pub fn finish_sending(self) -> Self {
        self.step(Step::FinishSending)
    }
}

impl Outcome {
    /// Reads what the client printed: one line for each copy, in any order.
    ///
    /// # Panics
    /// That is not what it printed.
    #[must_use]
    pub fn parse(text: &str) -> Vec<Self> {
        text.lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}")))
            .collect()
    }

    /// The single outcome of a script without copies.
    ///
    /// # Panics
    /// There is none, or more than one.
    #[must_use]
    pub fn single(text: &str) -> Self {
        let mut outcomes = Self::parse(text);
        assert_eq!(outcomes.len(), 1, "one outcome in {text:?}");
        outcomes.swap_remove(0)
    }

    /// The first 64 KiB received.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        from_hex(&self.received)
    }

    /// The first 64 KiB received, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The failure's kind.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.failure.as_ref().map(|(_, kind)| kind.as_str())
    }

    /// The description of a fatal TLS alert, if that is all that came.
    #[must_use]
    pub fn alert(&self) -> Option<u8> {
        match self.bytes().as_slice() {
            [21, 3, _, 0, 2, 2, description] => Some(*description),
            _ => None,
        }
    }
}
