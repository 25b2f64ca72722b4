//! squid's `logformat` language: compiled once into a list of tokens, rendered once per record.
//!
//! The three built-in formats are strings of the same language, so that there is one renderer. Where squid's own code
//! for a built-in name departs from the definition in its documentation (it writes `Referer` and `User-Agent` raw, so
//! that a client can forge fields with a double quote), the definition holds here.

mod code;
mod parse;
pub(super) mod quoting;
mod render;
mod value;

pub use parse::{FormatError, FormatErrorKind};
pub(super) use render::Renderer;

use std::fmt;

use code::Code;
use quoting::Quoting;

/// squid's `combined`: Apache's combined format and two more fields.
pub const COMBINED: &str =
    r#"%>a - %[un [%tl] "%rm %ru HTTP/%rv" %>Hs %<st "%{Referer}>h" "%{User-Agent}>h" %Ss:%Sh"#;

/// squid's `common`.
pub const COMMON: &str = r#"%>a - %[un [%tl] "%rm %ru HTTP/%rv" %>Hs %<st %Ss:%Sh"#;

/// squid's native format.
pub const SQUID: &str = "%ts.%03tu %6tr %>a %Ss/%03>Hs %<st %rm %ru %[un %Sh/%<a %mt";

/// A compiled `logformat` string.
#[derive(Clone, PartialEq, Eq)]
pub struct LogFormat {
    text: String,
    tokens: Vec<Token>,
}

/// A piece of a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Written as it stands.
    Literal(Vec<u8>),
    /// A value.
    Field(Field),
}

/// A `%` code with what was written around it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    code: Code,
    /// What protects the value; none for what the code itself does.
    quoting: Option<Quoting>,
    /// Spaces go to the right of the value.
    left: bool,
    /// Numbers are filled with zeros.
    zero: bool,
    /// Least width in bytes.
    least: usize,
    /// Greatest width of a text, or digits of a fraction.
    most: Option<usize>,
}

impl LogFormat {
    /// Compiles a string such as [`COMBINED`].
    ///
    /// # Errors
    /// The column, what is wrong there, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        Ok(Self {
            text: text.to_owned(),
            tokens: parse::tokens(text)?,
        })
    }

    /// The string it was compiled from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFormat").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests;
