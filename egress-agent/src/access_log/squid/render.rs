//! From tokens and a record to a line.

use jiff::tz::TimeZone;

use super::{
    Field, LogFormat, Token,
    quoting::Quoting,
    value::{Context, Value},
};
use crate::access_log::facts::Facts;

/// Writes lines of one format.
#[derive(Debug)]
pub(in crate::access_log) struct Renderer {
    tokens: Vec<Token>,
    context: Context,
    /// The value at hand before it is protected.
    raw: Vec<u8>,
}

impl Renderer {
    pub(in crate::access_log) fn new(format: &LogFormat, zone: TimeZone, strip_query_terms: bool) -> Self {
        Self {
            tokens: format.tokens.clone(),
            context: Context::new(zone, strip_query_terms),
            raw: Vec::with_capacity(256),
        }
    }

    /// Appends one line, with its line break.
    pub(in crate::access_log) fn render(&mut self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        for token in &self.tokens {
            match token {
                Token::Literal(text) => out.extend_from_slice(text),
                Token::Field(field) => {
                    self.raw.clear();
                    let value = self.context.value(field, facts, &mut self.raw);
                    write_field(field, value, &self.raw, out);
                }
            }
        }
        self.context.next_line();
        out.push(b'\n');
    }
}

fn write_field(field: &Field, value: Value, raw: &[u8], out: &mut Vec<u8>) {
    // As squid: a missing value is a dash, however wide the field.
    if raw.is_empty() {
        return out.push(b'-');
    }
    let start = out.len();
    let own = if field.code.protects_itself() {
        Quoting::UrlUnescaped
    } else {
        Quoting::Raw
    };
    field.quoting.unwrap_or(own).write(raw, out);
    if value == Value::Text
        && let Some(most) = field.most
    {
        out.truncate(start.saturating_add(most));
    }
    let missing = field.least.saturating_sub(out.len() - start);
    if missing > 0 {
        out.resize(out.len() + missing, b' ');
        if !field.left
            && let Some(written) = out.get_mut(start..)
        {
            written.rotate_right(missing);
        }
    }
}
