//! How squid protects a value inside a log line (`src/format/Quoting.cc`, `lib/rfc1738.c`, squid.conf's `logformat`).

/// Which bytes of a value are written in another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quoting {
    /// `%"x`, and every code inside `"..."`: `"` and `\` get a backslash; CR, LF and TAB become `\r`, `\n`, `\t`.
    Quotes,
    /// `%[x`, and every code inside `[...]`: `%`, `[`, `]`, control and non-ASCII bytes become `%xx`, `\` is doubled, CR
    /// and LF become `\r`, `\n`.
    Brackets,
    /// `%#x`: all that RFC 1738 calls unsafe becomes `%XX`.
    Url,
    /// Some codes' own protection when nothing else is asked: as [`Self::Url`], but `%` stays.
    UrlUnescaped,
    /// `%/x`: as `Quotes` without TAB, and in double quotes if there is a space.
    Shell,
    /// `%'x`: as it is.
    Raw,
}

impl Quoting {
    /// Appends `value` to `out`.
    pub(crate) fn write(self, value: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Quotes => quotes(value, out),
            Self::Brackets => brackets(value, out),
            Self::Url => url(value, false, out),
            Self::UrlUnescaped => url(value, true, out),
            Self::Shell => shell(value, out),
            Self::Raw => out.extend_from_slice(value),
        }
    }
}

/// Percent-encodes what RFC 1738 calls unsafe, except `%` itself.
pub(crate) fn url_unescaped(value: &[u8], out: &mut Vec<u8>) {
    url(value, true, out);
}

fn quotes(value: &[u8], out: &mut Vec<u8>) {
    for &byte in value {
        match byte {
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => out.push(byte),
        }
    }
}

fn brackets(value: &[u8], out: &mut Vec<u8>) {
    for &byte in value {
        match byte {
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..=0x1f | 0x7f..=0xff | b'%' | b'[' | b']' => percent(byte, b"0123456789abcdef", out),
            _ => out.push(byte),
        }
    }
}

fn url(value: &[u8], keep_percent: bool, out: &mut Vec<u8>) {
    for &byte in value {
        let unsafe_byte = match byte {
            0..=b' ' | 0x7f..=0xff => true,
            b'<' | b'>' | b'"' | b'#' | b'{' | b'}' | b'|' | b'\\' | b'^' | b'~' | b'[' | b']' | b'`'
            | b'\'' => true,
            b'%' => !keep_percent,
            _ => false,
        };
        if unsafe_byte {
            percent(byte, b"0123456789ABCDEF", out);
        } else {
            out.push(byte);
        }
    }
}

fn shell(value: &[u8], out: &mut Vec<u8>) {
    let quoted = value.contains(&b' ');
    if quoted {
        out.push(b'"');
    }
    for &byte in value {
        match byte {
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => out.push(byte),
        }
    }
    if quoted {
        out.push(b'"');
    }
}

fn percent(byte: u8, digits: &[u8; 16], out: &mut Vec<u8>) {
    let digit = |nibble: u8| digits.get(usize::from(nibble)).copied().unwrap_or(b'0');
    out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
}
