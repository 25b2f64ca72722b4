//! What must hold for any request target and any path. The fuzz targets and the replay of their corpora call nothing
//! else; a broken promise is a failed assertion.

use std::net::{Ipv4Addr, SocketAddr};

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

use super::target::{Head, Target};
use crate::policy::{Host, normal_path};

/// [`super::target`]: a request that has a target has one host, in one form, whoever reads it again. The input's first
/// line is the request-target, each further line a `Host` field.
pub fn authority(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(uri) = lines.next().and_then(|line| Uri::try_from(line).ok()) else {
        return;
    };
    let mut headers = HeaderMap::new();
    // More than two fields cannot mean more than two do.
    for field in lines
        .take(3)
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
    {
        headers.append(header::HOST, field);
    }
    for method in [Method::GET, Method::OPTIONS, Method::CONNECT] {
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            for port in [80, 8080] {
                let head = Head {
                    method: &method,
                    uri: &uri,
                    version,
                    headers: &headers,
                };
                check_target(&head, SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port)));
            }
        }
    }
}

fn check_target(head: &Head<'_>, original: SocketAddr) {
    let Ok(target) = Target::read(head, original) else {
        return;
    };
    assert_ne!(head.method, Method::CONNECT, "CONNECT has no target");
    assert!(
        head.headers.get_all(header::HOST).iter().count() <= 1,
        "several Host fields have one meaning"
    );
    let written = target.host.to_string();
    assert_eq!(Host::parse(&written).as_ref(), Ok(&target.host), "not canonical");
    let port = (original.port() != 80).then(|| original.port());
    assert_eq!(target.url.scheme_str(), Some("http"));
    assert_eq!(
        target.url.host(),
        Some(written.as_str()),
        "the log has another host"
    );
    assert_eq!(
        target.url.port_u16(),
        port,
        "the log has another port than the dialled one"
    );
    for (name, text) in [
        ("request-target", head.uri.host()),
        (
            "Host",
            head.headers
                .get(header::HOST)
                .and_then(|field| field.to_str().ok()),
        ),
    ] {
        let Some(text) = text else { continue };
        let host = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => text,
        };
        assert_eq!(
            Host::parse(host).as_ref(),
            Ok(&target.host),
            "{name} says another host"
        );
    }
    // What we log, sent as a request, asks for the same.
    let only_url = Head {
        uri: &target.url,
        method: &Method::GET,
        version: Version::HTTP_10,
        headers: &HeaderMap::new(),
    };
    let again = Target::read(&only_url, original);
    assert_eq!(
        again.map(|again| (again.host, again.url)),
        Ok((target.host, target.url))
    );
}

/// [`normal_path`]: one form, and no server finds another segment or a dot segment in it.
pub fn path(bytes: &[u8]) {
    let Some(normal) = str::from_utf8(bytes).ok().and_then(|text| normal_path(text).ok()) else {
        return;
    };
    assert_eq!(normal_path(&normal).as_ref(), Ok(&normal), "not idempotent");
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()));
    let decoded = decode(normal.as_bytes());
    for form in [normal.as_bytes(), &decoded] {
        assert!(form.starts_with(b"/"));
        assert!(!form.contains(&b'\\'), "a backslash");
        assert!(!form.windows(2).any(|pair| pair == b"//"), "an empty segment");
        let mut segments = form.split(|byte| *byte == b'/');
        assert!(
            !segments.any(|segment| matches!(segment, b"." | b"..")),
            "a dot segment"
        );
    }
    assert_eq!(
        decoded.iter().filter(|byte| **byte == b'/').count(),
        normal.matches('/').count(),
        "an encoded delimiter"
    );
    assert_eq!(decode(&decoded), decoded, "an encoding within an encoding");
}

/// Decodes every `%XX` once, as a server would that knows no better.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        let encoded = after.split_at_checked(2).filter(|_| *first == b'%');
        let byte = encoded.and_then(|(digits, after)| Some((hex_byte(digits)?, after)));
        let (byte, after) = byte.unwrap_or((*first, after));
        decoded.push(byte);
        rest = after;
    }
    decoded
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    // from_str_radix alone would take a sign.
    let digits = str::from_utf8(digits).ok()?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
}
