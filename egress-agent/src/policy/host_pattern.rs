//! Host patterns: what `domain:` and `--allow` take.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{
    name::{DomainName, NameError},
    problem::quoted,
};

/// A set of host names: one name, or names below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    breadth: Breadth,
    name: DomainName,
}

/// Which names around its base name a pattern takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Breadth {
    /// `x`: the name itself.
    Exact,
    /// `*.x`: names with exactly one label more.
    OneLabel,
    /// `**.x`: names with one or more labels more.
    Below,
    /// `.x`, squid's `dstdomain` form: the name itself and everything below it.
    SelfAndBelow,
}

/// Why a text is not a host pattern; each message tells what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing at all.
    #[error("the host pattern is empty; {FORMS}")]
    Empty,
    /// `*`, `**`, `.`: every name there is.
    #[error("`{}` would match every name, which no pattern may; {FORMS}", quoted(.0))]
    Everything(String),
    /// A `*` anywhere but as the whole first label.
    #[error("`{}` has a wildcard inside; `*.` or `**.` may stand at the beginning only: {FORMS}", quoted(.0))]
    InnerWildcard(String),
    /// A wildcard over a public suffix: anybody can register a name that it matches.
    #[error(
        "`{}` would match names that anybody can register, because `{suffix}` is a public suffix; \
         write the names out, or put the wildcard below a registered name (`**.NAME.{suffix}`)",
        quoted(.pattern)
    )]
    PublicSuffix {
        /// The pattern as written.
        pattern: String,
        /// The public suffix that it covers.
        suffix: String,
    },
    /// An address or a block of addresses.
    #[error(
        "`{}` is an address and not a host name; addresses are allowed by a rule of a policy file: \
         `to: [{{cidr: {}}}]`",
        quoted(.0),
        quoted(.1)
    )]
    Address(String, String),
    /// A URL, or a host with port or path.
    #[error("`{}` has a scheme, a port or a path; a host pattern is the host name alone: {FORMS}", quoted(.0))]
    NotOnlyHost(String),
    /// The name under the wildcard, or the name itself, is none.
    #[error("`{}` is not a host pattern: {error}; {FORMS}", quoted(.pattern))]
    Name {
        /// The pattern as written.
        pattern: String,
        /// What is wrong with the name.
        error: NameError,
    },
}

const FORMS: &str = "allowed are `example.com` (that name), `*.example.com` (one label below it), \
    `**.example.com` (any number of labels below it) and `.example.com` (the name and all below it)";

impl HostPattern {
    /// The pattern that matches `name` alone.
    #[must_use]
    pub const fn exact(name: DomainName) -> Self {
        Self {
            breadth: Breadth::Exact,
            name,
        }
    }

    /// Which names around [`Self::name`] it matches.
    #[must_use]
    pub const fn breadth(&self) -> Breadth {
        self.breadth
    }

    /// The name without the wildcard.
    #[must_use]
    pub const fn name(&self) -> &DomainName {
        &self.name
    }

    /// Whether the pattern takes `name` in.
    #[must_use]
    pub fn matches(&self, name: &DomainName) -> bool {
        let below = || {
            name.as_str()
                .strip_suffix(self.name.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
        };
        match self.breadth {
            Breadth::Exact => *name == self.name,
            Breadth::OneLabel => below().is_some_and(|labels| !labels.contains('.')),
            Breadth::Below => below().is_some(),
            Breadth::SelfAndBelow => *name == self.name || below().is_some(),
        }
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if matches!(text, "*" | "**" | "." | "*." | "**.") {
            return Err(PatternError::Everything(text.to_owned()));
        }
        if let Some(cidr) = as_cidr(text) {
            return Err(PatternError::Address(text.to_owned(), cidr));
        }
        if text.contains(['/', ':', '?', '#', '@']) {
            return Err(PatternError::NotOnlyHost(text.to_owned()));
        }
        let (breadth, base) = split_breadth(text);
        if base.contains('*') {
            return Err(PatternError::InnerWildcard(text.to_owned()));
        }
        let name = DomainName::parse(base).map_err(|error| PatternError::Name {
            pattern: text.to_owned(),
            error,
        })?;
        if breadth != Breadth::Exact && is_public_suffix(&name) {
            return Err(PatternError::PublicSuffix {
                pattern: text.to_owned(),
                suffix: name.to_string(),
            });
        }
        Ok(Self { breadth, name })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.breadth {
            Breadth::Exact => "",
            Breadth::OneLabel => "*.",
            Breadth::Below => "**.",
            Breadth::SelfAndBelow => ".",
        };
        write!(f, "{prefix}{}", self.name)
    }
}

fn split_breadth(text: &str) -> (Breadth, &str) {
    for (prefix, breadth) in [
        ("**.", Breadth::Below),
        ("*.", Breadth::OneLabel),
        (".", Breadth::SelfAndBelow),
    ] {
        if let Some(base) = text.strip_prefix(prefix) {
            return (breadth, base);
        }
    }
    (Breadth::Exact, text)
}

/// The CIDR to write instead, if the text is an address, a bracketed IPv6 address or a block.
fn as_cidr(text: &str) -> Option<String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(ipnet::IpNet::from(address).to_string());
    }
    bare.parse::<ipnet::IpNet>()
        .ok()
        .map(|net| net.trunc().to_string())
}

/// Whether the public suffix list (with its private section: `github.io` and its like) has the name. A top-level label
/// that the list does not know (`internal`, `test`, `corp`) is somebody's own, and no public suffix.
fn is_public_suffix(name: &DomainName) -> bool {
    // The list is kept in Unicode.
    let (unicode, _) = idna::domain_to_unicode(name.as_str());
    psl::suffix(unicode.as_bytes()).is_some_and(|suffix| suffix.is_known() && suffix == unicode.as_str())
}

#[cfg(test)]
mod tests;
