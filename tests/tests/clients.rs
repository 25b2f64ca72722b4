//! Clients that were not written for us work as they do without us, and say clearly when they are refused. None of them
//! is told of a proxy; variables that name one lead nowhere.

use egress_tests::{
    agent::{Finished, Format},
    bytes::{digest_of, digest_of_payload},
    clients::{Client, compile_static, curl, is_static, python},
    lab::World,
    origins::Origin,
    promises, squid_log,
};

promises![
    curl_works_and_is_refused,
    wget_works_and_is_refused,
    python_urllib_works_and_is_refused,
    node_fetch_works_and_is_refused,
    node_websocket_works,
    java_http_client_works_and_is_refused,
    a_static_program_is_judged_whatever_the_proxy_variables_say,
];

/// Bytes of the body that each client fetches.
const LENGTH: u64 = 300_000;

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
        }
        for origin in &self.evil {
            origin.was_never_reached().await;
        }
        assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
    }
}

async fn run(world: &World, client: &Client) -> Finished {
    // A proxy that nothing listens at: whoever believes in it gets nowhere.
    let client = client
        .clone()
        .env("no_proxy", "good.test,evil.test")
        .env("NO_PROXY", "good.test,evil.test");
    world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await
}

fn url(scheme: &str, name: &str) -> String {
    format!("{scheme}://{name}/bytes/{LENGTH}")
}

#[track_caller]
fn is_logged(output: &Finished, gist: &str) {
    let log = squid_log::combined(&output.log);
    assert!(
        log.iter().any(|line| line.gist() == gist),
        "no {gist} in {}",
        output.log
    );
}

#[track_caller]
fn is_the_payload(bytes: &[u8]) {
    assert_eq!(digest_of(bytes), digest_of_payload(LENGTH));
}

async fn curl_works_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    for scheme in ["http", "https"] {
        let output = run(&world, &curl(&world).arg(url(scheme, "good.test"))).await;
        is_the_payload(&output.succeeded().stdout);
    }
    let output = run(&world, &curl(&world).arg("--fail").arg(url("http", "evil.test"))).await;
    assert_eq!(output.code(), 22, "{}", output.story());
    let output = run(&world, &curl(&world).arg(url("https", "evil.test"))).await;
    assert_eq!(output.code(), 35, "{}", output.story());
    assert!(output.stderr.contains("access denied"), "{}", output.story());
    origins.saw_the_allowed_alone(&world).await;
}

async fn wget_works_and_is_refused() {
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
    let output = run(&world, &wget("http", "evil.test")).await;
    assert_eq!(output.code(), 8, "a server's error: {}", output.story());
    assert!(output.stderr.contains("403"), "{}", output.story());
    let output = run(&world, &wget("https", "evil.test")).await;
    assert!([4, 5].contains(&output.code()), "{}", output.story());
    is_logged(&output, "CONNECT evil.test:443 403 TCP_DENIED:HIER_NONE");
    origins.saw_the_allowed_alone(&world).await;
}

async fn python_urllib_works_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let program = r#"
import ssl, sys, urllib.error, urllib.request
try:
    context = ssl.create_default_context(cafile=sys.argv[1])
    with urllib.request.urlopen(sys.argv[2], timeout=20, context=context) as answer:
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
    };
    for scheme in ["http", "https"] {
        let output = run(&world, &fetch(scheme, "good.test")).await;
        is_the_payload(&output.succeeded().stdout);
    }
    run(&world, &fetch("http", "evil.test"))
        .await
        .printed("status 403 ERR_ACCESS_DENIED 0\n");
    let output = run(&world, &fetch("https", "evil.test")).await;
    assert!(
        output.text().to_lowercase().contains("access denied"),
        "{}",
        output.story()
    );
    origins.saw_the_allowed_alone(&world).await;
}

async fn node_fetch_works_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let program = r#"
fetch(process.argv[2]).then(async answer => {
    if (!answer.ok) { console.log("status", answer.status); return }
    process.stdout.write(Buffer.from(await answer.arrayBuffer()))
}).catch(error => console.log("error", error.cause?.code, error.cause?.message))
"#;
    let file = world.file("fetch.mjs", program);
    let fetch = |scheme, name| {
        Client::new("node")
            .arg(&file)
            .arg(url(scheme, name))
            .env("NODE_EXTRA_CA_CERTS", &world.path("ca.pem").to_string_lossy())
    };
    for scheme in ["http", "https"] {
        let output = run(&world, &fetch(scheme, "good.test")).await;
        is_the_payload(&output.succeeded().stdout);
    }
    run(&world, &fetch("http", "evil.test"))
        .await
        .printed("status 403\n");
    let output = run(&world, &fetch("https", "evil.test")).await;
    assert!(
        output.text().to_lowercase().contains("access denied"),
        "{}",
        output.story()
    );
    origins.saw_the_allowed_alone(&world).await;
}

async fn node_websocket_works() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let program = r#"
const socket = new WebSocket("ws://good.test/echo")
const big = "x".repeat(50000)
socket.onopen = () => { socket.send("first"); socket.send(big) }
let count = 0
socket.onmessage = event => {
    console.log(event.data === "first" || event.data === big ? "echoed" : "changed", event.data.length)
    if (++count === 2) socket.close(1000)
}
socket.onclose = event => console.log("closed", event.code)
socket.onerror = event => console.log("error", event.message)
"#;
    let file = world.file("socket.mjs", program);
    let client = Client::new("node").arg("--experimental-websocket").arg(&file);

    let output = run(&world, &client).await;

    output
        .succeeded()
        .printed("echoed 5\nechoed 50000\nclosed 1000\n");
    assert_eq!(origin.requests().await.len(), 1);
    is_logged(&output, "GET http://good.test/echo 101 TCP_TUNNEL:HIER_DIRECT");
}

async fn java_http_client_works_and_is_refused() {
    let world = World::new().await;
    let origins = Origins::start(&world).await;
    let program = r#"
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
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
        var client = HttpClient.newBuilder().sslContext(context).connectTimeout(Duration.ofSeconds(20)).build();
        for (int at = 1; at < arguments.length; at++) {
            try {
                var request = HttpRequest.newBuilder(URI.create(arguments[at])).build();
                var answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
                var digest = java.security.MessageDigest.getInstance("SHA-256").digest(answer.body());
                var what = answer.statusCode() == 200 ? answer.body().length + " " + hex(digest) : "";
                System.out.println(answer.statusCode() + " " + what);
            } catch (java.io.IOException error) {
                System.out.println("error " + error.getMessage());
            }
        }
    }

    static String hex(byte[] bytes) {
        var text = new StringBuilder();
        for (byte b : bytes) text.append(String.format("%02x", b));
        return text.toString();
    }
}
"#;
    let file = world.file("Fetch.java", program);
    // One start of the virtual machine for all: it takes longer than the rest of the test.
    let client = Client::new("java")
        .words("-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .arg(&file)
        .arg(world.path("ca.pem"))
        .args([url("http", "good.test"), url("https", "good.test")])
        .args([url("http", "evil.test"), url("https", "evil.test")]);

    let output = run(&world, &client).await;

    let text = output.succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    let expected = format!("200 {}", digest_of_payload(LENGTH));
    assert_eq!(
        lines[..3],
        [expected.as_str(), expected.as_str(), "403 "],
        "{}",
        output.story()
    );
    assert!(lines[3].contains("access_denied"), "{}", output.story());
    is_logged(&output, "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT");
    origins.saw_the_allowed_alone(&world).await;
}

/// A program without shared libraries: nothing can be preloaded into it, and it reads no variable.
const STATIC: &str = r#"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count != 4) return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, words[1], &to.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&to, sizeof to) != 0) { perror("connect"); return 1; }
    char buffer[65536];
    int length = snprintf(buffer, sizeof buffer, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n",
                          words[3], words[2]);
    if (write(s, buffer, length) != length) return 1;
    ssize_t got;
    while ((got = read(s, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, got) != got) return 1;
    return got == 0 ? 0 : 1;
}
"#;

async fn a_static_program_is_judged_whatever_the_proxy_variables_say() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let program = compile_static(&world, "static", STATIC).await;
    assert!(is_static(&program.program).await);
    let nonsense = [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ];
    let confused = nonsense.iter().fold(program.clone(), |client, name| {
        client.env(name, "http://127.0.0.1:9")
    });

    for client in [program, confused] {
        let allowed = client.clone().words("198.51.100.10 good.test /bytes/300000");
        let output = world.exec().allow("good.test").run(&allowed).await;
        let answer = &output.succeeded().stdout;
        let body = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map_or(0, |at| at + 4);
        is_the_payload(&answer[body..]);

        let denied = client.words("198.51.100.66 evil.test /");
        let output = world.exec().allow("good.test").run(&denied).await;
        assert!(
            output.succeeded().text().starts_with("HTTP/1.1 403 "),
            "{}",
            output.story()
        );
    }
    assert_eq!(good.requests().await.len(), 2);
    evil.was_never_reached().await;
}
