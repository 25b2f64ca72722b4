//! What `explain` is asked about: a URL or HOST:PORT.

use crate::policy::{Host, NameError};

/// A target as a person writes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) host: Host,
    pub(super) port: u16,
    /// The path, where the scheme says plain HTTP.
    pub(super) path: Option<String>,
}

/// Why a target cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QuestionError {
    #[error("`{0}` has no port; write HOST:PORT, or a URL such as https://example.com/")]
    NoPort(String),
    #[error("`{0}` is not a port; allowed are 1 to 65535")]
    Port(String),
    #[error("the scheme `{0}` is not known; allowed are http, https, ws and wss")]
    Scheme(String),
    #[error("`{0}` has a user name; write the host alone")]
    UserInfo(String),
    #[error("`{host}` is no host: {error}")]
    Host { host: String, error: NameError },
}

impl Question {
    pub(super) fn parse(text: &str) -> Result<Self, QuestionError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Self::of_authority(text, None, None);
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => {
                let path = after.split(['?', '#']).next().unwrap_or_default();
                let path = if path.is_empty() { "/" } else { path };
                Self::of_authority(authority, Some(80), Some(path.to_owned()))
            }
            "https" | "wss" => Self::of_authority(authority, Some(443), None),
            _ => Err(QuestionError::Scheme(scheme.to_owned())),
        }
    }

    fn of_authority(
        authority: &str,
        default_port: Option<u16>,
        path: Option<String>,
    ) -> Result<Self, QuestionError> {
        if authority.contains('@') {
            return Err(QuestionError::UserInfo(authority.to_owned()));
        }
        // The colons of an IPv6 address stand before the bracket.
        let after_brackets = authority.rfind(']').map_or(0, |bracket| bracket + 1);
        let (_, tail) = authority.split_at(after_brackets);
        let (host, port) = match tail.rfind(':') {
            Some(colon) => {
                let (host, port) = authority.split_at(after_brackets + colon);
                (host, Some(port.trim_start_matches(':')))
            }
            None => (authority, None),
        };
        let port = match (port, default_port) {
            (Some(text), _) => match text.parse() {
                Ok(port @ 1..) => port,
                Ok(0) | Err(_) => return Err(QuestionError::Port(text.to_owned())),
            },
            (None, Some(port)) => port,
            (None, None) => return Err(QuestionError::NoPort(authority.to_owned())),
        };
        let host = Host::parse(host).map_err(|error| QuestionError::Host {
            host: host.to_owned(),
            error,
        })?;
        Ok(Self { host, port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_host_ports_are_read_as_clients_read_them() {
        for (text, host, port, path) in [
            ("https://Example.com/a?b", "example.com", 443, None),
            ("https://example.com:8443", "example.com", 8443, None),
            ("wss://example.com", "example.com", 443, None),
            ("http://example.com", "example.com", 80, Some("/")),
            ("http://example.com?q", "example.com", 80, Some("/")),
            (
                "HTTP://example.com:8080/v1/x?y#z",
                "example.com",
                8080,
                Some("/v1/x"),
            ),
            ("example.com:22", "example.com", 22, None),
            ("[2001:db8::1]:443", "[2001:db8::1]", 443, None),
            ("http://[2001:db8::1]/x", "[2001:db8::1]", 80, Some("/x")),
            ("192.0.2.1:5432", "192.0.2.1", 5432, None),
        ] {
            let question = Question::parse(text).unwrap();
            assert_eq!(question.host.to_string(), host, "{text}");
            assert_eq!((question.port, question.path.as_deref()), (port, path), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for (text, what) in [
            ("example.com", "has no port"),
            ("[2001:db8::1]", "has no port"),
            ("example.com:", "is not a port"),
            ("example.com:0", "is not a port"),
            ("example.com:65536", "is not a port"),
            ("ftp://example.com/", "is not known"),
            ("https://user@example.com/", "has a user name"),
            ("https://127.1/", "is no host"),
            ("https:///x", "is no host"),
            ("2001:db8::1:443", "is no host"),
        ] {
            let message = Question::parse(text).unwrap_err().to_string();
            assert!(message.contains(what), "{text}: {message}");
        }
    }
}
