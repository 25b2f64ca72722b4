//! Lines that a real squid wrote, and what this renderer makes of the same facts.

use std::{collections::BTreeMap, time::Duration};

use egress_common::outcome::Outcome;
use http::{HeaderValue, Method, Version};
use jiff::{Timestamp, tz::TimeZone};

use super::{COMBINED, COMMON, FormatErrorKind, LogFormat, Renderer, SQUID};
use crate::{
    access_log::{
        Asked, Ending, Record,
        facts::Facts,
        samples::{get, header, name, nothing, socket, tunnel},
    },
    policy::Host,
};

const GOLDEN: &str = include_str!("../testdata/squid-5.7.txt");

#[test]
fn renders_what_squid_wrote_for_the_same_facts() {
    let golden = Golden::read();
    let mut seen = 0;
    for (case, mut record) in cases() {
        let lines = golden.case(case);
        lines.apply_facts(&mut record);
        let own = ["f1", "f2", "f3"].map(|own| (own, golden.formats[own].as_str()));
        for (format, text) in [("squid", SQUID), ("combined", COMBINED), ("common", COMMON)]
            .into_iter()
            .chain(own)
        {
            let rendered = shown(&render(text, &record));
            assert_eq!(rendered, lines.0[format], "{case}: {format}");
        }
        seen += 1;
    }
    assert_eq!(
        seen + UNLIKE.len(),
        golden.cases.len(),
        "every recorded case is looked at"
    );
}

/// Recorded, but not what this program does: hyper refuses such requests before a method or URL is known.
const UNLIKE: [&str; 1] = ["too-large"];

/// squid's own code for its built-in names differs from the definitions in squid.conf.documented, as the module says:
/// no escapes, and `NONE/0.0` for no request.
#[test]
fn the_built_in_names_agree_with_their_definitions_where_nothing_is_escaped() {
    let golden = Golden::read();
    let unlike: Vec<_> = golden
        .cases
        .iter()
        .flat_map(|(case, lines)| {
            ["squid", "combined", "common"].map(|format| {
                (
                    case,
                    format,
                    &lines.0[format],
                    &lines.0[&format!("builtin-{format}")],
                )
            })
        })
        .filter(|(_, _, defined, built_in)| defined != built_in)
        .map(|(case, format, ..)| format!("{case} {format}"))
        .collect();
    let expected = [
        "half-a-head combined",
        "half-a-head common",
        "no-spaces combined",
        "odd-headers combined",
        "odd-headers common",
        "own-method squid",
        "quote-only combined",
        "silent combined",
        "silent common",
    ];
    assert_eq!(unlike, expected);
}

/// The requests of the recorded cases as the proxy would have recorded them.
fn cases() -> Vec<(&'static str, Record)> {
    let mut cases = tunnels();
    cases.extend(requests());
    cases.extend(odd_requests());
    cases.extend(failures());
    cases
}

fn tunnels() -> Vec<(&'static str, Record)> {
    let with_agent = |mut record: Record| {
        record.user_agent = Some(HeaderValue::from_static("curl/7.88.1"));
        record
    };
    let to = |host: &str, port, outcome| with_agent(tunnel(name(host), port, outcome));
    let failed = |mut record: Record, upstream: &str| {
        record.upstream = Some(socket(upstream));
        record.ending = Ending::Failed;
        record
    };
    let v6 = Host::Address("::1".parse().unwrap());
    let unreachable = Host::Address("192.0.2.1".parse().unwrap());
    let mut aborted = to("good.test", 443, Outcome::AllowedByRule);
    aborted.ending = Ending::ClientAborted;
    let mut denied = to("evil.test", 443, Outcome::NoRule);
    // squid's error page. A TLS client gets none.
    denied.content_type = Some(HeaderValue::from_static("text/html"));
    vec![
        ("tunnel", to("good.test", 443, Outcome::AllowedByRule)),
        ("tunnel-denied", denied),
        (
            "tunnel-refused",
            failed(to("good.test", 81, Outcome::OriginRefused), "127.0.0.1:81"),
        ),
        (
            "tunnel-timeout",
            failed(to("good.test", 82, Outcome::OriginTimeout), "127.0.0.1:82"),
        ),
        (
            "tunnel-unreachable",
            failed(
                with_agent(tunnel(unreachable, 443, Outcome::OriginUnreachable)),
                "192.0.2.1:443",
            ),
        ),
        (
            "tunnel-name-not-found",
            to("missing.test", 443, Outcome::NameNotFound),
        ),
        (
            "tunnel-lookup-failed",
            to("fail.test", 443, Outcome::LookupFailed),
        ),
        (
            "tunnel-ipv6-refused",
            failed(with_agent(tunnel(v6, 81, Outcome::OriginRefused)), "[::1]:81"),
        ),
        ("tunnel-client-aborts", aborted),
    ]
}

fn requests() -> Vec<(&'static str, Record)> {
    let good = |path: &str| {
        get(
            format!("http://good.test:8080{path}").as_bytes(),
            Outcome::AllowedByRule,
        )
    };
    let asked = |mut record: Record, as_method: Method, as_version| {
        if let Asked::Request { method, version, .. } = &mut record.asked {
            *method = as_method;
            *version = as_version;
        }
        record
    };
    let answered = |mut record: Record, status, content_type: Option<&'static str>| {
        record.status = status;
        record.content_type = content_type.map(HeaderValue::from_static);
        record
    };
    let html = Some("text/html");
    let mut with_headers = good("/p/a");
    with_headers.user_agent = Some(HeaderValue::from_static("curl/7.88.1"));
    with_headers.referer = Some(HeaderValue::from_static("http://from.test/"));
    let mut port_80 = get(b"http://good.test/x", Outcome::AllowedByRule);
    port_80.upstream = Some(socket("127.0.0.1:80"));
    let mut to_v6 = get(b"http://[::1]:8080/x", Outcome::AllowedByRule);
    to_v6.upstream = Some(socket("[::1]:8080"));
    let mut from_v6 = good("/x");
    from_v6.client = socket("[::1]:1");
    let own_method = Method::from_bytes(b"FOO-BAR'~").unwrap();
    let denied = |url: &[u8]| answered(get(url, Outcome::NoRule), 403, html);
    vec![
        ("get", with_headers),
        ("get-query", good("/p/a?q=1&b=%20x")),
        ("get-port-80", port_80),
        ("get-http-1.0", asked(good("/x"), Method::GET, Version::HTTP_10)),
        ("head", asked(good("/x"), Method::HEAD, Version::HTTP_11)),
        ("post", asked(good("/x"), Method::POST, Version::HTTP_11)),
        (
            "not-found",
            answered(good("/404"), 404, Some("text/plain; charset=utf-8")),
        ),
        ("no-content", answered(good("/204"), 204, None)),
        ("own-method", asked(good("/x"), own_method, Version::HTTP_11)),
        ("denied", denied(b"http://evil.test/x")),
        ("denied-port", denied(b"http://evil.test:8080/x?y")),
        ("ipv6-origin", to_v6),
        ("ipv6-client", from_v6),
        ("websocket", answered(good("/ws"), 101, None)),
    ]
}

fn odd_requests() -> Vec<(&'static str, Record)> {
    let with = |url: &[u8], user_agent: &[u8], referer: &[u8]| {
        let mut record = get(&[b"http://good.test:8080", url].concat(), Outcome::AllowedByRule);
        record.user_agent = (!user_agent.is_empty()).then(|| header(user_agent));
        record.referer = (!referer.is_empty()).then(|| header(referer));
        record
    };
    let mut empty = with(b"/x", b"", b"");
    empty.user_agent = Some(HeaderValue::from_static(""));
    empty.referer = Some(HeaderValue::from_static(""));
    vec![
        (
            "odd-headers",
            with(
                b"/a%20b\"c\\d?[x]",
                b"a \"q\" \\b [x] %41 \xc3\xbc \ttab ~'{}|^`<>#end",
                b"http://x/\"\\[]%\xff",
            ),
        ),
        ("quote-only", with(b"/x", b"\"", b"\\")),
        ("no-spaces", with(b"/x", b"a\"b\\c\td", b"")),
        ("empty-headers", empty),
        ("utf8-url", with(b"/\xc3\xbc/[a]{b}|^~'?`", b"", b"")),
        ("c1-url", with(b"/\xc3\x80\"x\\[%41]?q", b"", b"")),
    ]
}

fn failures() -> Vec<(&'static str, Record)> {
    let failed = |url: &str, outcome, upstream: Option<&str>, status| {
        let mut record = get(url.as_bytes(), outcome);
        record.upstream = upstream.map(socket);
        record.status = status;
        record.content_type = (status != 0).then(|| HeaderValue::from_static("text/html"));
        record.ending = Ending::Failed;
        record
    };
    let local = Some("127.0.0.1:8080");
    let mut broken_off = get(b"http://good.test:8080/abort", Outcome::AllowedByRule);
    broken_off.content_type = Some(HeaderValue::from_static("application/octet-stream"));
    broken_off.ending = Ending::OriginAborted;
    let mut aborted = get(b"http://good.test:8080/slow", Outcome::AllowedByRule);
    aborted.content_type = Some(HeaderValue::from_static("application/octet-stream"));
    aborted.ending = Ending::ClientAborted;
    let mut aborted_early = get(b"http://good.test:82/x", Outcome::ClientGone);
    aborted_early.ending = Ending::ClientAborted;
    let mut malformed = nothing(Outcome::MalformedHttp);
    malformed.status = 400;
    malformed.content_type = Some(HeaderValue::from_static("text/html"));
    let refused = Outcome::OriginRefused;
    vec![
        (
            "refused",
            failed("http://good.test:81/x", refused, Some("127.0.0.1:81"), 503),
        ),
        (
            "timeout",
            failed(
                "http://good.test:82/x",
                Outcome::OriginTimeout,
                Some("127.0.0.1:82"),
                503,
            ),
        ),
        (
            "unreachable",
            failed(
                "http://192.0.2.1:81/x",
                Outcome::OriginUnreachable,
                Some("192.0.2.1:81"),
                503,
            ),
        ),
        (
            "name-not-found",
            failed("http://missing.test/x", Outcome::NameNotFound, None, 502),
        ),
        (
            "lookup-failed",
            failed("http://fail.test/x", Outcome::LookupFailed, None, 502),
        ),
        (
            "origin-closes",
            failed("http://good.test:8080/close", Outcome::OriginFailed, local, 502),
        ),
        (
            "origin-stalls",
            failed("http://good.test:8080/stall", Outcome::OriginFailed, local, 504),
        ),
        ("origin-breaks-off", broken_off),
        ("client-aborts", aborted),
        ("client-aborts-early", aborted_early),
        ("malformed", malformed),
        ("silent", nothing(Outcome::ClientGone)),
        ("half-a-head", nothing(Outcome::HeadTimeout)),
    ]
}

fn zone() -> TimeZone {
    TimeZone::get("Asia/Kathmandu").unwrap()
}

fn render(format: &str, record: &Record) -> Vec<u8> {
    let format = LogFormat::parse(format).unwrap();
    let mut line = Vec::new();
    Renderer::new(&format, zone(), false).render(&Facts::of(record), &mut line);
    assert_eq!(line.pop(), Some(b'\n'));
    assert!(!line.contains(&b'\n'), "a record is one line");
    line
}

fn text(format: &str, record: &Record) -> String {
    String::from_utf8(render(format, record)).unwrap()
}

/// As the recording shows bytes.
fn shown(line: &[u8]) -> String {
    line.iter()
        .map(|&byte| match byte {
            b' '..=b'~' if byte != b'\\' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect()
}

/// The inverse of [`shown`], for formats.
fn unshown(text: &str) -> String {
    text.replace("\\x5c", "\\")
}

struct Golden {
    formats: BTreeMap<String, String>,
    cases: BTreeMap<String, Lines>,
}

#[derive(Default)]
struct Lines(BTreeMap<String, String>);

impl Golden {
    fn read() -> Self {
        let mut golden = Self {
            formats: BTreeMap::new(),
            cases: BTreeMap::new(),
        };
        let mut case = None;
        for line in GOLDEN
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                case = Some(golden.cases.entry(name.to_owned()).or_default());
                continue;
            }
            let (key, value) = line.split_once('=').unwrap();
            match &mut case {
                Some(lines) => lines.0.insert(key.to_owned(), value.to_owned()),
                None => golden.formats.insert(key.to_owned(), unshown(value)),
            };
        }
        golden
    }

    fn case(&self, name: &str) -> &Lines {
        self.cases
            .get(name)
            .unwrap_or_else(|| panic!("{name} was not recorded"))
    }
}

impl Lines {
    /// The facts that differ from run to run: `facts` was written as `%.6tS %.6tr %<st %>p %>st`.
    fn apply_facts(&self, record: &mut Record) {
        let facts: Vec<_> = self.0["facts"].split(' ').collect();
        let (seconds, micros) = facts[0].split_once('.').unwrap();
        let micros = 1_000_000 * seconds.parse::<i64>().unwrap() + micros.parse::<i64>().unwrap();
        record.started = Timestamp::from_microsecond(micros).unwrap();
        // Milliseconds, and below them microseconds times 1000.
        let (millis, nanos) = facts[1].split_once('.').unwrap();
        record.duration =
            Duration::from_millis(millis.parse().unwrap()) + Duration::from_nanos(nanos.parse().unwrap());
        record.bytes_to_client = facts[2].parse().unwrap();
        let address = if record.client.is_ipv6() {
            "::1"
        } else {
            "127.0.0.1"
        };
        record.client = (
            address.parse::<std::net::IpAddr>().unwrap(),
            facts[3].parse().unwrap(),
        )
            .into();
        record.bytes_to_origin = facts[4].parse().unwrap();
    }
}

mod language;
