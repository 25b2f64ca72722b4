use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

const DIALLED: &str = "192.0.2.7:80";

/// A request as hyper would hand it over.
struct Case {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

impl Case {
    fn new(line: &str, hosts: &[&[u8]]) -> Self {
        let mut words = line.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let uri = words.next().unwrap().parse().unwrap();
        let version = match words.next().unwrap() {
            "HTTP/1.0" => Version::HTTP_10,
            "HTTP/1.1" => Version::HTTP_11,
            "HTTP/2.0" => Version::HTTP_2,
            other => panic!("{other}"),
        };
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(
                HeaderName::from_static("host"),
                HeaderValue::from_bytes(host).unwrap(),
            );
        }
        Self {
            method,
            uri,
            version,
            headers,
        }
    }

    fn read(&self) -> Result<Target, Refusal> {
        self.read_on(DIALLED)
    }

    fn read_on(&self, dialled: &str) -> Result<Target, Refusal> {
        let head = Head {
            method: &self.method,
            uri: &self.uri,
            version: self.version,
            headers: &self.headers,
        };
        Target::read(&head, dialled.parse().unwrap())
    }
}

fn target(line: &str, host: &str) -> Target {
    match Case::new(line, &[host.as_bytes()]).read() {
        Ok(target) => target,
        Err(refusal) => panic!("{line} Host: {host}: {refusal}"),
    }
}

fn refusal(line: &str, hosts: &[&[u8]]) -> Refusal {
    match Case::new(line, hosts).read() {
        Ok(target) => panic!("{line} was read as {target:?}"),
        Err(refusal) => refusal,
    }
}

#[test]
fn the_host_is_judged_in_one_canonical_form() {
    for (field, host, port) in [
        ("example.com", "example.com", None),
        ("EXAMPLE.Com", "example.com", None),
        ("example.com.", "example.com", None),
        ("example.com:80", "example.com", Some(80)),
        ("example.com:8080", "example.com", Some(8080)),
        ("example.com:", "example.com", None),
        ("my_service.example.com", "my_service.example.com", None),
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:80", "192.0.2.1", Some(80)),
        ("[2001:DB8::1]", "[2001:db8::1]", None),
        ("[2001:db8:0:0:0:0:0:1]:80", "[2001:db8::1]", Some(80)),
        ("[::ffff:192.0.2.1]", "192.0.2.1", None),
    ] {
        let target = target("GET / HTTP/1.1", field);
        assert_eq!(target.host.to_string(), host, "{field}");
        assert_eq!(target.port_in_authority, port, "{field}");
    }
}

#[test]
fn what_is_no_host_is_refused() {
    for (field, expected) in [
        (&b""[..], Refusal::NoHost),
        (b":80", Refusal::NoHost),
        (b".", Refusal::BadHost),
        (b"a..b", Refusal::BadHost),
        (b"user@example.com", Refusal::UserInfo),
        (b"user:pw@example.com:80", Refusal::UserInfo),
        (b"good.test@evil.test", Refusal::UserInfo),
        (b"example.com/path", Refusal::BadHost),
        (b"example.com?x", Refusal::BadHost),
        (b"example.com#x", Refusal::BadHost),
        (b"example.com\\x", Refusal::BadHost),
        (b"exa mple.com", Refusal::BadHost),
        (b"example.com evil.test", Refusal::BadHost),
        (b"example.com,evil.test", Refusal::BadHost),
        (b"example.com\tevil.test", Refusal::BadHost),
        (b"ex%61mple.com", Refusal::BadHost),
        (b"b\xc3\xbccher.example", Refusal::BadHost),
        (b"\xff.example", Refusal::BadHost),
        (b"127.1", Refusal::BadHost),
        (b"0x7f.0.0.1", Refusal::BadHost),
        (b"2130706433", Refusal::BadHost),
        (b"1.2.3.4.", Refusal::BadHost),
        (b"[::1", Refusal::BadHost),
        (b"::1", Refusal::BadPort),
        (b"2001:db8::1", Refusal::BadPort),
        (b"[::1]x", Refusal::BadHost),
        (b"[fe80::1%25eth0]", Refusal::BadHost),
        (b"[v1.x]", Refusal::BadHost),
        (b"[127.0.0.1]", Refusal::BadHost),
        (b"example.com:0", Refusal::BadPort),
        (b"example.com:65536", Refusal::BadPort),
        (b"example.com:+80", Refusal::BadPort),
        (b"example.com:80:80", Refusal::BadPort),
        (b"example.com:http", Refusal::BadPort),
        (b"example.com: 80", Refusal::BadPort),
    ] {
        assert_eq!(
            refusal("GET / HTTP/1.1", &[field]),
            expected,
            "{}",
            field.escape_ascii()
        );
    }
}

#[test]
fn two_hosts_are_never_chosen_between() {
    for (line, hosts, expected) in [
        (
            "GET / HTTP/1.1",
            &[&b"a.test"[..], b"a.test"][..],
            Refusal::SeveralHosts,
        ),
        ("GET / HTTP/1.1", &[b"a.test", b"b.test"], Refusal::SeveralHosts),
        ("GET / HTTP/1.0", &[b"a.test", b"b.test"], Refusal::SeveralHosts),
        ("GET / HTTP/1.1", &[], Refusal::NoHost),
        ("GET http://a.test/ HTTP/1.1", &[], Refusal::NoHost),
        (
            "GET http://a.test/ HTTP/1.1",
            &[b"b.test"],
            Refusal::Contradiction,
        ),
        (
            "GET http://a.test/ HTTP/1.0",
            &[b"b.test"],
            Refusal::Contradiction,
        ),
        ("GET http://a.test/ HTTP/1.1", &[b""], Refusal::NoHost),
        (
            "GET http://a.test:81/ HTTP/1.1",
            &[b"a.test"],
            Refusal::Contradiction,
        ),
        (
            "GET http://a.test:81/ HTTP/1.1",
            &[b"a.test:82"],
            Refusal::Contradiction,
        ),
        (
            "GET http://a.test@b.test/ HTTP/1.1",
            &[b"b.test"],
            Refusal::UserInfo,
        ),
        (
            "GET http://a.test/ HTTP/2.0",
            &[b"b.test"],
            Refusal::Contradiction,
        ),
        (
            "GET http://a.test/ HTTP/2.0",
            &[b"a.test", b"a.test"],
            Refusal::SeveralHosts,
        ),
        ("GET / HTTP/2.0", &[], Refusal::NoHost),
    ] {
        assert_eq!(refusal(line, hosts), expected, "{line}");
    }
}

#[test]
fn two_places_that_agree_are_one_host() {
    for (line, host) in [
        ("GET http://a.test/ HTTP/1.1", "a.test"),
        ("GET http://A.TEST./ HTTP/1.1", "a.test:80"),
        ("GET http://a.test:80/ HTTP/1.1", "a.test"),
        ("GET HTTP://a.test:8080/ HTTP/1.1", "a.test:8080"),
        ("GET http://a.test/ HTTP/2.0", "a.test"),
    ] {
        assert_eq!(target(line, host).host.to_string(), "a.test", "{line}");
    }
    let alone = Case::new("GET http://a.test/ HTTP/2.0", &[]).read().unwrap();
    assert_eq!(alone.host.to_string(), "a.test");
    let alone = Case::new("GET http://a.test/ HTTP/1.0", &[]).read().unwrap();
    assert_eq!(alone.host.to_string(), "a.test");
}

#[test]
fn http_1_0_without_host_is_judged_as_the_dialled_address() {
    let case = Case::new("GET /x HTTP/1.0", &[]);
    let target = case.read().unwrap();
    assert_eq!(target.host, Host::Address([192, 0, 2, 7].into()));
    assert_eq!(target.url.to_string(), "http://192.0.2.7/x");
    let target = case.read_on("[::ffff:192.0.2.7]:8080").unwrap();
    assert_eq!(target.host, Host::Address([192, 0, 2, 7].into()));
    assert_eq!(target.url.to_string(), "http://192.0.2.7:8080/x");
}

#[test]
fn the_url_has_the_dialled_port_whatever_the_host_field_says() {
    for (line, host, dialled, url) in [
        (
            "GET /a?b=c HTTP/1.1",
            "x.test",
            "192.0.2.7:80",
            "http://x.test/a?b=c",
        ),
        (
            "GET /a HTTP/1.1",
            "x.test:9999",
            "192.0.2.7:80",
            "http://x.test/a",
        ),
        (
            "GET /a HTTP/1.1",
            "x.test",
            "192.0.2.7:8080",
            "http://x.test:8080/a",
        ),
        (
            "GET //a/../b HTTP/1.1",
            "x.test",
            "192.0.2.7:80",
            "http://x.test//a/../b",
        ),
        (
            "GET http://x.test HTTP/1.1",
            "x.test",
            "192.0.2.7:80",
            "http://x.test/",
        ),
        (
            "GET http://x.test?q HTTP/1.1",
            "x.test",
            "192.0.2.7:80",
            "http://x.test/?q",
        ),
        ("OPTIONS * HTTP/1.1", "x.test", "192.0.2.7:80", "http://x.test/*"),
        (
            "GET / HTTP/1.1",
            "[2001:db8::1]",
            "192.0.2.7:81",
            "http://[2001:db8::1]:81/",
        ),
    ] {
        let target = Case::new(line, &[host.as_bytes()]).read_on(dialled).unwrap();
        assert_eq!(target.url.to_string(), url, "{line}");
    }
}

#[test]
fn request_targets_of_other_forms_are_refused() {
    for (line, expected) in [
        ("CONNECT a.test:443 HTTP/1.1", Refusal::Connect),
        ("CONNECT http://a.test/ HTTP/2.0", Refusal::Connect),
        ("GET a.test:80 HTTP/1.1", Refusal::Form),
        ("GET * HTTP/1.1", Refusal::Form),
        ("GET https://a.test/ HTTP/1.1", Refusal::Scheme),
        ("GET ftp://a.test/ HTTP/1.1", Refusal::Scheme),
        ("GET https://a.test/ HTTP/2.0", Refusal::Scheme),
    ] {
        assert_eq!(refusal(line, &[b"a.test"]), expected, "{line}");
    }
}
