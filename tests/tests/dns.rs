//! Name service: an enforced workload's queries go to the agent, whoever they are meant for, and the agent asks its own
//! name servers for what a policy could allow.

use egress_tests::{
    agent::Finished,
    clients::{Client, compile_with, python},
    daemon::Daemon,
    dns::{Answer, DnsServer, Question},
    lab::{AGENT_DNS, CLIENT_V4, World, address, ip},
    patience::seconds,
    promises,
    require::Need,
};
use hickory_proto::rr::{
    RData,
    rdata::{
        HTTPS, SVCB,
        svcb::{Alpn, EchConfigList, SvcParamKey, SvcParamValue},
    },
};
use nix::sys::signal::Signal;
use serde_json::Value;

promises![
    a_lookup_is_answered_by_a_server_that_the_agent_trusts,
    a_denied_name_does_not_exist_and_nobody_is_asked_for_it,
    nothing_but_an_allowed_name_leaves_by_dns,
    a_client_sees_the_resolver_that_it_asked,
    a_client_on_ipv6_sees_the_resolver_that_it_asked: [Need::Ipv6],
    a_resolver_on_loopback_is_no_way_around,
    dns_over_tcp_is_judged_too,
    a_large_answer_comes_by_tcp,
    ech_keys_do_not_reach_the_workload,
    a_public_name_with_a_private_address_has_none,
    a_foreign_search_domain_costs_musl_nothing,
    a_foreign_search_domain_costs_glibc_nothing,
    resolvers_of_java_node_and_python_work,
    a_workload_that_is_only_observed_asks_whom_it_wants,
    the_first_query_of_a_new_namespace_is_answered,
    queries_are_logged_and_counted,
    a_killed_agent_answers_nobody_and_lets_nothing_out,
    a_query_that_is_under_way_at_a_hand_over_is_answered,
    each_workload_is_answered_by_its_own_policy,
];

/// What the programs below share.
const PRELUDE: &str = r#"
import json, os, socket, struct, sys, time
socket.setdefaulttimeout(20)

def query(name, kind=1, ident=None, options=b""):
    ident = os.urandom(2) if ident is None else ident
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".") if l)
    opt = b"\0" + struct.pack(">HHIH", 41, 1232, 0, len(options)) + options
    return ident + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 1) + labels + b"\0" + struct.pack(">HH", kind, 1) + opt

def rcode(reply):
    return reply[3] & 15

def tell(**facts):
    print(json.dumps(facts))
"#;

fn program(world: &World, text: &str) -> Client {
    python(world, "program", &format!("{PRELUDE}\n{text}"))
}

#[track_caller]
fn told(output: &Finished) -> Value {
    serde_json::from_str(&output.succeeded().text()).unwrap_or(Value::Null)
}

fn dig(words: &str) -> Client {
    Client::new("dig").words("+tries=1 +time=4").words(words)
}

async fn exec(world: &World, client: &Client) -> Finished {
    world.exec().allow("good.test").run(client).await
}

/// The server of the workload's own resolv.conf, which the agent does not trust.
const FOREIGN: &str = "198.51.100.54";

async fn a_lookup_is_answered_by_a_server_that_the_agent_trusts() {
    let world = World::new().await;

    let output = exec(&world, &Client::new("getent").words("ahosts good.test")).await;

    let text = output.succeeded().text();
    assert!(
        text.contains("198.51.100.10") && text.contains("2001:db8:1::10"),
        "{text}"
    );
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
    assert!(world.workload_dns.questions().is_empty());
    let near: Vec<_> = world
        .agent_dns
        .questions()
        .iter()
        .map(|question| question.from.ip())
        .collect();
    assert!(near.iter().all(|from| *from == ip(CLIENT_V4)), "{near:?}");
}

async fn a_denied_name_does_not_exist_and_nobody_is_asked_for_it() {
    let world = World::new().await;

    let output = exec(&world, &dig("other.test A")).await;
    let text = output.succeeded().text();
    assert!(text.contains("status: NXDOMAIN"), "{text}");
    assert!(text.contains("EDE: 15 (Blocked)"), "{text}");
    let output = exec(&world, &Client::new("getent").words("hosts other.test")).await;
    assert_eq!(output.code(), 2, "not found: {}", output.story());
    assert!(output.took < seconds(5), "{:?}", output.took);

    assert!(world.agent_dns.questions().is_empty());
    assert!(world.workload_dns.questions().is_empty());
}

async fn nothing_but_an_allowed_name_leaves_by_dns() {
    let world = World::new().await;
    let evil = DnsServer::start(&world.origins, address("203.0.113.66:53"), world.zone.clone()).await;
    let client = program(
        &world,
        r#"
codes = []
for server in ["203.0.113.66", "198.51.100.54", "198.51.100.53"]:
    for name in ["c2VjcmV0.evil.test", "c2VjcmV0.good.test", "GoOd.TeSt"]:
        for kind in [1, 16, 28, 65, 255, 252]:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.connect((server, 53))
            option = struct.pack(">HH", 65001, 8) + b"c2VjcmV0"
            s.send(query(name, kind, options=option) + b"c2VjcmV0" * (kind == 28))
            codes.append(rcode(s.recv(4096)))
tell(codes=sorted(set(codes)))"#,
    );

    let output = exec(&world, &client).await;

    let codes = told(&output);
    assert!(
        codes["codes"]
            .as_array()
            .is_some_and(|codes| codes.contains(&3.into())),
        "{codes}"
    );
    assert!(evil.questions().is_empty(), "{:?}", evil.questions());
    assert!(world.workload_dns.questions().is_empty());
    let asked = world.agent_dns.questions();
    assert!(!asked.is_empty(), "the allowed name is looked up");
    for Question { name, message, .. } in &asked {
        assert_eq!(name, "good.test");
        let raw = String::from_utf8_lossy(message).into_owned();
        assert!(!raw.contains("c2VjcmV0") && !raw.contains("GoOd"), "{raw:?}");
    }
}

async fn a_client_sees_the_resolver_that_it_asked() {
    let world = World::new().await;
    let client = program(
        &world,
        r#"
asked = ["198.51.100.54", "203.0.113.9", "192.0.2.1"]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
idents = {}
for number, server in enumerate(asked):
    ident = bytes([number, 7])
    idents[ident] = server
    s.sendto(query("good.test", ident=ident), (server, 53))
seen = []
for _ in asked:
    reply, source = s.recvfrom(4096)
    seen.append([idents[reply[:2]], source[0], source[1]])
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.connect(("203.0.113.9", 53))
c.send(query("good.test"))
reply, source = c.recvfrom(4096)
tell(seen=sorted(seen), peer=c.getpeername(), source=source, own=c.getsockname()[0], code=rcode(reply))"#,
    );

    let output = exec(&world, &client).await;

    let told = told(&output);
    for server in ["198.51.100.54", "203.0.113.9", "192.0.2.1"] {
        let expected = serde_json::json!([server, server, 53]);
        assert!(
            told["seen"]
                .as_array()
                .is_some_and(|seen| seen.contains(&expected)),
            "{told}"
        );
    }
    let resolver = serde_json::json!(["203.0.113.9", 53]);
    assert_eq!((&told["peer"], &told["source"]), (&resolver, &resolver));
    assert_eq!(told["own"], CLIENT_V4);
    assert_eq!(told["code"], 0);
    assert!(world.workload_dns.questions().is_empty());
}

async fn a_client_on_ipv6_sees_the_resolver_that_it_asked() {
    let world = World::new().await;
    let client = program(
        &world,
        r#"
asked = ["2001:db8:1::53", "::ffff:198.51.100.54", "2001:db8:1::99"]
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
idents = {}
for number, server in enumerate(asked):
    ident = bytes([number, 7])
    idents[ident] = server
    s.sendto(query("good.test", ident=ident), (server, 53))
seen = []
for _ in asked:
    reply, source = s.recvfrom(4096)
    seen.append([idents[reply[:2]], source[0], source[1]])
peers = []
for server in asked:
    c = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    c.connect((server, 53))
    c.send(query("good.test"))
    reply, source = c.recvfrom(4096)
    peers.append([server, c.getpeername()[0], source[0]])
tell(seen=seen, peers=peers)"#,
    );

    let output = exec(&world, &client).await;

    let told = told(&output);
    for kind in ["seen", "peers"] {
        let rows = told[kind].as_array().cloned().unwrap_or_default();
        assert_eq!(rows.len(), 3, "{told}");
        for row in rows {
            assert_eq!(row[0], row[1], "{kind}: {told}");
        }
    }
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

async fn a_resolver_on_loopback_is_no_way_around() {
    let world = World::new().await;
    world.client.ip("addr add 169.254.20.10/32 dev lo").await;
    let local = DnsServer::start(&world.client, address("127.0.0.53:53"), world.zone.clone()).await;
    let cache = DnsServer::start(&world.client, address("169.254.20.10:53"), world.zone.clone()).await;

    for server in ["127.0.0.53", "169.254.20.10"] {
        for way in ["", "+tcp"] {
            let denied = exec(&world, &dig(&format!("{way} @{server} other.test"))).await;
            assert!(
                denied.succeeded().text().contains("status: NXDOMAIN"),
                "{}",
                denied.story()
            );
            let allowed = exec(&world, &dig(&format!("{way} @{server} +short good.test"))).await;
            allowed.succeeded().printed("198.51.100.10\n");
        }
    }

    assert!(local.questions().is_empty() && cache.questions().is_empty());
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

async fn dns_over_tcp_is_judged_too() {
    let world = World::new().await;
    let allowed = exec(&world, &dig("+tcp +short good.test AAAA")).await;
    allowed.succeeded().printed("2001:db8:1::10\n");
    let denied = exec(&world, &dig("+tcp other.test")).await;
    let text = denied.succeeded().text();
    assert!(text.contains("NXDOMAIN") && text.contains("EDE: 15"), "{text}");
    assert!(text.contains(&format!("SERVER: {FOREIGN}#53")), "{text}");

    // Several questions in one piece, the second of them in two, and an end without goodbye.
    let client = program(
        &world,
        r#"
s = socket.create_connection(("198.51.100.54", 53))
messages = [query("good.test", ident=bytes([0, n])) for n in range(5)] + [query("other.test", ident=b"\0\5")]
data = b"".join(struct.pack(">H", len(m)) + m for m in messages)
s.sendall(data[:70]); time.sleep(0.1); s.sendall(data[70:])
s.shutdown(socket.SHUT_WR)
data = b""
while part := s.recv(65536):
    data += part
codes = {}
while data:
    length = struct.unpack(">H", data[:2])[0]
    reply, data = data[2:2 + length], data[2 + length:]
    codes[reply[1]] = rcode(reply)
tell(codes=codes, peer=s.family == socket.AF_INET)"#,
    );
    let output = exec(&world, &client).await;
    let expected = serde_json::json!({"0": 0, "1": 0, "2": 0, "3": 0, "4": 0, "5": 3});
    assert_eq!(told(&output)["codes"], expected);

    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
    assert!(world.workload_dns.questions().is_empty());
}

async fn a_large_answer_comes_by_tcp() {
    let world = World::new().await;
    let addresses = (1..=200)
        .map(|number| ip(&format!("198.51.100.{number}")))
        .collect();
    world.zone.set("good.test", Answer::Addresses(addresses));

    let small = exec(&world, &dig("+noedns +ignore good.test")).await;
    let text = small.succeeded().text();
    assert!(text.contains("flags: qr tc"), "{text}");
    let whole = exec(&world, &dig("+short good.test")).await;
    assert_eq!(whole.succeeded().text().lines().count(), 200);
}

async fn ech_keys_do_not_reach_the_workload() {
    let world = World::new().await;
    let keys = EchConfigList(b"the keys of the hidden name".to_vec());
    let service = SVCB::new(
        1,
        hickory_proto::rr::Name::root(),
        vec![
            (
                SvcParamKey::Alpn,
                SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()])),
            ),
            (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(keys)),
        ],
    );
    world
        .zone
        .set("good.test", Answer::Records(vec![RData::HTTPS(HTTPS(service))]));

    let directly = world
        .directly(&dig(&format!(
            "@{} +short good.test HTTPS",
            AGENT_DNS.trim_end_matches(":53")
        )))
        .await;
    assert!(
        directly.succeeded().text().contains("ech="),
        "{}",
        directly.story()
    );
    let output = exec(&world, &dig("good.test HTTPS")).await;
    let text = output.succeeded().text();
    assert!(text.contains("alpn=\"h2\"") && !text.contains("ech"), "{text}");
}

async fn a_public_name_with_a_private_address_has_none() {
    let world = World::new().await;
    let addresses = ["127.0.0.1", "169.254.169.254", "10.66.0.1"].map(ip);
    world.zone.set("good.test", Answer::Addresses(addresses.to_vec()));

    let output = exec(&world, &dig("good.test")).await;
    let text = output.succeeded().text();
    assert!(
        text.contains("status: NOERROR") && text.contains("ANSWER: 0"),
        "{text}"
    );
    let inside = world
        .exec()
        .allow("good.test")
        .arg("--internal")
        .arg("10.66.0.0/16")
        .run(&dig("+short good.test"))
        .await;
    inside.succeeded().printed("10.66.0.1\n");
}

/// Looks a name up as programs do, and tells how many addresses it has.
const RESOLVE: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *found = 0;
    int count = 0, status;
    (void)argc;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    status = getaddrinfo(argv[1], 0, &hints, &found);
    for (struct addrinfo *at = found; at; at = at->ai_next) count++;
    printf("%d %d\n", status, count);
    return 0;
}
"#;

/// With `ndots:5` the search domains come first; a refused one must not keep the name itself from being asked for.
async fn a_foreign_search_domain_costs_nothing(world: &World, client: &Client) {
    let resolv = world.file(
        "resolv.search",
        "nameserver 198.51.100.54\nnameserver 203.0.113.9\nsearch team.svc.cluster.local foreign.test example.org\noptions ndots:5\n",
    );
    world.client.cover(&resolv, "/etc/resolv.conf").await;

    let output = exec(world, &client.clone().arg("good.test")).await;
    output.succeeded().printed("0 2\n");
    assert!(output.took < seconds(4), "{:?}", output.took);
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);

    let output = exec(world, &client.clone().arg("other.test")).await;
    assert!(output.succeeded().text().starts_with('-'), "{}", output.story());
    assert!(output.took < seconds(4), "{:?}", output.took);
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
    assert!(world.workload_dns.questions().is_empty());
}

async fn a_foreign_search_domain_costs_musl_nothing() {
    let world = World::new().await;
    let client = compile_with(&world, "musl-gcc", "resolve", RESOLVE).await;
    a_foreign_search_domain_costs_nothing(&world, &client).await;
}

async fn a_foreign_search_domain_costs_glibc_nothing() {
    let world = World::new().await;
    let client = program(
        &world,
        r#"
try:
    print(0, len(socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)))
except socket.gaierror as error:
    print(error.errno, 0)"#,
    );
    a_foreign_search_domain_costs_nothing(&world, &client).await;
}

async fn resolvers_of_java_node_and_python_work() {
    let world = World::new().await;
    let node = world.file(
        "resolve.js",
        "const dns = require('dns').promises;\n\
         dns.resolve4('good.test').then(async found => {\n\
           const error = await dns.resolve4('other.test').catch(error => error.code);\n\
           console.log(found.join(), error);\n\
         });\n",
    );
    let output = exec(&world, &Client::new("node").arg(node)).await;
    output.succeeded().printed("198.51.100.10 ENOTFOUND\n");

    let java = world.file(
        "Resolve.java",
        "import java.net.*;\n\
         public class Resolve {\n\
           public static void main(String[] names) throws Exception {\n\
             System.out.print(InetAddress.getByName(\"good.test\").getHostAddress());\n\
             try { InetAddress.getByName(\"other.test\"); System.out.println(\" found\"); }\n\
             catch (UnknownHostException error) { System.out.println(\" unknown\"); }\n\
           }\n\
         }\n",
    );
    let output = exec(
        &world,
        &Client::new("java")
            .arg("-Djava.net.preferIPv4Stack=true")
            .arg(java),
    )
    .await;
    output.succeeded().printed("198.51.100.10 unknown\n");
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
    assert!(world.workload_dns.questions().is_empty());
}

async fn a_workload_that_is_only_observed_asks_whom_it_wants() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let log = world.path("dns.json");
    let more = format!("dns: {{log: {{target: {}, level: all}}}}", log.display());
    let daemon = Daemon::start(&world, &more).await;
    std::fs::remove_file(world.path("policies/b.yaml")).expect("the file is there");
    daemon
        .eventually("the policy is gone", async || {
            daemon
                .status()
                .await
                .is_some_and(|status| status["policies"] == 1)
        })
        .await;

    for way in ["", "+tcp"] {
        let output = daemon
            .run("b", &second, &dig(&format!("{way} +short evil.test A")))
            .await;
        output.succeeded().printed("198.51.100.66\n");
    }
    let options = program(
        &world,
        r#"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("198.51.100.54", 53))
s.send(query("GoOd.test", options=struct.pack(">HH", 65001, 4) + b"more"))
print(rcode(s.recv(4096)))"#,
    );
    daemon
        .run("b", &second, &options)
        .await
        .succeeded()
        .printed("0\n");

    let asked = world.workload_dns.questions();
    let names: Vec<_> = asked.iter().map(|question| question.name.as_str()).collect();
    assert_eq!(names, ["evil.test", "evil.test", "good.test"]);
    let last = String::from_utf8_lossy(&asked[2].message).into_owned();
    assert!(
        last.contains("GoOd") && last.contains("more"),
        "byte for byte: {last:?}"
    );
    assert!(
        asked
            .iter()
            .all(|question| question.from.ip() == ip("198.18.3.2"))
    );
    assert!(world.agent_dns.questions().is_empty());
    world.appears(&log, "\"outcome\":\"unselected\"").await;
}

async fn the_first_query_of_a_new_namespace_is_answered() {
    let world = World::new().await;
    let daemon = Daemon::start(&world, "").await;
    let resolver = compile_with(&world, "musl-gcc", "resolve", RESOLVE)
        .await
        .arg("good.test");
    for (number, client) in [
        dig("+short good.test"),
        resolver,
        program(
            &world,
            r#"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(query("good.test"), ("198.51.100.54", 53))
reply, source = s.recvfrom(4096)
assert source == ("198.51.100.54", 53), source
print("answered", rcode(reply))"#,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let place = world
            .another_client(
                ["one", "two", "three"][number],
                u8::try_from(number).unwrap_or(0) + 3,
            )
            .await;
        let output = daemon.run("a", &place, &client).await;
        let expected = ["198.51.100.10\n", "0 2\n", "answered 0\n"];
        output.succeeded().printed(expected[number]);
        assert!(output.took < seconds(2), "{:?}: {}", output.took, output.story());
    }
    assert!(world.workload_dns.questions().is_empty());
}

async fn queries_are_logged_and_counted() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let log = world.path("dns.json");
    let more = format!("dns: {{log: {{target: {}, level: all}}}}", log.display());
    let daemon = Daemon::start(&world, &more).await;

    daemon.run("a", &second, &dig("good.test")).await.succeeded();
    daemon
        .run("a", &second, &dig("+tcp Other.test TXT"))
        .await
        .succeeded();
    daemon
        .eventually("two queries are counted", async || {
            let dns = daemon.status().await.unwrap_or_default()["dns"].clone();
            dns["queries"] == 2 && dns["denied"] == 1 && dns["logged"] == 2 && dns["names"] == 1
        })
        .await;

    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let entries: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_default())
        .collect();
    let fact = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(entries.len(), 2, "{text}");
    let (allowed, denied) = (&entries[0], &entries[1]);
    assert_eq!(allowed["answers"], serde_json::json!(["198.51.100.10"]), "{text}");
    for (key, first, second) in [
        ("namespace", "team-a", "team-a"),
        ("workload", "one", "one"),
        ("transport", "udp", "tcp"),
        ("resolver", "198.51.100.54:53", "198.51.100.54:53"),
        ("name", "good.test.", "Other.test."),
        ("type", "A", "TXT"),
        ("outcome", "allowed_by_rule", "no_rule"),
        ("rule", "EgressPolicy team-a/a egress[0]", ""),
        ("rcode", "NOERROR", "NXDOMAIN"),
    ] {
        assert_eq!(
            (fact(allowed, key), fact(denied, key)),
            (first.to_owned(), second.to_owned()),
            "{key}: {text}"
        );
    }
}

async fn a_killed_agent_answers_nobody_and_lets_nothing_out() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let daemon = Daemon::start(&world, "").await;
    daemon
        .run("a", &second, &dig("+short good.test"))
        .await
        .succeeded()
        .printed("198.51.100.10\n");
    let before = world.agent_dns.questions().len();

    daemon.running.signal(Signal::SIGKILL);
    let (tree, running) = (daemon.tree.join("a"), daemon.running);
    running.finish().await;
    let client = program(
        &world,
        r#"
answers = []
for kind, server in [(socket.SOCK_DGRAM, "198.51.100.54"), (socket.SOCK_STREAM, "198.51.100.53")]:
    begun = time.monotonic()
    try:
        s = socket.socket(socket.AF_INET, kind)
        s.connect((server, 53))
        s.send(query("good.test"))
        answers.append(["answered", s.recv(4096).hex()])
    except OSError as error:
        answers.append([type(error).__name__, time.monotonic() - begun])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
try:
    s.sendto(query("good.test"), ("198.51.100.54", 53))
    answers.append(["answered", s.recv(4096).hex()])
except OSError as error:
    answers.append(["lost", 0])
tell(answers=answers)"#,
    );
    let output = world.start_in(&second, &tree, &client).finish().await;

    let told = told(&output);
    for (number, expected) in ["ConnectionRefusedError", "ConnectionRefusedError", "lost"]
        .into_iter()
        .enumerate()
    {
        let answer = &told["answers"][number];
        assert_eq!(answer[0], expected, "{told}");
        let took = answer[1].as_f64().expect("seconds");
        assert!(took < seconds(1).as_secs_f64(), "{told}");
    }
    assert_eq!(world.agent_dns.questions().len(), before);
    assert!(world.workload_dns.questions().is_empty());
}

async fn a_query_that_is_under_way_at_a_hand_over_is_answered() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let daemon = Daemon::start(&world, "").await;
    world.zone.set("good.test", Answer::Silence);
    // Asked once: glibc would ask again after five seconds.
    let client = program(
        &world,
        r#"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("198.51.100.54", 53))
s.send(query("good.test"))
print(rcode(s.recv(4096)))"#,
    );
    let asking = world.start_in(&second, &daemon.tree.join("a"), &client);
    daemon
        .eventually("the server was asked", async || {
            !world.agent_dns.questions().is_empty()
        })
        .await;

    let (daemon, old) = daemon.succeed(&["--take-over"]).await;

    // SERVFAIL, when the server's time is over.
    asking.finish().await.succeeded().printed("2\n");
    old.finish().await.succeeded();
    daemon.stop().await.succeeded();
}

async fn each_workload_is_answered_by_its_own_policy() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    for (workload, name, expected) in [
        ("a", "good.test", "198.51.100.10\n"),
        ("a", "other.test", ""),
        ("b", "good.test", ""),
        ("b", "other.test", "198.51.100.20\n"),
    ] {
        let output = daemon
            .run(workload, &second, &dig(&format!("+short {name}")))
            .await;
        output.succeeded().printed(expected);
    }
    let page = Client::new("curl")
        .words("--silent --show-error --ipv4 --output /dev/null --write-out %{http_code} http://good.test/");
    daemon.run("a", &second, &page).await.succeeded().printed("200");
    let unknown = daemon.run("b", &second, &page).await;
    assert_eq!(unknown.code(), 6, "could not resolve host: {}", unknown.story());
}
