//! The access log against a real squid: the same requests through both, and the same facts rendered by both.

use std::{fs, path::Path, sync::Arc, time::Duration};

use egress_agent::{
    access_log::{
        AccessLog, Asked, COMBINED, COMMON, Carrier, Ending, Format, Output, Protocol, Record, SQUID, Target,
    },
    identity::{Process, Workload},
    policy::{DomainName, Host, Verdict},
};
use egress_common::outcome::Outcome;
use egress_tests::{
    agent,
    clients::{curl, raw, shell},
    lab::{CLIENT_V4, CLIENT_V6, World},
    promises,
    raw_client::{Script, Step},
    squid::{Log, Squid},
    squid_log::{self, Line},
};
use http::{HeaderValue, Method, Uri, Version};

promises![
    the_agent_logs_what_squid_logs_of_the_same_requests,
    the_explicit_proxy_logs_what_squid_logs_of_the_same_requests,
    the_same_facts_are_rendered_as_squid_renders_them,
];

/// One request each: what it does is in its address. `%{Referer}` and the agent's name are sent with all.
const REQUESTS: [&str; 8] = [
    "https://v4.test/",
    "--ipv4 https://evil.test/",
    "http://v6.test/bytes/5000?q=1&r=%20x",
    "--ipv4 http://evil.test/x?y",
    "--head http://v4.test/",
    "--data abc http://v4.test/hash",
    "http://v4.test/no/such/page",
    "--http1.0 http://v4.test/",
];

/// What squid and the explicit proxy are asked besides: what comes of nothing.
const FAILURES: [&str; 6] = [
    "https://v4.test:81/",
    "http://v4.test:81/x",
    "https://missing.test/",
    "http://missing.test/y?z",
    "--http1.0 https://v4.test/",
    "--proxytunnel --http1.0 https://evil.test/",
];

async fn the_explicit_proxy_logs_what_squid_logs_of_the_same_requests() {
    let world = World::new().await;
    let _tls = world.https("v4.test").await;
    let _clear = [world.http("v4.test").await, world.http("v6.test").await];
    let forbidden = [world.https("evil.test").await, world.http("evil.test").await];
    let formats = [
        agent::Format::Combined,
        agent::Format::Squid,
        agent::Format::Common,
    ];
    let requests: Vec<&str> = REQUESTS.into_iter().chain(FAILURES).collect();
    let oracle = squids_lines(&world, &formats, &requests).await;
    for (format, expected) in formats.into_iter().zip(oracle) {
        let proxy = format!("{CLIENT_V4}:3128");
        let options = format!("--proxy http://{proxy} --proxy-header User-Agent:");
        let script: Vec<_> = requests
            .iter()
            .map(|request| command_line(&world, &options, request))
            .collect();
        let finished = world
            .exec()
            .policy(
                "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: oracle}\nspec:\n  egress:\n  \
                 - to: [{domain: v4.test}, {domain: v6.test}, {domain: missing.test}]\n    \
                 ports: [{port: 80}, {port: 81}, {port: 443}]\n",
            )
            .args(["--explicit-proxy", &proxy])
            .log(format)
            .run(&shell(&format!("{}; true", script.join("; "))))
            .await;
        finished.succeeded();
        // The next run would append.
        fs::remove_file(world.path("access.log")).expect("a log");
        let own = read(format, &finished.log);
        assert_eq!(own.len(), requests.len(), "{}", finished.story());
        for ((request, mut own), mut theirs) in requests.iter().zip(own).zip(expected) {
            let story = format!("{format:?} {request}\nsquid: {theirs:?}\nagent: {own:?}");
            for line in [&mut own, &mut theirs] {
                assert_eq!(line.client, CLIENT_V4, "{story}");
                line.time.clear();
                line.milliseconds = 0;
                // No two TLS sessions have the same length, and squid rewrites heads.
                line.bytes = 0;
                if line.status == 403 || line.status >= 500 {
                    // The error pages are not the same.
                    line.content_type.clear();
                }
            }
            assert_eq!(own, theirs, "{story}");
        }
    }
    for origin in forbidden {
        origin.was_never_reached().await;
    }
}

async fn the_agent_logs_what_squid_logs_of_the_same_requests() {
    let world = World::new().await;
    let _tls = world.https("v4.test").await;
    let _clear = [world.http("v4.test").await, world.http("v6.test").await];
    let forbidden = [world.https("evil.test").await, world.http("evil.test").await];
    let formats = [
        agent::Format::Combined,
        agent::Format::Squid,
        agent::Format::Common,
    ];
    let oracle = squids_lines(&world, &formats, &REQUESTS).await;
    for (format, expected) in formats.into_iter().zip(oracle) {
        let script = REQUESTS
            .map(|request| command_line(&world, "", request))
            .join("; ");
        let finished = world
            .exec()
            .allow("v4.test")
            .allow("v6.test")
            .log(format)
            .run(&shell(&format!("{script}; true")))
            .await;
        finished.succeeded();
        // The next run would append.
        fs::remove_file(world.path("access.log")).expect("a log");
        let own = read(format, &finished.log);
        assert_eq!(own.len(), REQUESTS.len(), "{}", finished.story());
        for ((request, own), theirs) in REQUESTS.iter().zip(own).zip(expected) {
            let story = format!("{format:?} {request}\nsquid: {theirs:?}\nagent: {own:?}");
            compare(own, theirs, &story);
        }
    }
    for origin in forbidden {
        origin.was_never_reached().await;
    }
}

/// What squid logs of each of `requests`, in each format.
async fn squids_lines(world: &World, formats: &[agent::Format], requests: &[&str]) -> Vec<Vec<Line>> {
    let logs: Vec<_> = formats
        .iter()
        .map(|format| Log::built_in(format.word()))
        .collect();
    let squid = Squid::start(world, &logs).await;
    let mut lines = vec![Vec::new(); formats.len()];
    let proxy = format!("--proxy http://{} --proxy-header User-Agent:", squid.address());
    for request in requests {
        world
            .directly(&shell(&command_line(world, &proxy, request)))
            .await;
        for (&format, lines) in formats.iter().zip(&mut lines) {
            let line = String::from_utf8(squid.line(format.word()).await).expect("ASCII");
            lines.extend(read(format, &line));
        }
    }
    squid.stop().await;
    lines
}

fn command_line(world: &World, proxy: &str, request: &str) -> String {
    let curl = curl(world).words("--output /dev/null --user-agent oracle/1.0 --referer http://from.test/");
    let words: Vec<_> = curl.arguments.iter().map(|word| word.to_string_lossy()).collect();
    let quoted: Vec<_> = request.split(' ').map(|word| format!("'{word}'")).collect();
    format!(
        "{} {} {proxy} {}",
        curl.program.display(),
        words.join(" "),
        quoted.join(" ")
    )
}

fn read(format: agent::Format, log: &str) -> Vec<Line> {
    match format {
        agent::Format::Combined => squid_log::combined(log),
        agent::Format::Squid => squid_log::native(log),
        agent::Format::Common => squid_log::common(log),
        agent::Format::Json => unreachable!("squid writes no JSON"),
    }
}

#[track_caller]
fn compare(mut own: Line, mut theirs: Line, story: &str) {
    let is_denied = theirs.status == 403;
    // Of a tunnel squid counts its own 39 bytes of answer too, of a request the head that it has rewritten; and no two
    // TLS sessions have the same length.
    assert!(own.bytes > 0, "{story}");
    assert!(own.bytes >= 5000 || !own.url.contains("5000"), "{story}");
    // The client dials squid, and the agent lets it dial the origin: by IPv6, if that is what it has.
    let dialled_from = if own.url.contains("v6.test") {
        CLIENT_V6
    } else {
        CLIENT_V4
    };
    assert_eq!(
        (own.client.as_str(), theirs.client.as_str()),
        (dialled_from, CLIENT_V4),
        "{story}"
    );
    for line in [&mut own, &mut theirs] {
        line.client.clear();
        line.time.clear();
        line.milliseconds = 0;
        line.bytes = 0;
        if is_denied {
            // The error pages are not the same.
            line.content_type.clear();
        }
    }
    assert_eq!(own, theirs, "{story}");
}

/// What squid is asked, and what became of it in the agent's terms.
struct Case {
    name: &'static str,
    script: Script,
    outcome: Outcome,
    ending: Ending,
}

/// Fields that a record is made of, apart by what occurs in none of them. `%'` leaves a value as it came.
const FACTS: &str = "%.6tS<|>%.6tr<|>%>a<|>%>p<|>%<st<|>%>st<|>%>Hs<|>%<a<|>%'rm<|>%'>ru<|>%rv<|>%'{Referer}>h\
    <|>%'{User-Agent}>h<|>%'{Content-Type}<h";
/// Every quoting, widths, and times that the three formats do not use.
const OTHERS: &str = "%\"{User-Agent}>h %[{User-Agent}>h %#{User-Agent}>h %/{User-Agent}>h %'{User-Agent}>h \
    %{User-Agent}>h \"%{Referer}>h\" [%{Referer}>h %ru] %>ru %#ru %/ru|%30ru|%-30ru|%.5ru|%-9.5ru|%05>Hs|%-5>Hs|%10<st|\
    %010<st|%8tr|%08tr|%.3tr|%6tu|%.6tu|%tS|%.6tS|%12mt|%-12<A|%12ul|%http::rm|%[tg]|%{%Y-%m-%dT%H:%M:%S}tl|%>rs %>rd %>rP \
    %>rp %>rv %>rm %<p %un %%";

async fn the_same_facts_are_rendered_as_squid_renders_them() {
    let world = World::new().await;
    let _origins = [world.https("v4.test").await, world.http("v4.test").await];
    let formats = [
        ("squid", SQUID),
        ("combined", COMBINED),
        ("common", COMMON),
        ("others", OTHERS),
    ];
    let mut logs = vec![Log::defined("facts", FACTS)];
    logs.extend(formats.map(|(name, definition)| Log::defined(name, definition)));
    let squid = Squid::start(&world, &logs).await;
    let mut wrong = Vec::new();
    for case in cases(Script::to(squid.address())) {
        world.directly(&raw(&world, &case.script)).await.succeeded();
        let facts = squid.line("facts").await;
        let record = record(&case, &String::from_utf8_lossy(&facts));
        for (name, definition) in formats {
            let theirs = squid.line(name).await;
            let own = rendered(&world.path("own.log"), definition, record.clone());
            if own != theirs {
                let [own, theirs] = [own, theirs].map(|line| line.escape_ascii().to_string());
                wrong.push(format!("{} {name}\n squid: {theirs}\n agent: {own}", case.name));
            }
        }
    }
    squid.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn cases(to_squid: Script) -> Vec<Case> {
    let case = |name, request: &[u8], outcome, ending| Case {
        name,
        script: to_squid.clone().send(request).read_to_end(),
        outcome,
        ending,
    };
    let get = |path: &str, headers: &str| {
        format!("GET http://v4.test{path} HTTP/1.1\r\nHost: v4.test\r\n{headers}Connection: close\r\n\r\n")
            .into_bytes()
    };
    let connect = |target: &str| {
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let (allowed, complete) = (Outcome::AllowedByRule, Ending::Complete);
    let (refused, failed) = (Ending::Refused, Ending::Failed);
    let odd_headers =
        "User-Agent: a \"q\" \\b [x] %41 \u{fc} \ttab ~'{}|^`<>#end\r\nReferer: http://x/\"\\[]%\u{e9}\r\n";
    let mut aborts = case("client-aborts", b"", allowed, Ending::ClientAborted);
    aborts.script = to_squid
        .clone()
        // squid logs an abort that it reads, but none that it learns of because its own next write fails.
        .send(&get("/stall", ""))
        .read_until(b"stalled\n")
        .step(Step::Reset);
    let mut tunnel = case("tunnel", b"", allowed, complete);
    tunnel.script = to_squid
        .clone()
        .send(&connect("v4.test:80"))
        .read_until(b"\r\n\r\n")
        .send(b"GET / HTTP/1.1\r\nHost: v4.test\r\nConnection: close\r\n\r\n")
        .read_to_end();
    let mut silent = case("silent", b"", Outcome::ClientGone, refused);
    silent.script = to_squid.clone().finish_sending().read_to_end();
    let odd_url = get("/a%20b\"c\\d?[x]\u{c0}", odd_headers);
    vec![
        tunnel,
        case(
            "tunnel-denied",
            &connect("evil.test:443"),
            Outcome::NoRule,
            refused,
        ),
        case(
            "tunnel-refused",
            &connect("v4.test:81"),
            Outcome::OriginRefused,
            failed,
        ),
        case(
            "tunnel-missing",
            &connect("missing.test:443"),
            Outcome::NameNotFound,
            failed,
        ),
        case(
            "tunnel-ipv6",
            &connect("[2001:db8:1::6]:81"),
            Outcome::OriginRefused,
            failed,
        ),
        case("get", &get("/", "User-Agent: curl/8\r\n"), allowed, complete),
        case("odd", &odd_url, allowed, complete),
        case(
            "other-odd",
            &get("/\u{fc}/[a]{b}|^~'?`", "User-Agent: \"\r\nReferer: \\\r\n"),
            allowed,
            complete,
        ),
        case(
            "empty-headers",
            &get("/", "User-Agent:\r\nReferer:  \r\n"),
            allowed,
            complete,
        ),
        case("not-found", &get("/no/such/page", ""), allowed, complete),
        case(
            "denied",
            b"GET http://evil.test/x HTTP/1.0\r\n\r\n",
            Outcome::NoRule,
            refused,
        ),
        case(
            "refused",
            b"GET http://v4.test:81/x HTTP/1.0\r\n\r\n",
            Outcome::OriginRefused,
            failed,
        ),
        case(
            "missing",
            b"GET http://missing.test/x HTTP/1.0\r\n\r\n",
            Outcome::NameNotFound,
            failed,
        ),
        aborts,
        case(
            "malformed",
            b"\x16\x03\x01\x00\x05hello\r\n\r\n",
            Outcome::MalformedHttp,
            refused,
        ),
        silent,
    ]
}

/// A record as the agent would have made it.
fn record(case: &Case, facts: &str) -> Record {
    let facts: Vec<_> = facts.split("<|>").collect();
    let facts: [&str; 14] = facts.try_into().expect("as many fields as FACTS has");
    let [
        started,
        took,
        client,
        port,
        sent,
        received,
        status,
        upstream,
        method,
        url,
        version,
        headers @ ..,
    ] = facts;
    let header = |at: usize| match headers[at] {
        "-" => None,
        value => Some(HeaderValue::from_bytes(value.as_bytes()).expect("a header")),
    };
    let (millis, nanos) = took.split_once('.').expect("a fraction");
    // The fraction of `%tr` is in units of a nanosecond.
    let duration = Duration::from_millis(number(millis)) + Duration::from_nanos(number(nanos));
    let asked = asked(method, url, version);
    let upstream_port = match &asked {
        Asked::Tunnel { port, .. } | Asked::Connect { port, .. } => *port,
        Asked::Request { url, .. } => url.port_u16().unwrap_or(80),
        Asked::Nothing => 0,
    };
    let is_tunnel = matches!(asked, Asked::Tunnel { .. });
    Record {
        started: jiff::Timestamp::from_microsecond(started.replace('.', "").parse().expect("a time"))
            .expect("a time"),
        duration,
        client: format!("{client}:{port}").parse().expect("an address"),
        original: "198.51.100.4:80".parse().expect("an address"),
        workload: Arc::new(Workload::default()),
        process: Process::default(),
        carrier: Carrier::TCP,
        protocol: Protocol::Unknown,
        asked,
        tls: None,
        status: if is_tunnel {
            0
        } else {
            status.parse().expect("a status")
        },
        bytes_to_client: number(sent),
        bytes_to_origin: number(received),
        referer: header(0),
        user_agent: header(1),
        content_type: header(2),
        by_parent: false,
        upstream: upstream
            .parse()
            .ok()
            .map(|address| (address, upstream_port))
            .map(From::<(std::net::IpAddr, u16)>::from),
        relation: None,
        verdict: Verdict::without_rule(case.outcome),
        enforced: true,
        ending: case.ending,
        attempts: 1,
    }
}

fn asked(method: &str, url: &str, version: &str) -> Asked {
    match method {
        "-" => Asked::Nothing,
        "CONNECT" => {
            let (host, port) = url.rsplit_once(':').expect("a port");
            let literal = host.trim_matches(['[', ']']);
            let host = literal.parse().map_or_else(
                |_| Host::Name(DomainName::parse(host).expect("a name")),
                Host::Address,
            );
            Asked::Tunnel {
                host,
                port: port.parse().expect("a port"),
            }
        }
        _ => Asked::Request {
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            url: Uri::try_from(url).expect("a URL"),
            version: if version == "1.0" {
                Version::HTTP_10
            } else {
                Version::HTTP_11
            },
        },
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

/// What the agent's own log writes.
fn rendered(path: &Path, format: &str, record: Record) -> Vec<u8> {
    let format: Format = format.parse().expect("a format");
    let target = Target::File(path.to_owned());
    let log = AccessLog::start(vec![Output {
        format,
        target,
        opened: false,
    }])
    .expect("a log");
    log.record(record);
    log.close(Duration::from_secs(10)).expect("written");
    let mut line = fs::read(path).expect("the log");
    fs::remove_file(path).expect("removed");
    assert_eq!(line.pop(), Some(b'\n'));
    line
}
