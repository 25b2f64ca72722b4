//! What `http` entries of a rule match: methods, and globs over one normal form of the path.

use std::borrow::Cow;

use super::problem::quoted;

/// A path longer than this matches no `path`; RFC 9110 section 4.1 asks servers for 8000 bytes.
const MAX_PATH: usize = 8192;
/// With [`MAX_PATH`] bounds the work of one comparison.
const MAX_GLOB: usize = 256;

/// An entry of `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestPattern {
    /// The methods; `None`: all.
    pub(super) methods: Option<Vec<String>>,
    /// The paths; `None`: all.
    pub(super) path: Option<PathGlob>,
}

/// A glob over whole paths: `*` matches any run of characters but `/`, `**` any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathGlob {
    /// What stands before the first wildcard: compared first, as it settles nearly every comparison.
    literal: Box<[u8]>,
    /// The rest.
    tokens: Box<[Token]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Star,
    DoubleStar,
}

/// A path that servers read in different ways, so that no glob can tell what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathDoubt {
    /// `*`, or an empty path.
    #[error("it does not begin with `/`")]
    NotAbsolute,
    /// Over 8192 bytes.
    #[error("it is longer than 8192 bytes")]
    TooLong,
    /// `//`: some servers merge the two, some do not.
    #[error("it has an empty segment (`//`)")]
    EmptySegment,
    /// `.` or `..`, plain, encoded or with a parameter (`..;`): clients resolve these before they send.
    #[error("it has a dot segment (`.` or `..`)")]
    DotSegment,
    /// `\`, or an encoded `/`, `\` or control character, or an encoding within an encoding.
    #[error("it has a backslash, a control character or an encoded delimiter")]
    HiddenDelimiter,
    /// `%` without two hexadecimal digits, or a character that must be percent-encoded.
    #[error("it is not a well-formed URL path")]
    Malformed,
}

/// The one form in which paths are compared: percent-encoded unreserved characters decoded, hexadecimal digits in upper
/// case (RFC 3986 section 6.2.2). Idempotent.
///
/// # Errors
/// Servers would disagree about the path.
pub fn normal_path(path: &str) -> Result<Cow<'_, str>, PathDoubt> {
    if path.len() > MAX_PATH {
        return Err(PathDoubt::TooLong);
    }
    let Some(relative) = path.strip_prefix('/') else {
        return Err(PathDoubt::NotAbsolute);
    };
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains(['?', '#']) {
        return Err(PathDoubt::Malformed);
    }
    if path.contains('\\') {
        return Err(PathDoubt::HiddenDelimiter);
    }
    let normal = if path.contains('%') {
        Cow::Owned(decode_unreserved(path)?)
    } else {
        Cow::Borrowed(path)
    };
    if relative.starts_with('/') || relative.contains("//") {
        return Err(PathDoubt::EmptySegment);
    }
    let without_parameter = |segment: &str| segment.split(';').next().map(str::len);
    let is_dots = |segment: &str| {
        let dots = segment.bytes().take_while(|byte| *byte == b'.').count();
        matches!(dots, 1 | 2) && without_parameter(segment) == Some(dots)
    };
    if normal.split('/').any(is_dots) {
        return Err(PathDoubt::DotSegment);
    }
    Ok(normal)
}

impl RequestPattern {
    /// Whether a request matches. A doubtful path matches a `path` only where `if_in_doubt` says so: lists that deny take
    /// it as a match, lists that allow do not.
    pub(super) fn matches(&self, method: &str, path: Result<&str, PathDoubt>, if_in_doubt: bool) -> bool {
        let method_matches = self
            .methods
            .as_ref()
            .is_none_or(|methods| methods.iter().any(|allowed| allowed == method));
        method_matches
            && self
                .path
                .as_ref()
                .is_none_or(|glob| path.map_or(if_in_doubt, |path| glob.matches(path)))
    }
}

impl PathGlob {
    /// Reads a glob.
    ///
    /// # Errors
    /// What is wrong with it and what is allowed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let allowed = "a path begins with `/`, `*` stands for a run of characters within a segment, `**` for one \
                       across segments, as in `/v1/*/items/**`";
        if text.len() > MAX_GLOB {
            return Err(format!("the path is longer than {MAX_GLOB} bytes"));
        }
        if text.contains("***") {
            return Err(format!("`{}` has three stars in a row; {allowed}", quoted(text)));
        }
        // A wildcard takes the place of an ordinary character here, so that `/.*` is no dot segment and `//` is found.
        let probe = text.replace('*', "x");
        normal_path(&probe)
            .map_err(|doubt| format!("`{}` matches no path: {doubt}; {allowed}", quoted(text)))?;
        let normal = normal_path(text).map_or(Cow::Borrowed(text), |normal| normal);
        Ok(Self::from_normal(&normal))
    }

    fn from_normal(text: &str) -> Self {
        let (literal, rest) = text.split_at(text.find('*').unwrap_or(text.len()));
        let mut tokens = Vec::with_capacity(rest.len());
        for byte in rest.bytes() {
            match (byte, tokens.last_mut()) {
                (b'*', Some(last @ Token::Star)) => *last = Token::DoubleStar,
                (b'*', _) => tokens.push(Token::Star),
                (byte, _) => tokens.push(Token::Byte(byte)),
            }
        }
        Self {
            literal: literal.as_bytes().into(),
            tokens: tokens.into(),
        }
    }

    /// Whether the (normal) path matches. Every state of the glob that can be reached is followed at once, so the time is
    /// bounded by the product of the lengths, whatever the two are.
    fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.as_bytes().strip_prefix(&*self.literal) else {
            return false;
        };
        if self.tokens.is_empty() {
            return rest.is_empty();
        }
        let mut reached = Vec::with_capacity(8);
        let mut next = Vec::with_capacity(8);
        self.reach(&mut reached, 0);
        for byte in rest {
            for &state in &reached {
                match self.tokens.get(state) {
                    Some(Token::Byte(expected)) if expected == byte => self.reach(&mut next, state + 1),
                    Some(Token::Star) if *byte != b'/' => self.reach(&mut next, state),
                    Some(Token::DoubleStar) => self.reach(&mut next, state),
                    Some(Token::Byte(_) | Token::Star) | None => {}
                }
            }
            std::mem::swap(&mut reached, &mut next);
            next.clear();
            if reached.is_empty() {
                return false;
            }
        }
        reached.last() == Some(&self.tokens.len())
    }

    /// Notes a state, and the one behind it if it is a wildcard, which may match nothing. States arrive in ascending
    /// order but for those already noted.
    fn reach(&self, states: &mut Vec<usize>, state: usize) {
        let mut note = |state| {
            if states.last().is_none_or(|last| *last < state) {
                states.push(state);
            }
        };
        note(state);
        if matches!(self.tokens.get(state), Some(Token::Star | Token::DoubleStar)) {
            note(state + 1);
        }
    }
}

fn decode_unreserved(path: &str) -> Result<String, PathDoubt> {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        normal.push_str(before);
        let byte = after.get(..2).and_then(hex_byte).ok_or(PathDoubt::Malformed)?;
        rest = after.get(2..).ok_or(PathDoubt::Malformed)?;
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                normal.push(char::from(byte))
            }
            b'/' | b'\\' | ..0x20 | 0x7f => return Err(PathDoubt::HiddenDelimiter),
            b'%' if rest.get(..2).and_then(hex_byte).is_some() => return Err(PathDoubt::HiddenDelimiter),
            _ => normal.push_str(&format!("%{byte:02X}")),
        }
    }
    normal.push_str(rest);
    Ok(normal)
}

fn hex_byte(digits: &str) -> Option<u8> {
    // from_str_radix alone would take a sign.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests;
