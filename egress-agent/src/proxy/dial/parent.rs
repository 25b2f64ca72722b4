//! The parent proxy: another proxy, which has the way out that the workloads' network lacks (squid's `cache_peer`).

use std::{fmt, io, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::policy::{DomainName, Host, HostPattern};

/// A larger head of an answer is refused: squid's own limit (`reply_header_max_size`).
const MOST_HEAD_BYTES: usize = 64 * 1024;
/// So is one of more fields.
const MOST_FIELDS: usize = 256;

/// A proxy that names are handed to. It speaks HTTP/1.1 in clear, looks names up itself, and dials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentProxy {
    host: Host,
    port: u16,
    /// `Proxy-Authorization`.
    credentials: Option<HeaderValue>,
    /// Names that are dialled without it.
    direct: Vec<HostPattern>,
}

/// Why a text is not the place of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "HOST:PORT is allowed: a name, an IPv4 address or an IPv6 address in brackets, and a port from 1 to 65535"
)]
pub struct PlaceError;

/// Why a text is not a user and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one line USER:PASSWORD is allowed, without control characters")]
pub struct CredentialsError;

impl FromStr for ParentProxy {
    type Err = PlaceError;

    /// Reads HOST:PORT.
    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let (host, port) = text.rsplit_once(':').ok_or(PlaceError)?;
        // An IPv6 address without brackets would lose its end.
        if host.contains(':') && !host.starts_with('[') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PlaceError);
        }
        let host = Host::parse(host).map_err(|_| PlaceError)?;
        match port.parse() {
            Ok(0) | Err(_) => Err(PlaceError),
            Ok(port) => Ok(Self {
                host,
                port,
                credentials: None,
                direct: Vec::new(),
            }),
        }
    }
}

impl fmt::Display for ParentProxy {
    /// HOST:PORT.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl ParentProxy {
    /// Has the names that these patterns match dialled without it.
    #[must_use]
    pub fn with_direct(mut self, direct: Vec<HostPattern>) -> Self {
        self.direct = direct;
        self
    }

    /// Identifies itself by the `Basic` scheme (RFC 7617) with `USER:PASSWORD`.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn with_credentials(mut self, text: &str) -> Result<Self, CredentialsError> {
        // The user's name ends at the first colon, and may be empty: some proxies want a token alone.
        if !text.contains(':') || text.chars().any(char::is_control) {
            return Err(CredentialsError);
        }
        let value = format!("Basic {}", BASE64_STANDARD.encode(text));
        let mut value = HeaderValue::try_from(value).map_err(|_| CredentialsError)?;
        // Kept out of what is printed for debugging.
        value.set_sensitive(true);
        self.credentials = Some(value);
        Ok(self)
    }

    /// Where it is.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What it is told in `Proxy-Authorization`.
    #[must_use]
    pub const fn credentials(&self) -> Option<&HeaderValue> {
        self.credentials.as_ref()
    }

    /// Whether a name is handed to it.
    #[must_use]
    pub fn serves(&self, name: &DomainName) -> bool {
        !self.direct.iter().any(|pattern| pattern.matches(name))
    }

    /// Asks for a tunnel to `host` (RFC 9110 section 9.3.6). What the origin says is left in the socket, down to the first
    /// byte: servers may speak first.
    pub(super) async fn open_tunnel(&self, stream: &mut TcpStream, host: &Host, port: u16) -> io::Result<()> {
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
        if let Some(credentials) = &self.credentials {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(credentials.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await?;
        loop {
            let status = read_status(stream).await?;
            match status {
                // RFC 9110 section 15.2: any number of them may come before the answer.
                100..=199 => {}
                200..=299 => return Ok(()),
                _ => return Err(refused(format!("the parent proxy answered {status}"))),
            }
        }
    }
}

/// Reads one head, and not a byte more: what a peek shows is taken out whole while the head goes on, and up to its end when
/// that is there.
async fn read_status(stream: &mut TcpStream) -> io::Result<u16> {
    let mut head = Vec::new();
    let mut seen = [0; 2048];
    loop {
        let before = head.len();
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(refused("the parent proxy closed the connection".to_owned()));
        }
        head.extend_from_slice(seen.get(..count).unwrap_or_default());
        let parsed = parse(&head)?;
        let take = parsed.map_or(count, |(_, length)| length.saturating_sub(before));
        stream
            .read_exact(seen.get_mut(..take).unwrap_or_default())
            .await?;
        if let Some((status, _)) = parsed {
            return Ok(status);
        }
    }
}

/// The status that a head begins with, and its length, once it is whole.
fn parse(head: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response
        .parse(head)
        .map_err(|error| refused(format!("the parent proxy does not speak HTTP/1: {error}")))?;
    match (parsed, response.code) {
        (httparse::Status::Complete(length), Some(status)) => Ok(Some((status, length))),
        (httparse::Status::Complete(_), None) => {
            Err(refused("the parent proxy's answer has no status".to_owned()))
        }
        (httparse::Status::Partial, _) if head.len() > MOST_HEAD_BYTES => {
            Err(refused("the parent proxy's answer has no end".to_owned()))
        }
        (httparse::Status::Partial, _) => Ok(None),
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    /// What a proxy is asked, and what becomes of its answer, sent in these pieces; then what is left in the socket.
    async fn asked(parent: ParentProxy, pieces: &[&str]) -> (String, Result<String, String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        theirs.set_nodelay(true).unwrap();
        let proxy = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(theirs.read_u8().await.unwrap());
            }
            for piece in pieces {
                theirs.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
            String::from_utf8(request).unwrap()
        };
        let opening = async {
            let opened = parent.open_tunnel(&mut ours, &host("good.test"), 443).await;
            opened.map_err(|error| error.to_string())?;
            let mut rest = String::new();
            ours.read_to_string(&mut rest).await.unwrap();
            Ok(rest)
        };
        tokio::join!(proxy, opening)
    }

    #[tokio::test]
    async fn a_tunnel_begins_behind_the_head_of_the_answer() {
        let parent = || "127.0.0.1:3128".parse::<ParentProxy>().unwrap();
        let (request, rest) = asked(parent(), &["HTTP/1.1 200 Connection established\r\n\r\n"]).await;
        assert_eq!(
            request,
            "CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n"
        );
        assert_eq!(rest, Ok(String::new()));
        for pieces in [
            &["HTTP/1.1 200 OK\r\n\r\n220 mail.test\r\n"] as &[_],
            &[
                "HTTP/1.1 2",
                "00 OK\r\nVia: x\r",
                "\n\r",
                "\n220 mail",
                ".test\r\n",
            ],
            &[
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n220 mail.test\r\n",
            ],
        ] {
            let (_, rest) = asked(parent(), pieces).await;
            assert_eq!(rest, Ok("220 mail.test\r\n".to_owned()), "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn whatever_else_a_parent_says_is_a_refusal() {
        let endless = "X: y\r\n".repeat(20_000);
        for (answer, word) in [
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                "answered 407",
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno",
                "answered 503",
            ),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "answered 302"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP/1"),
            ("HTTP/1.1 200 OK\r\n", "closed the connection"),
            ("", "closed the connection"),
            (&format!("HTTP/1.1 200 OK\r\n{endless}"), "the parent proxy"),
        ] {
            let (_, rest) = asked("127.0.0.1:3128".parse().unwrap(), &[answer]).await;
            assert!(
                rest.as_ref().unwrap_err().contains(word),
                "{answer:.40}: {rest:?}"
            );
        }
    }

    #[tokio::test]
    async fn it_is_told_who_asks() {
        let parent: ParentProxy = "[::1]:3128".parse().unwrap();
        assert_eq!(parent.to_string(), "[::1]:3128");
        // RFC 7617, section 2.
        let parent = parent.with_credentials("Aladdin:open sesame").unwrap();
        let (request, _) = asked(parent.clone(), &["HTTP/1.1 200 OK\r\n\r\n"]).await;
        assert!(
            request.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            "{request}"
        );
        assert!(!format!("{parent:?}").contains("QWxh"), "{parent:?}");
        for text in ["", "token", "a:b\nc", "a:b\0"] {
            let parent: ParentProxy = "proxy.test:3128".parse().unwrap();
            assert_eq!(parent.with_credentials(text), Err(CredentialsError), "{text:?}");
        }
    }

    #[test]
    fn a_place_has_a_host_and_a_port() {
        for text in ["proxy.corp.example:3128", "192.0.2.1:8080", "[2001:db8::1]:3128"] {
            assert_eq!(text.parse::<ParentProxy>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "proxy.test",
            "proxy.test:",
            "proxy.test:0",
            "proxy.test:65536",
            "proxy.test:+80",
            ":3128",
            "http://proxy.test:3128",
            "user@proxy.test:3128",
            "2001:db8::1:3128",
            "[2001:db8::1]",
        ] {
            assert_eq!(text.parse::<ParentProxy>(), Err(PlaceError), "{text:?}");
        }
    }

    #[test]
    fn names_may_be_left_out() {
        let parent: ParentProxy = "proxy.test:3128".parse().unwrap();
        let parent = parent.with_direct(vec!["**.corp.example".parse().unwrap()]);
        let serves = |name: &str| parent.serves(&DomainName::parse(name).unwrap());
        assert!(serves("example.org"));
        assert!(!serves("git.corp.example"));
    }
}
