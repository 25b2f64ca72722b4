//! Which words a log is written in.

use std::{fmt, str::FromStr};

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{
    facts::Facts,
    json,
    squid::{self, COMBINED, COMMON, FormatError, LogFormat, SQUID},
};

/// A log's format: a name, or a `logformat` string (told apart by its `%`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Format {
    /// squid's `combined`.
    Combined,
    /// squid's native format.
    Squid,
    /// squid's `common`.
    Common,
    /// JSON Lines.
    Json,
    /// A user's own `logformat` string.
    Custom(LogFormat),
}

/// A text is not a [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownFormat {
    /// Neither a name nor a `logformat` string.
    #[error(
        "no log format is called `{0}`: it is combined, squid, common, json, or a string with squid's % codes"
    )]
    Name(String),
    /// A `logformat` string that cannot be read.
    #[error("log format: {0}")]
    String(#[from] FormatError),
}

/// Writes lines of one [`Format`].
#[derive(Debug)]
pub(super) enum Renderer {
    Squid(squid::Renderer),
    Json {
        strip_query_terms: bool,
        /// Reused from line to line.
        url: Vec<u8>,
    },
}

impl Format {
    pub(super) fn renderer(&self, zone: TimeZone, strip_query_terms: bool) -> Result<Renderer, FormatError> {
        let squid =
            |format: &LogFormat| Renderer::Squid(squid::Renderer::new(format, zone, strip_query_terms));
        Ok(match self {
            Self::Combined => squid(&LogFormat::parse(COMBINED)?),
            Self::Squid => squid(&LogFormat::parse(SQUID)?),
            Self::Common => squid(&LogFormat::parse(COMMON)?),
            Self::Custom(format) => squid(format),
            Self::Json => Renderer::Json {
                strip_query_terms,
                url: Vec::new(),
            },
        })
    }
}

impl Renderer {
    /// Appends one line, with its line break.
    pub(super) fn render(&mut self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Squid(renderer) => renderer.render(facts, out),
            Self::Json {
                strip_query_terms,
                url,
            } => json::render(facts, *strip_query_terms, url, out),
        }
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "combined" => Self::Combined,
            "squid" => Self::Squid,
            "common" => Self::Common,
            "json" => Self::Json,
            _ if text.contains('%') => Self::Custom(LogFormat::parse(text)?),
            _ => return Err(UnknownFormat::Name(text.to_owned())),
        })
    }
}

impl TryFrom<String> for Format {
    type Error = UnknownFormat;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Combined => "combined",
            Self::Squid => "squid",
            Self::Common => "common",
            Self::Json => "json",
            Self::Custom(format) => format.as_str(),
        })
    }
}
