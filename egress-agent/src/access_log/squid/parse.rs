//! From a `logformat` string to tokens.

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};

use super::{
    Field, Token,
    code::{Argument, Code, NAMES, Note, REPLY_HEADERS, REQUEST_HEADERS, argument_of},
    quoting::Quoting,
};

/// The widest field that a format may ask for.
const WIDEST: usize = 4096;

/// What is wrong with a `logformat` string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {kind}")]
pub struct FormatError {
    /// Where, in bytes from 1.
    pub column: usize,
    /// What.
    pub kind: FormatErrorKind,
}

/// The ways in which a `logformat` string can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatErrorKind {
    /// A code that squid has and this log has not, or that neither has.
    #[error("unknown code `%{0}`; allowed are {allowed}", allowed = codes())]
    UnknownCode(String),
    /// An argument in braces that the code does not accept.
    #[error("`%{code}` does not accept `{{{argument}}}`; allowed: {allowed}")]
    Argument {
        /// The code without `%`.
        code: String,
        /// What stood in the braces.
        argument: String,
        /// What may.
        allowed: String,
    },
    /// A name in braces is missing.
    #[error("`%{code}` needs a name in braces: {allowed}")]
    MissingArgument {
        /// The code without `%`.
        code: String,
        /// What may stand there.
        allowed: String,
    },
    /// A `{` without `}`.
    #[error("`{{` is not closed")]
    OpenBrace,
    /// A width beyond reason.
    #[error("the width is more than {WIDEST}")]
    Width,
    /// A line break inside: a record must stay one line.
    #[error("a control character: a record is one line")]
    Control,
    /// Nothing to write.
    #[error("the format is empty")]
    Empty,
}

fn codes() -> String {
    let names: Vec<_> = NAMES.iter().map(|name| format!("%{name}")).collect();
    names.join(" ")
}

/// Compiles `text`.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, FormatError> {
    let at = |offset: usize, kind| FormatError {
        column: offset + 1,
        kind,
    };
    if text.trim().is_empty() {
        return Err(at(0, FormatErrorKind::Empty));
    }
    if let Some(offset) = text.find(char::is_control) {
        return Err(at(offset, FormatErrorKind::Control));
    }
    let mut tokens = Vec::new();
    let mut around = None;
    let mut rest = text;
    while !rest.is_empty() {
        let (literal, field) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
        if literal.is_empty() {
            let offset = text.len() - rest.len();
            let (parsed, after) = field_of(field, around).map_err(|kind| at(offset, kind))?;
            tokens.push(Token::Field(parsed));
            rest = after;
        } else {
            around = quoting_after(literal, around);
            tokens.push(Token::Literal(literal.as_bytes().to_vec()));
            rest = field;
        }
    }
    Ok(tokens)
}

/// The quoting of the codes after `literal`: inside `"..."` or `[...]` every code is protected accordingly.
fn quoting_after(literal: &str, before: Option<Quoting>) -> Option<Quoting> {
    literal.bytes().fold(before, |around, byte| match (byte, around) {
        (b'"', None) => Some(Quoting::Quotes),
        (b'"', Some(Quoting::Quotes)) | (b']', Some(Quoting::Brackets)) => None,
        (b'[', None) => Some(Quoting::Brackets),
        _ => around,
    })
}

/// Reads one code at the beginning of `text` (its `%` included) and returns what follows it.
fn field_of(text: &str, around: Option<Quoting>) -> Result<(Field, &str), FormatErrorKind> {
    let rest = text.strip_prefix('%').unwrap_or(text);
    let (quoting, rest) = explicit_quoting(rest, around);
    let (left, rest) = flag(rest, '-');
    let (zero, rest) = flag(rest, '0');
    let (least, rest) = number(rest)?;
    let (most, rest) = match rest.strip_prefix('.') {
        Some(after) => number(after)?,
        None => (None, rest),
    };
    let (before, rest) = braces(rest)?;
    let plain = rest.strip_prefix("http::").unwrap_or(rest);
    let Some(name) = NAMES.iter().find(|name| plain.starts_with(**name)) else {
        let shown = plain
            .find(' ')
            .map_or(plain, |end| plain.get(..end).unwrap_or(plain));
        return Err(FormatErrorKind::UnknownCode(shown.chars().take(24).collect()));
    };
    let rest = plain.get(name.len()..).unwrap_or_default();
    let (argument, rest) = match before {
        Some(argument) => (Some(argument), rest),
        // `%>h{Referer}`. squid takes the braces away after any code, also where it then ignores what stood in them.
        None => braces(rest)?,
    };
    let code = code_of(name, argument)?;
    let least = least.unwrap_or(0);
    Ok((
        Field {
            code,
            quoting,
            left,
            zero,
            least,
            most,
        },
        rest,
    ))
}

fn code_of(name: &str, argument: Option<&str>) -> Result<Code, FormatErrorKind> {
    let allowed = match name {
        ">h" => REQUEST_HEADERS.to_owned(),
        "<h" => REPLY_HEADERS.to_owned(),
        "note" => Note::names(),
        _ if argument_of(name) == Argument::Time => "a strftime format".to_owned(),
        _ => "no argument".to_owned(),
    };
    let is_bad = match (argument_of(name), argument) {
        (Argument::Never, given) => given.is_some(),
        (Argument::Time, given) => given.is_some_and(|format| !is_time_format(format)),
        (Argument::Name, None) => {
            return Err(FormatErrorKind::MissingArgument {
                code: name.to_owned(),
                allowed,
            });
        }
        (Argument::Name, Some(_)) => false,
    };
    let code = if is_bad { None } else { Code::new(name, argument) };
    code.ok_or_else(|| FormatErrorKind::Argument {
        code: name.to_owned(),
        argument: argument.unwrap_or_default().to_owned(),
        allowed,
    })
}

fn is_time_format(format: &str) -> bool {
    let sample = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    strtime::format(format, &sample).is_ok_and(|text| !text.is_empty() && !text.contains(char::is_control))
}

fn explicit_quoting(text: &str, around: Option<Quoting>) -> (Option<Quoting>, &str) {
    let mut rest = text.chars();
    let explicit = match rest.next() {
        Some('"') => Quoting::Quotes,
        Some('\'') => Quoting::Raw,
        Some('[') => Quoting::Brackets,
        Some('#') => Quoting::Url,
        Some('/') => Quoting::Shell,
        _ => return (around, text),
    };
    (Some(explicit), rest.as_str())
}

fn flag(text: &str, wanted: char) -> (bool, &str) {
    match text.strip_prefix(wanted) {
        Some(rest) => (true, rest),
        None => (false, text),
    }
}

fn number(text: &str) -> Result<(Option<usize>, &str), FormatErrorKind> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    match digits.parse() {
        Ok(width) if width <= WIDEST => Ok((Some(width), rest)),
        _ => Err(FormatErrorKind::Width),
    }
}

fn braces(text: &str) -> Result<(Option<&str>, &str), FormatErrorKind> {
    let Some(inside) = text.strip_prefix('{') else {
        return Ok((None, text));
    };
    match inside.split_once('}') {
        Some((argument, rest)) => Ok((Some(argument), rest)),
        None => Err(FormatErrorKind::OpenBrace),
    }
}
