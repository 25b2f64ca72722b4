//! Reads access-log lines by squid's documentation of its formats, independently of the code that writes them:
//!
//! - combined: `%>a - %[un [%tl] "%rm %ru HTTP/%rv" %>Hs %<st "%{Referer}>h" "%{User-Agent}>h" %Ss:%Sh`
//! - common: the same without the two headers
//! - squid: `%ts.%03tu %6tr %>a %Ss/%03>Hs %<st %rm %ru %[un %Sh/%<a %mt`

use std::net::IpAddr;

/// A line of any of squid's formats; what a format does not have is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// `%>a`.
    pub client: String,
    /// `%[un`.
    pub user: String,
    /// `%tl`, or `%ts.%03tu`.
    pub time: String,
    /// `%tr`, of the native format.
    pub milliseconds: u64,
    /// `%rm`.
    pub method: String,
    /// `%ru`.
    pub url: String,
    /// `%rv`, of combined and common.
    pub version: String,
    /// `%>Hs`.
    pub status: u16,
    /// `%<st`.
    pub bytes: u64,
    /// `%{Referer}>h`, of combined.
    pub referer: String,
    /// `%{User-Agent}>h`, of combined.
    pub user_agent: String,
    /// `%Ss`.
    pub result: String,
    /// `%Sh`.
    pub hierarchy: String,
    /// `%<a`, of the native format.
    pub upstream: String,
    /// `%mt`, of the native format.
    pub content_type: String,
}

impl Line {
    /// `RESULT:HIERARCHY`.
    #[must_use]
    pub fn outcome(&self) -> String {
        format!("{}:{}", self.result, self.hierarchy)
    }

    /// `METHOD URL STATUS RESULT:HIERARCHY`: what most tests look at.
    #[must_use]
    pub fn gist(&self) -> String {
        format!("{} {} {} {}", self.method, self.url, self.status, self.outcome())
    }
}

/// Reads a log in the combined format.
///
/// # Panics
/// A line is not of that format.
#[must_use]
#[track_caller]
pub fn combined(log: &str) -> Vec<Line> {
    log.lines()
        .map(|line| apache(line, true).unwrap_or_else(|| panic!("not combined: {line}")))
        .collect()
}

/// The one line of a log in the combined format.
///
/// # Panics
/// There is none, or more, or it is of another format.
#[must_use]
#[track_caller]
pub fn single(log: &str) -> Line {
    let mut lines = combined(log);
    assert_eq!(lines.len(), 1, "one line is expected of this log: {log:?}");
    lines.remove(0)
}

/// Reads a log in the common format.
///
/// # Panics
/// A line is not of that format.
#[must_use]
#[track_caller]
pub fn common(log: &str) -> Vec<Line> {
    log.lines()
        .map(|line| apache(line, false).unwrap_or_else(|| panic!("not common: {line}")))
        .collect()
}

/// Reads a log in squid's native format.
///
/// # Panics
/// A line is not of that format.
#[must_use]
#[track_caller]
pub fn native(log: &str) -> Vec<Line> {
    log.lines()
        .map(|line| native_line(line).unwrap_or_else(|| panic!("not squid's format: {line}")))
        .collect()
}

fn apache(line: &str, has_headers: bool) -> Option<Line> {
    let (client, rest) = line.split_once(" - ")?;
    client.parse::<IpAddr>().ok()?;
    let (user, rest) = rest.split_once(" [")?;
    let (time, rest) = rest.split_once("] ")?;
    is_local_time(time).then_some(())?;
    let (request, rest) = quoted(rest)?;
    let (method, rest_of_request) = request.split_once(' ')?;
    let (url, version) = rest_of_request.rsplit_once(" HTTP/")?;
    let rest = rest.strip_prefix(' ')?;
    let (status, rest) = rest.split_once(' ')?;
    let (bytes, mut rest) = rest.split_once(' ')?;
    let (mut referer, mut user_agent) = ("", "");
    if has_headers {
        let after;
        (referer, after) = quoted(rest)?;
        (user_agent, rest) = quoted(after.strip_prefix(' ')?)?;
        rest = rest.strip_prefix(' ')?;
    }
    let (result, hierarchy) = rest.split_once(':')?;
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    (is_word(result) && is_word(hierarchy)).then_some(())?;
    Some(Line {
        client: client.to_owned(),
        user: user.to_owned(),
        time: time.to_owned(),
        method: method.to_owned(),
        url: url.to_owned(),
        version: version.to_owned(),
        status: status.parse().ok()?,
        bytes: bytes.parse().ok()?,
        referer: referer.to_owned(),
        user_agent: user_agent.to_owned(),
        result: result.to_owned(),
        hierarchy: hierarchy.to_owned(),
        ..Line::default()
    })
}

/// One line of squid's native format.
#[must_use]
pub fn native_line(line: &str) -> Option<Line> {
    // The duration is padded to six places: more than one space may stand before it, and before it alone.
    let (time, rest) = line.split_once(' ')?;
    let (seconds, millis) = time.split_once('.')?;
    (seconds.parse::<u64>().is_ok() && millis.len() == 3 && millis.parse::<u16>().is_ok()).then_some(())?;
    let duration_at = rest.find(|c| c != ' ')?;
    let (duration, after) = rest[duration_at..].split_once(' ')?;
    (duration_at + duration.len() >= 6).then_some(())?;
    let words: Vec<&str> = after.split(' ').collect();
    let [client, result, bytes, method, url, user, hierarchy, content_type] = words.as_slice() else {
        return None;
    };
    client.parse::<IpAddr>().ok()?;
    let (result, status) = result.split_once('/')?;
    let (hierarchy, upstream) = hierarchy.split_once('/')?;
    (status.len() == 3).then_some(())?;
    Some(Line {
        client: (*client).to_owned(),
        user: (*user).to_owned(),
        time: time.to_owned(),
        milliseconds: duration.parse().ok()?,
        method: (*method).to_owned(),
        url: (*url).to_owned(),
        status: status.parse().ok()?,
        bytes: bytes.parse().ok()?,
        result: result.to_owned(),
        hierarchy: hierarchy.to_owned(),
        upstream: upstream.to_owned(),
        content_type: (*content_type).to_owned(),
        ..Line::default()
    })
}

/// The text between a quotation mark and the next one that is not escaped, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            '"' if !is_escaped => return Some((&text[..at], &text[at + 1..])),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    None
}

/// `10/Oct/2000:13:55:36 -0700`.
fn is_local_time(text: &str) -> bool {
    const SHAPE: &str = "dd/aaa/dddd:dd:dd:dd sdddd";
    text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE.bytes()).all(|(byte, kind)| match kind {
            b'd' => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_alphabetic(),
            b's' => byte == b'+' || byte == b'-',
            other => byte == other,
        })
}
