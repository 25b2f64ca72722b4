//! The explicit proxy: programs that are told of one are served by the same policies, whatever address it is said to have,
//! and nobody but an enforced workload is.

use egress_tests::{
    agent::{Finished, Format},
    bytes::{digest_of, digest_of_payload},
    clients::{Client, curl, python, raw, shell},
    daemon::Daemon,
    hello::Hello,
    lab::{World, address, traces::listeners},
    origins::Origin,
    promises,
    raw_client::{Outcome, Script},
    squid_log,
};

promises![
    curl_works_through_the_proxy_and_is_refused,
    wget_works_through_the_proxy_and_is_refused,
    python_urllib_works_through_the_proxy_and_is_refused,
    java_http_client_works_through_the_proxy_and_is_refused,
    the_proxy_is_reached_by_ipv6_and_on_loopback,
    two_workloads_are_judged_each_by_its_own_policies_at_one_address,
    the_origin_gets_a_request_for_itself_and_nothing_that_is_meant_for_the_proxy,
    each_request_of_a_connection_is_judged,
    a_tunnel_carries_no_other_name_than_its_own,
    a_tunnel_without_a_server_name_is_refused,
    clear_requests_in_a_tunnel_are_judged_one_by_one,
    bytes_of_no_known_protocol_in_a_tunnel_are_reset,
    a_server_that_speaks_first_is_reached_through_a_tunnel,
    an_address_is_judged_as_an_address,
    what_is_no_request_to_a_proxy_is_refused,
    an_observed_workload_is_served_and_logged,
    nothing_listens_for_those_who_are_not_enforced,
    without_the_option_there_is_no_proxy,
];

/// Bytes of the body that each client fetches.
const LENGTH: u64 = 300_000;

/// A server of the origins' own, where nothing listens: as if it were the squid that was.
const PROXY: &str = "198.51.100.99:3128";

/// Origins for an allowed and a denied name, in clear and in TLS.
struct Origins {
    good: [Origin; 2],
    evil: [Origin; 2],
}

impl Origins {
    async fn start(world: &World) -> Self {
        Self {
            good: [world.http("good.test").await, world.https("good.test").await],
            evil: [world.http("evil.test").await, world.https("evil.test").await],
        }
    }

    /// Asserts that each of the good ones got one request, and the others nothing at all.
    async fn saw_the_allowed_alone(&self, world: &World) {
        for origin in &self.good {
            let requests = origin.requests().await;
            assert_eq!(requests.len(), 1, "{:?}: {requests:#?}", origin.addresses);
            assert_eq!(requests[0].target, format!("/bytes/{LENGTH}"));
            assert_eq!(requests[0].host, "good.test");
        }
        for origin in &self.evil {
            origin.was_never_reached().await;
        }
        assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
        let asked = world.workload_dns.names_asked();
        assert!(asked.is_empty(), "{asked:?}: who has a proxy looks nothing up");
    }
}

/// Runs a client that is told of the proxy by the usual variables.
async fn run(world: &World, client: &Client) -> Finished {
    let mut client = client.clone();
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        client = client.env(name, &format!("http://{PROXY}"));
    }
    world
        .exec()
        .allow("good.test")
        .arg("--explicit-proxy")
        .arg(PROXY)
        .log(Format::Combined)
        .run(&client)
        .await
}

fn url(scheme: &str, name: &str) -> String {
    format!("{scheme}://{name}/bytes/{LENGTH}")
}

#[track_caller]
fn gists(output: &Finished) -> Vec<String> {
    let lines = squid_log::combined(&output.log);
    lines.iter().map(squid_log::Line::gist).collect()
}

#[track_caller]
fn is_the_payload(bytes: &[u8]) {
    assert_eq!(digest_of(bytes), digest_of_payload(LENGTH));
}

/// curl that looks no name up by itself.
fn plain_curl(world: &World) -> Client {
    Client::new("curl")
        .words("--silent --show-error --max-time 30 --cacert")
        .arg(world.path("ca.pem"))
}

async fn curl_works_through_the_proxy_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    for (scheme, logged) in [
        (
            "http",
            format!("GET http://good.test/bytes/{LENGTH} 200 TCP_MISS:HIER_DIRECT"),
        ),
        (
            "https",
            "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT".to_owned(),
        ),
    ] {
        let output = run(&world, &plain_curl(&world).arg(url(scheme, "good.test"))).await;
        is_the_payload(&output.succeeded().stdout);
        assert!(gists(&output).contains(&logged), "{}", output.story());
    }
    let output = run(&world, &plain_curl(&world).arg(url("http", "evil.test"))).await;
    let page = output.succeeded().text();
    assert!(
        page.starts_with("403 Refused by the egress enforcer: evil.test:80\n"),
        "{page}"
    );
    assert!(page.contains("reason: no_rule"), "{page}");
    let output = run(&world, &plain_curl(&world).arg(url("https", "evil.test"))).await;
    assert_eq!(output.code(), 56, "{}", output.story());
    assert!(output.stderr.contains("403"), "{}", output.story());
    assert!(
        gists(&output).contains(&"CONNECT evil.test:443 403 TCP_DENIED:HIER_NONE".to_owned()),
        "{}",
        output.story()
    );
    origins.saw_the_allowed_alone(&world).await;
}

async fn wget_works_through_the_proxy_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let wget = |scheme, name| {
        Client::new("wget")
            .words("--no-verbose --tries=1 --timeout=20 --output-document=- --ca-certificate")
            .arg(world.path("ca.pem"))
            .arg(url(scheme, name))
    };
    for scheme in ["http", "https"] {
        let output = run(&world, &wget(scheme, "good.test")).await;
        is_the_payload(&output.succeeded().stdout);
    }
    for scheme in ["http", "https"] {
        let output = run(&world, &wget(scheme, "evil.test")).await;
        output.failed();
        let words = ["403", "Forbidden"];
        assert!(
            words.iter().any(|word| output.stderr.contains(word)),
            "{}",
            output.story()
        );
    }
    origins.saw_the_allowed_alone(&world).await;
}

async fn python_urllib_works_through_the_proxy_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let program = r#"
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
proxies = urllib.request.ProxyHandler({"http": sys.argv[3], "https": sys.argv[3]})
opener = urllib.request.build_opener(proxies, urllib.request.HTTPSHandler(context=context))
try:
    with opener.open(sys.argv[2], timeout=20) as answer:
        sys.stdout.buffer.write(answer.read())
except urllib.error.HTTPError as error:
    print("status", error.code, error.headers["X-Squid-Error"])
except urllib.error.URLError as error:
    print("error", error.reason)
"#;
    let fetch = |scheme, name| {
        python(&world, "fetch", program)
            .arg(world.path("ca.pem"))
            .arg(url(scheme, name))
            .arg(format!("http://{PROXY}"))
    };
    for scheme in ["http", "https"] {
        let output = run(&world, &fetch(scheme, "good.test")).await;
        is_the_payload(&output.succeeded().stdout);
    }
    run(&world, &fetch("http", "evil.test"))
        .await
        .printed("status 403 ERR_ACCESS_DENIED 0\n");
    let output = run(&world, &fetch("https", "evil.test")).await;
    assert!(output.text().contains("403"), "{}", output.story());
    origins.saw_the_allowed_alone(&world).await;
}

async fn java_http_client_works_through_the_proxy_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let program = r#"
import java.io.FileInputStream;
import java.net.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

public class Fetch {
    public static void main(String[] arguments) throws Exception {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (var file = new FileInputStream(arguments[0])) {
            store.setCertificateEntry("lab", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        HttpsURLConnection.setDefaultSSLSocketFactory(context.getSocketFactory());
        for (int at = 1; at < arguments.length; at++) {
            try {
                var connection = (HttpURLConnection) URI.create(arguments[at]).toURL().openConnection();
                var body = connection.getInputStream().readAllBytes();
                System.out.println(connection.getResponseCode() + " " + body.length);
            } catch (java.io.IOException error) {
                System.out.println("error " + error.getMessage());
            }
        }
    }
}
"#;
    let file = world.file("Fetch.java", program);
    let client = Client::new("java")
        .words("-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .words("-Dhttp.proxyHost=198.51.100.99 -Dhttp.proxyPort=3128")
        .words("-Dhttps.proxyHost=198.51.100.99 -Dhttps.proxyPort=3128")
        .arg(&file)
        .arg(world.path("ca.pem"))
        .args([url("http", "good.test"), url("https", "good.test")])
        .args([url("http", "evil.test"), url("https", "evil.test")]);

    let output = run(&world, &client).await;

    let text = output.succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    let expected = format!("200 {LENGTH}");
    assert_eq!(
        lines[..2],
        [expected.as_str(), expected.as_str()],
        "{}",
        output.story()
    );
    for refused in &lines[2..] {
        assert!(refused.contains("403"), "{}", output.story());
    }
    origins.saw_the_allowed_alone(&world).await;
}

async fn the_proxy_is_reached_by_ipv6_and_on_loopback() {
    let world = World::new().await;
    let good = world.https("good.test").await;
    let v6 = world.https("v6.test").await;
    for proxy in [
        "127.0.0.1:3128",
        "[::1]:3128",
        "[2001:db8:1::99]:3128",
        "192.0.2.2:3128",
        "10.66.0.9:3128",
    ] {
        for name in ["good.test", "v6.test"] {
            let client = plain_curl(&world)
                .arg("--proxy")
                .arg(format!("http://{proxy}"))
                .arg(format!("https://{name}/bytes/10"));
            world
                .exec()
                .allow(name)
                .arg("--internal")
                .arg("10.66.0.0/16")
                .args([
                    "--explicit-proxy",
                    "0.0.0.0:3128",
                    "--explicit-proxy",
                    "[::]:3128",
                ])
                .run(&client)
                .await
                .succeeded();
        }
    }
    assert_eq!(good.requests().await.len(), 5);
    assert_eq!(v6.requests().await.len(), 5);
}

async fn two_workloads_are_judged_each_by_its_own_policies_at_one_address() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let third = world.another_client("third", 4).await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "explicitProxy: {addresses: ['198.51.100.99:3128']}").await;
    let codes = async |workload, place| {
        let fetch = "curl --silent --max-time 30 --output /dev/null --write-out '%{http_code},' --proxy";
        let line = format!("{fetch} {PROXY} http://good.test/; {fetch} {PROXY} http://other.test/; true");
        daemon.run(workload, place, &shell(&line)).await.text()
    };

    assert_eq!(codes("a", &second).await, "200,403,");
    assert_eq!(codes("b", &third).await, "403,200,");

    let peers = [good.seen().await[0].peer.ip(), other.seen().await[0].peer.ip()];
    let expected = ["198.18.3.2", "198.18.4.2"].map(egress_tests::lab::ip);
    assert_eq!(peers, expected, "each from its own namespace");
    daemon
        .eventually("four records", async || daemon.log().len() == 4)
        .await;
    for record in daemon.log() {
        assert_eq!(record["original"], PROXY, "{record}");
        assert_eq!(
            record["address"].as_str(),
            (record["status"] == 200).then_some("named"),
            "{record}"
        );
    }
    daemon.stop().await.succeeded();
}

/// What one raw connection to the proxy brings.
async fn say(world: &World, script: &Script, rules: &str) -> (Outcome, Finished) {
    // The log is appended to, and there may be none yet.
    drop(std::fs::remove_file(world.path("access.log")));
    let output = world
        .exec()
        .policy(&format!(
            "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: test}}\nspec:\n  egress:\n{rules}"
        ))
        .arg("--explicit-proxy")
        .arg(PROXY)
        .log(Format::Json)
        .run(&raw(world, script))
        .await;
    (Outcome::single(&output.text()), output)
}

const GOOD: &str = "  - to: [{domain: good.test}]\n";
const GOOD_AND_OTHER: &str = "  - to: [{domain: good.test}, {domain: other.test}]\n";

fn to_proxy() -> Script {
    Script::to(address(PROXY))
}

fn connect(host: &str) -> Vec<u8> {
    format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

async fn the_origin_gets_a_request_for_itself_and_nothing_that_is_meant_for_the_proxy() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let script = to_proxy()
        .send(
            b"GET http://good.test/bytes/3?q=1 HTTP/1.1\r\nHost: good.test\r\nProxy-Connection: keep-alive\r\n\
              Proxy-Authorization: Basic c2VjcmV0\r\nX-Own: kept\r\n\r\n",
        )
        .read_until(b"\r\n\r\n")
        .step(egress_tests::raw_client::Step::ReadExact(3))
        .send(b"GET http://good.test/bytes/3 HTTP/1.0\r\n\r\n")
        .read_to_end();
    let (outcome, output) = say(&world, &script, GOOD).await;
    assert!(outcome.failure.is_none(), "{}", output.story());

    let requests = origin.requests().await;
    assert_eq!(requests.len(), 2, "{requests:#?}");
    for request in &requests {
        assert!(request.target.starts_with("/bytes/3"), "{request:?}");
        assert_eq!(request.host, "good.test");
        assert!(request.header("proxy-connection").is_empty(), "{request:?}");
        assert!(request.header("proxy-authorization").is_empty(), "{request:?}");
    }
    assert_eq!(requests[0].header("x-own"), ["kept"]);
    assert_eq!(requests[0].target, "/bytes/3?q=1");
}

async fn each_request_of_a_connection_is_judged() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let get = |host: &str| format!("GET http://{host}/bytes/1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let script = to_proxy().send(
        [
            get("good.test"),
            get("evil.test"),
            String::from_utf8(connect("evil.test:443")).expect("ASCII"),
            get("good.test").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"),
        ]
        .concat()
        .as_bytes(),
    );
    let (outcome, output) = say(&world, &script.read_to_end(), GOOD).await;
    let text = outcome.text();
    let answers: Vec<_> = text
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &text[at + 9..at + 12])
        .collect();
    assert_eq!(answers, ["200", "403", "403", "200"], "{}", output.story());
    let logged: Vec<_> = output
        .json_log()
        .iter()
        .map(|record| format!("{} {}", record["url"], record["status"]))
        .collect();
    assert_eq!(
        logged,
        [
            "\"http://good.test/bytes/1\" 200",
            "\"http://evil.test/bytes/1\" 403",
            "\"evil.test:443\" 403",
            "\"http://good.test/bytes/1\" 200",
        ]
    );
    assert_eq!(good.requests().await.len(), 2);
    evil.was_never_reached().await;
}

async fn a_tunnel_carries_no_other_name_than_its_own() {
    let world = World::new().await;
    let good = world.https("good.test").await;
    let other = world
        .raw("other.test", 443, |mut connection| async move {
            connection.read_some().await.map(drop)
        })
        .await;
    let script = to_proxy()
        .send(&connect("other.test:443"))
        .read_until(b"\r\n\r\n")
        .send(&Hello::new(Some("good.test")).bytes())
        .read_to_end();
    let (outcome, output) = say(&world, &script, GOOD_AND_OTHER).await;
    let received = outcome.bytes();
    assert!(
        received.starts_with(b"HTTP/1.1 200 Connection established\r\n\r\n"),
        "{}",
        output.story()
    );
    assert!(
        received.ends_with(&[21, 3, 3, 0, 2, 2, 49]),
        "access_denied: {}",
        output.story()
    );
    let record = &output.json_log()[0];
    assert_eq!(record["outcome"], "tunnel_mismatch", "{record}");
    assert_eq!(record["url"], "other.test:443", "{record}");
    assert_eq!(record["squid_result"], "TCP_DENIED", "{record}");
    good.was_never_reached().await;
    for seen in other.seen().await {
        assert_eq!(seen.received, 0, "not a byte of it: {seen:?}");
    }
}

async fn a_tunnel_without_a_server_name_is_refused() {
    let world = World::new().await;
    let good = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_some().await.map(drop)
        })
        .await;
    let script = to_proxy()
        .send(&connect("good.test:443"))
        .read_until(b"\r\n\r\n")
        .send(&Hello::new(None).bytes())
        .read_to_end();
    let (outcome, output) = say(&world, &script, GOOD).await;
    assert!(
        outcome.bytes().ends_with(&[21, 3, 3, 0, 2, 2, 109]),
        "missing_extension: {}",
        output.story()
    );
    assert_eq!(output.json_log()[0]["outcome"], "no_server_name");
    for seen in good.seen().await {
        assert_eq!(seen.received, 0, "not a byte of it: {seen:?}");
    }
}

async fn clear_requests_in_a_tunnel_are_judged_one_by_one() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let script = to_proxy()
        .send(&connect("good.test:80"))
        .read_until(b"\r\n\r\n")
        .send(
            b"GET /bytes/1 HTTP/1.1\r\nHost: good.test\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n\
              CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n",
        )
        .read_to_end();
    let (_outcome, output) = say(&world, &script, GOOD_AND_OTHER).await;
    let logged: Vec<_> = output
        .json_log()
        .iter()
        .map(|record| format!("{} {}", record["status"], record["outcome"]))
        .collect();
    assert_eq!(
        logged,
        [
            "200 \"allowed_by_rule\"",
            "403 \"tunnel_mismatch\"",
            "403 \"forbidden_method\""
        ],
        "{}",
        output.story()
    );
    assert_eq!(good.requests().await.len(), 1);
    other.was_never_reached().await;
}

async fn bytes_of_no_known_protocol_in_a_tunnel_are_reset() {
    let world = World::new().await;
    let good = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_some().await.map(drop)
        })
        .await;
    let script = to_proxy()
        .send(&connect("good.test:443"))
        .read_until(b"\r\n\r\n")
        .send(b"\x00\x01\x02 no protocol\r\n")
        .read_to_end();
    let (outcome, output) = say(&world, &script, GOOD).await;
    assert_eq!(outcome.error(), Some("ConnectionReset"), "{}", output.story());
    assert_eq!(output.json_log()[0]["outcome"], "unknown_protocol");
    for seen in good.seen().await {
        assert_eq!(seen.received, 0, "not a byte of it: {seen:?}");
    }
}

async fn a_server_that_speaks_first_is_reached_through_a_tunnel() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 2525, |mut connection| async move {
            connection.send(b"220 ready\r\n").await?;
            connection.read_exact(6).await?;
            connection.send(b"221 bye\r\n").await
        })
        .await;
    let script = to_proxy()
        .send(&connect("good.test:2525"))
        .read_until(b"220 ready\r\n")
        .send(b"QUIT\r\n")
        .read_until(b"221 bye\r\n");
    let rules = "  - to: [{domain: good.test}]\n    ports: [{port: 2525}]\n";
    let (outcome, output) = say(&world, &script, rules).await;
    assert!(outcome.failure.is_none(), "{}", output.story());
    let record = &output.json_log()[0];
    assert_eq!(record["url"], "good.test:2525", "{record}");
    assert_eq!(record["squid_result"], "TCP_TUNNEL", "{record}");
    assert_eq!(origin.seen().await.len(), 1);
}

async fn an_address_is_judged_as_an_address() {
    let world = World::new().await;
    let good = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_some().await?;
            connection.send(&[21]).await
        })
        .await;
    let tls = |target: &str, name| {
        to_proxy()
            .send(&connect(target))
            .read_until(b"\r\n\r\n")
            .send(&Hello::new(name).bytes())
            .step(egress_tests::raw_client::Step::ReadExact(1))
    };
    let by_address = "  - to: [{cidr: 198.51.100.10/32}, {cidr: '2001:db8:1::10/128'}]\n";
    for target in ["198.51.100.10:443", "[2001:db8:1::10]:443"] {
        let (outcome, output) = say(&world, &tls(target, None), by_address).await;
        assert!(outcome.failure.is_none(), "{}", output.story());
        let record = &output.json_log()[0];
        assert_eq!(record["outcome"], "allowed_by_rule", "{record}");
        assert_eq!(record["url"], target, "{record}");

        // No rule for the address; or none for the name behind it.
        let (outcome, output) = say(&world, &tls(target, None), GOOD).await;
        assert!(outcome.text().starts_with("HTTP/1.1 403 "), "{}", output.story());
        let (outcome, output) = say(&world, &tls(target, Some("good.test")), by_address).await;
        assert_eq!(output.json_log()[0]["outcome"], "no_rule", "{}", output.story());
        assert!(outcome.text().starts_with("HTTP/1.1 200 "), "{}", output.story());
    }
    let names: Vec<_> = good
        .seen()
        .await
        .into_iter()
        .filter(|seen| seen.received > 0)
        .collect();
    assert_eq!(names.len(), 2, "{names:#?}");
}

async fn what_is_no_request_to_a_proxy_is_refused() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    for (request, status, outcome) in [
        ("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", 400, "malformed_http"),
        (
            "GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
            400,
            "malformed_http",
        ),
        (
            "GET ftp://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
            400,
            "malformed_http",
        ),
        (
            "GET http://good.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
            400,
            "ambiguous_host",
        ),
        (
            "CONNECT good.test HTTP/1.1\r\nHost: good.test\r\n\r\n",
            400,
            "malformed_http",
        ),
        (
            "CONNECT good.test:443 HTTP/1.1\r\nHost: other.test\r\n\r\n",
            400,
            "ambiguous_host",
        ),
        (
            "CONNECT user@good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n",
            400,
            "ambiguous_host",
        ),
    ] {
        let script = to_proxy().send(request.as_bytes()).read_to_end();
        let (answer, output) = say(&world, &script, GOOD_AND_OTHER).await;
        assert!(
            answer.text().starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {}",
            output.story()
        );
        assert_eq!(
            output.json_log()[0]["outcome"],
            outcome,
            "{request}: {}",
            output.story()
        );
    }
    for (hello, outcome) in [
        (Hello::new(Some("good.test")).bytes(), "unknown_protocol"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "unknown_protocol"),
        (b"\x05\x01\x00".to_vec(), "unknown_protocol"),
    ] {
        let script = to_proxy().send(&hello).read_to_end();
        let (_answer, output) = say(&world, &script, GOOD).await;
        assert_eq!(output.json_log()[0]["outcome"], outcome, "{}", output.story());
    }
    good.was_never_reached().await;
}

async fn an_observed_workload_is_served_and_logged() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    for scheme in ["http", "https"] {
        for name in ["good.test", "evil.test"] {
            let client = plain_curl(&world)
                .arg("--proxy")
                .arg(format!("http://{PROXY}"))
                .arg(url(scheme, name));
            let output = world
                .exec()
                .allow("good.test")
                .args(["--audit", "--explicit-proxy", PROXY])
                .log(Format::Json)
                .run(&client)
                .await;
            is_the_payload(&output.succeeded().stdout);
            let record = &output.json_log()[0];
            assert_eq!(record["enforced"], false, "{record}");
            assert_eq!(record["would_deny"], name == "evil.test", "{record}");
            assert_eq!(record["host"], name, "{record}");
            std::fs::remove_file(world.path("access.log")).expect("a log");
        }
    }
    for origin in origins.good.iter().chain(&origins.evil) {
        assert_eq!(origin.requests().await.len(), 1);
    }
}

async fn nothing_listens_for_those_who_are_not_enforced() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let waits = shell("echo here; read line");
    let running = world
        .exec()
        .allow("good.test")
        .args(["--explicit-proxy", "0.0.0.0:3128"])
        .start(&waits);
    running.says("here").await;
    let before = listeners(&world.client).await;
    assert!(
        !format!("{before:?}").contains("3128"),
        "nobody has the port: {before:?}"
    );
    for proxy in ["127.0.0.1:3128", "192.0.2.2:3128"] {
        let client = plain_curl(&world)
            .arg("--proxy")
            .arg(proxy)
            .arg("http://good.test/");
        let output = world.directly(&client).await;
        assert_eq!(output.code(), 7, "it could not connect: {}", output.story());
    }
    good.was_never_reached().await;
    drop(running);
}

async fn without_the_option_there_is_no_proxy() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let client = curl(&world)
        .arg("--proxy")
        .arg("127.0.0.1:3128")
        .arg("http://good.test/");
    let output = world.exec().allow("good.test").run(&client).await;
    assert_eq!(output.code(), 7, "it could not connect: {}", output.story());
    good.was_never_reached().await;
}
