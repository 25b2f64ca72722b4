//! The path of a request as rules see it. Pure.
//!
//! Servers do not agree on what a path means: some resolve dot segments before they match, some after decoding, some
//! merge slashes, some drop `;parameters`. A rule such as `path: /v1/**` must hold for whatever the origin makes of the
//! bytes. So a path is turned into **every reading** that a server may take, and a rule allows the request only if each
//! of them is allowed; a path whose readings cannot be told (dot segments in any disguise, which no well-behaved client
//! sends because clients resolve them first) matches no `path` at all.

use std::fmt::Write as _;

/// A path as it stands in the request-target, without query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a>(pub &'a str);

/// The path as rules see it: percent-encodings of unreserved characters decoded, all others in upper case, everything
/// outside printable ASCII percent-encoded (RFC 3986 sections 6.2.2.1 and 6.2.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readings {
    /// All servers read it alike.
    One(String),
    /// Encoded slashes or empty segments: servers that decode or merge them see another path. Two to four texts, the
    /// one nearest to the bytes first.
    Several(Vec<String>),
    /// Dot segments, backslashes, control characters, broken or double percent-encoding: matches no `path` rule.
    Ambiguous,
}

impl Path<'_> {
    /// What a server may read.
    #[must_use]
    pub fn readings(&self) -> Readings {
        let Some(text) = canonical(self.0) else {
            return Readings::Ambiguous;
        };
        if has_dot_segment(&text) {
            return Readings::Ambiguous;
        }
        if !text.contains("%2F") && !text.contains("//") {
            return Readings::One(text);
        }
        let decoded = text.replace("%2F", "/");
        let mut readings = vec![merge_slashes(&text), decoded.clone(), merge_slashes(&decoded)];
        readings.retain(|reading| *reading != text);
        readings.sort_unstable();
        readings.dedup();
        readings.insert(0, text);
        Readings::Several(readings)
    }
}

impl Readings {
    /// The texts that a verdict has to hold for. The empty text, which no path pattern matches, stands for a path that
    /// cannot be told.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
            Self::Ambiguous => const { &[String::new()] },
        };
        texts.iter().map(String::as_str)
    }
}

/// One spelling for one path, or `None` where the spelling itself is a trap.
fn canonical(path: &str) -> Option<String> {
    let mut text = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, was_encoded) = match byte {
            b'%' => (hex_pair(bytes.next()?, bytes.next()?)?, true),
            byte => (byte, false),
        };
        if byte.is_ascii_control() || byte == b'\\' {
            return None;
        }
        if byte == b'%' && is_encoded_again(bytes.clone()) {
            return None;
        }
        if is_unreserved(byte) || (!was_encoded && byte.is_ascii_graphic()) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(text, "%{byte:02X}").ok()?;
        }
    }
    Some(text)
}

/// `%25` and then two hexadecimal digits: a server that decodes twice sees another character.
fn is_encoded_again(mut rest: impl Iterator<Item = u8>) -> bool {
    let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
        return false;
    };
    high.is_ascii_hexdigit() && low.is_ascii_hexdigit()
}

fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// RFC 3986 section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a server could see `.` or `..` as a segment: also after it decoded slashes (`a%2F..`) or cut parameters
/// (`..;x`, which Java servers do). A segment of nothing but parameters counts as well: cut, it leaves an empty one.
fn has_dot_segment(text: &str) -> bool {
    text.split('/').flat_map(|segment| segment.split("%2F")).any(|segment| {
        let cut = segment.split(';').next().unwrap_or_default();
        let cut = cut.split("%3B").next().unwrap_or_default();
        matches!(cut, "." | "..") || (cut.is_empty() && !segment.is_empty())
    })
}

fn merge_slashes(text: &str) -> String {
    let mut merged = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged
}

#[cfg(test)]
mod tests;
