//! Payload that is generated and hashed, never stored: any length, the same bytes on every machine.

use ring::digest::{Context, SHA256};

/// Bytes of the block that the payload repeats.
const BLOCK: usize = 64 * 1024;

/// A stream of bytes without end. Each block of 64 KiB begins with its own number, so that a block lost, doubled or out
/// of order changes the hash.
#[derive(Debug, Clone)]
pub struct Payload {
    block: Box<[u8]>,
    number: u64,
    /// Bytes of the current block already given out.
    used: usize,
}

impl Payload {
    /// From the beginning.
    #[must_use]
    pub fn new() -> Self {
        // splitmix64: incompressible enough that no layer between can shrink it.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::with_capacity(BLOCK);
        while block.len() < BLOCK {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            block.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
        }
        let mut payload = Self {
            block: block.into(),
            number: 0,
            used: 0,
        };
        payload.stamp();
        payload
    }

    /// The next bytes: at least 1, at most `limit` (which must not be 0).
    pub fn next(&mut self, limit: u64) -> &[u8] {
        if self.used == BLOCK {
            self.number += 1;
            self.used = 0;
            self.stamp();
        }
        let begin = self.used;
        let length = usize::try_from(limit).unwrap_or(BLOCK).min(BLOCK - begin);
        self.used += length;
        &self.block[begin..begin + length]
    }

    fn stamp(&mut self) {
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::new()
    }
}

/// A SHA-256 in the making, which counts what it was given.
#[derive(Clone)]
pub struct Hash {
    context: Context,
    length: u64,
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Hash")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Default for Hash {
    fn default() -> Self {
        Self {
            context: Context::new(&SHA256),
            length: 0,
        }
    }
}

impl Hash {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// How many bytes it was given.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// `LENGTH HEX`: what two ends of a transfer compare.
    #[must_use]
    pub fn finish(self) -> String {
        format!("{} {}", self.length, hex(self.context.finish().as_ref()))
    }
}

/// What [`Hash::finish`] says of the payload's first `length` bytes.
#[must_use]
pub fn digest_of_payload(length: u64) -> String {
    let mut payload = Payload::new();
    let mut hash = Hash::default();
    while hash.length() < length {
        let left = length - hash.length();
        hash.update(payload.next(left));
    }
    hash.finish()
}

/// What [`Hash::finish`] says of `bytes`.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    let mut hash = Hash::default();
    hash.update(bytes);
    hash.finish()
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of lower-case hexadecimal digits.
///
/// # Panics
/// `digits` are none.
#[must_use]
pub fn from_hex(digits: &str) -> Vec<u8> {
    assert!(
        digits.is_ascii() && digits.len().is_multiple_of(2),
        "pairs of digits, not {digits:?}"
    );
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}
