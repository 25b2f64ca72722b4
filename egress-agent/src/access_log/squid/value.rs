//! The value behind each `%` code.

use std::{fmt, io::Write as _, net::IpAddr};

use http::HeaderValue;
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};

use super::{
    Field,
    code::{Answer, Code, Connection, Note, Request, Time},
};
use crate::{
    access_log::{
        facts::Facts,
        record::{Asked, Record},
        result_code::{Hierarchy, ResultCode},
    },
    policy::Host,
};

/// How a field's greatest width applies to its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// The text is cut to it.
    Text,
    /// Numbers are never cut.
    Number,
}

/// What values need besides the record.
#[derive(Debug)]
pub(super) struct Context {
    zone: TimeZone,
    strip_query_terms: bool,
    line: u64,
    /// The last time of day written: a burst of lines shares it.
    last_time: Option<(i64, Time, String)>,
}

impl Context {
    pub(super) const fn new(zone: TimeZone, strip_query_terms: bool) -> Self {
        Self {
            zone,
            strip_query_terms,
            line: 0,
            last_time: None,
        }
    }

    pub(super) const fn next_line(&mut self) {
        self.line = self.line.wrapping_add(1);
    }

    /// Writes the value of `field`; nothing if it is absent.
    pub(super) fn value(&mut self, field: &Field, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
        match &field.code {
            Code::Percent => text("%", out),
            Code::Sequence => number(field, self.line, out),
            Code::User => Value::Text,
            Code::Connection(code) => connection(*code, field, facts, out),
            Code::Time(code) => self.time(code, field, facts, out),
            Code::Request(code) => self.request(*code, field, facts, out),
            Code::Answer(code) => answer(*code, field, facts, out),
            Code::Note(note) => facts
                .record
                .map_or(Value::Text, |record| annotation(*note, record, out)),
        }
    }

    fn time(&mut self, code: &Time, field: &Field, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
        match code {
            Time::EpochSeconds => number(field, facts.ended.as_second(), out),
            Time::Subsecond => number(field, micros(facts.ended) / divisor(field), out),
            Time::Local(_) | Time::Utc(_) => self.time_of_day(code, facts.ended, out),
            Time::Response => match facts.record {
                Some(record) => response_time(field, record, out),
                None => number(field, 0, out),
            },
            Time::Start => start_time(
                field,
                facts.record.map_or(facts.ended, |record| record.started),
                out,
            ),
        }
    }

    fn time_of_day(&mut self, code: &Time, time: Timestamp, out: &mut Vec<u8>) -> Value {
        let second = time.as_second();
        if let Some((last, of, known)) = &self.last_time
            && *last == second
            && of == code
        {
            return text(known, out);
        }
        let (format, zone) = match code {
            Time::Local(format) => (format, self.zone.clone()),
            Time::Utc(format) => (format, TimeZone::UTC),
            Time::EpochSeconds | Time::Subsecond | Time::Response | Time::Start => return Value::Text,
        };
        // The format was tried when it was compiled.
        let written = strtime::format(format, &time.to_zoned(zone)).unwrap_or_default();
        text(&written, out);
        self.last_time = Some((second, code.clone(), written));
        Value::Text
    }

    fn request(&self, code: Request, field: &Field, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
        let header =
            |of: fn(&Record) -> &Option<HeaderValue>| facts.record.and_then(|record| of(record).as_ref());
        match code {
            Request::Method => text(facts.method().unwrap_or_default(), out),
            Request::CleanUrl => {
                facts.clean_url(self.strip_query_terms, out);
                Value::Text
            }
            Request::Url => {
                facts.url(out);
                Value::Text
            }
            Request::Scheme => text(facts.scheme().unwrap_or_default(), out),
            Request::Domain => text(&facts.domain().unwrap_or_default(), out),
            Request::Port => facts
                .url_port()
                .map_or(Value::Number, |port| number(field, port, out)),
            Request::Path => {
                facts.path(out);
                Value::Text
            }
            Request::Version => text(facts.version(), out),
            Request::RealVersion if facts.method().is_some() => text(facts.version(), out),
            Request::RealVersion => Value::Text,
            Request::Referer => bytes(header(|record| &record.referer), out),
            Request::UserAgent => bytes(header(|record| &record.user_agent), out),
        }
    }
}

fn connection(code: Connection, field: &Field, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
    let client = facts.record.map(|record| record.client);
    let original = facts.record.map(|record| record.original);
    let port = |port: Option<std::net::SocketAddr>, out: &mut Vec<u8>| {
        port.map_or(Value::Number, |of| number(field, of.port(), out))
    };
    match code {
        Connection::ClientAddress => address(client.map(|of| of.ip()), out),
        Connection::ClientPort => port(client, out),
        Connection::OriginalAddress => address(original.map(|of| of.ip()), out),
        Connection::OriginalPort => port(original, out),
        Connection::ServerAddress => address(facts.upstream().map(|of| of.ip()), out),
        Connection::ServerPort => port(facts.upstream(), out),
        Connection::ServerName => match facts.domain() {
            Some(name) if facts.result.hierarchy == Hierarchy::Direct => text(&name, out),
            Some(_) | None => text("-", out),
        },
        Connection::ServerNameIndication => match facts.record {
            Some(record) if record.tls.is_some() => match &record.asked {
                Asked::Tunnel {
                    host: Host::Name(name),
                    ..
                }
                | Asked::Connect {
                    host: Host::Name(name),
                    ..
                } => text(name.as_str(), out),
                Asked::Tunnel { .. } | Asked::Connect { .. } | Asked::Request { .. } | Asked::Nothing => {
                    Value::Text
                }
            },
            Some(_) | None => Value::Text,
        },
    }
}

fn answer(code: Answer, field: &Field, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
    let result = facts.result;
    let sent = facts.record.map_or(0, |record| record.bytes_to_client);
    let received = facts.record.map_or(0, |record| record.bytes_to_origin);
    let content_type = facts.record.and_then(|record| record.content_type.as_ref());
    match code {
        Answer::Status => number(field, result.status, out),
        Answer::Tag => {
            text(result.tag.as_str(), out);
            text(result.suffix.as_str(), out)
        }
        Answer::Hierarchy => text(result.hierarchy.as_str(), out),
        Answer::Error => {
            let error = facts
                .record
                .and_then(|record| ResultCode::error(record.verdict.outcome));
            text(error.unwrap_or_default(), out)
        }
        Answer::MimeType => {
            let whole = content_type.map_or(&b""[..], HeaderValue::as_bytes);
            let end = whole
                .iter()
                .position(|byte| b"; \t".contains(byte))
                .unwrap_or(whole.len());
            out.extend_from_slice(whole.get(..end).unwrap_or(whole));
            if out.is_empty() {
                out.push(b'-');
            }
            Value::Text
        }
        Answer::ContentType => bytes(content_type, out),
        Answer::Sent => number(field, sent, out),
        Answer::Received => number(field, received, out),
        Answer::Total => number(field, sent.saturating_add(received), out),
    }
}

fn annotation(note: Note, record: &Record, out: &mut Vec<u8>) -> Value {
    let workload = &record.workload;
    let process = &record.process;
    // Writing to memory cannot fail.
    let mut shown = |value: &dyn fmt::Display| drop(write!(out, "{value}"));
    match note {
        Note::Namespace => shown(&workload.namespace),
        Note::Workload => shown(&workload.name),
        Note::Cgroup => shown(&workload.cgroup),
        Note::Pid => shown(&process.pid),
        Note::Uid => shown(&process.uid),
        Note::Command => shown(&process.command),
        Note::Protocol => shown(&record.protocol.as_str()),
        Note::Outcome => shown(&record.verdict.outcome.as_str()),
        Note::Rule => {
            if let Some(rule) = &record.verdict.rule {
                shown(rule);
            }
        }
        Note::Enforced => shown(&record.enforced),
        Note::Ending => shown(&record.ending.as_str()),
        Note::Address => {
            if let Some(relation) = record.relation {
                shown(&relation.as_str());
            }
        }
    }
    Value::Text
}

fn text(value: &str, out: &mut Vec<u8>) -> Value {
    out.extend_from_slice(value.as_bytes());
    Value::Text
}

fn bytes(value: Option<&HeaderValue>, out: &mut Vec<u8>) -> Value {
    out.extend_from_slice(value.map_or(&b""[..], HeaderValue::as_bytes));
    Value::Text
}

/// Never in brackets; a mapped IPv4 address as IPv4.
fn address(value: Option<IpAddr>, out: &mut Vec<u8>) -> Value {
    if let Some(address) = value {
        drop(write!(out, "{}", address.to_canonical()));
    }
    Value::Text
}

fn number(field: &Field, value: impl fmt::Display, out: &mut Vec<u8>) -> Value {
    let width = if field.zero { field.least } else { 0 };
    drop(write!(out, "{value:0>width$}"));
    Value::Number
}

/// `%tr`: milliseconds. squid's fraction (`%.3tr`) is kept with its arithmetic, which is only of use with 3 and 6 digits.
fn response_time(field: &Field, record: &Record, out: &mut Vec<u8>) -> Value {
    let millis = record.duration.as_millis();
    let Some(digits) = field.most else {
        return number(field, millis, out);
    };
    let fraction = (u64::from(record.duration.subsec_micros()) % 1000) * (1000 / divisor(field));
    with_fraction(field, digits, millis, fraction, out)
}

/// `%tS`: seconds and, with 3 digits if no number is given, a fraction.
fn start_time(field: &Field, started: Timestamp, out: &mut Vec<u8>) -> Value {
    let fraction = micros(started) / divisor(field);
    with_fraction(field, field.most.unwrap_or(3), started.as_second(), fraction, out)
}

fn with_fraction(
    field: &Field,
    digits: usize,
    whole: impl fmt::Display,
    part: u64,
    out: &mut Vec<u8>,
) -> Value {
    let width = if field.zero {
        field.least.saturating_sub(digits + 1)
    } else {
        0
    };
    drop(write!(out, "{whole:0>width$}.{part:0>digits$}"));
    Value::Number
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.subsec_microsecond()).unwrap_or(0)
}

/// What microseconds are divided by so that as many digits remain as the format asks for, 3 if it does not.
fn divisor(field: &Field) -> u64 {
    let dropped = match field.most {
        None | Some(0) => 3,
        Some(digits) => 6_usize.saturating_sub(digits),
    };
    10_u64.pow(u32::try_from(dropped).unwrap_or(0))
}
