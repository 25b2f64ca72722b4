//! What needs no name: everything that no rule allows is refused in the system call, what a block allows goes straight to
//! its address, and both are logged.

use std::{fmt::Write as _, fs, time::Duration};

use egress_tests::{
    agent::{Format, Running},
    clients::{Client, python},
    daemon::{Daemon, policy},
    lab::{CLIENT_V4, World, traces::entries_of},
    promises,
};
use serde_json::{Value, json};

promises![
    what_no_rule_allows_fails_in_the_call_and_reaches_nobody,
    an_allowed_block_is_reached_directly_and_logged_with_its_bytes,
    an_exception_of_a_block_is_refused,
    datagrams_to_an_allowed_block_pass_both_ways,
    many_refusals_are_few_lines_with_their_number,
    audit_lets_every_port_pass_and_says_what_would_have_been,
    an_open_direct_connection_lives_on_as_long_as_a_rule_allows_it,
    an_open_direct_connection_ends_when_its_rule_goes,
    an_open_direct_connection_whose_port_also_listens_ends_too,
    a_connection_from_before_the_enforcement_is_closed_and_an_accepted_one_lives,
    direct_connections_are_judged_and_logged_while_no_agent_lives,
    policies_that_do_not_fit_yet_are_in_force_once_there_is_room,
];

const BLOCK: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: block}\nspec:\n  egress:\n  \
     - to: [{cidr: 198.51.100.0/24, except: [198.51.100.20/32]}, {cidr: \"2001:db8:1::10/128\"}]\n    \
     ports: [{port: 5432}, {port: 5353, protocol: UDP}]\n";

/// Tries each of `attempts`, expressions that use `tcp(host, port)`, `udp(host, port)` and `sent(host, port)`, and prints
/// a line for each: what came of it, or the errno's name.
fn tries(world: &World, attempts: &[&str]) -> Client {
    let program = format!(
        r#"
import errno, socket
def kind(host): return socket.AF_INET6 if ":" in host else socket.AF_INET
def tcp(host, port):
    with socket.create_connection((host, port), 5) as s:
        s.sendall(b"x" * 1000)
        got = 0
        while data := s.recv(65536): got += len(data)
        return got
def udp(host, port):
    with socket.socket(kind(host), socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, port))
        s.send(b"y" * 300)
        return len(s.recv(65536))
def sent(host, port):
    with socket.socket(kind(host), socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.sendto(b"y" * 300, (host, port))
        return len(s.recv(65536))
def raw(host, kind, protocol):
    with socket.socket(socket.AF_INET, kind, protocol) as s:
        return s.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (host, 0))
for attempt in {attempts:?}:
    try: print(eval(attempt))
    except TimeoutError: print("timeout")
    except OSError as e: print(errno.errorcode.get(e.errno, e))
"#
    );
    python(world, "tries", &program)
}

/// A UDP server on every address of the origins' that sends back what it gets.
async fn echo(world: &World, port: u16) -> Running<'_> {
    let program = format!(
        r#"
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.setsockopt(socket.IPPROTO_IPV6, 49, 1)
s.bind(("::", {port}))
print("ready", flush=True)
while True:
    data, ancillary, _, peer = s.recvmsg(65536, 256)
    # From the address that was asked.
    s.sendmsg([data], ancillary, 0, peer)
    print("seen", len(data), flush=True)
"#
    );
    let place = world.cgroup.child("echo");
    let running = world.start_in(&world.origins, &place, &python(world, "echo", &program));
    running.says("ready").await;
    running
}

fn of<'a>(log: &'a [Value], field: &str) -> Vec<&'a Value> {
    log.iter().map(|record| &record[field]).collect()
}

async fn what_no_rule_allows_fails_in_the_call_and_reaches_nobody() {
    let world = World::new().await;
    let origin = world
        .raw("evil.test", 22, async |mut connection| {
            connection.send(b"SSH-2.0-evil\r\n").await
        })
        .await;
    let echo = echo(&world, 443).await;
    let attempts = [
        "tcp('198.51.100.66', 22)",
        "tcp('2001:db8:1::66', 22)",
        "tcp('::ffff:198.51.100.66', 22)",
        "udp('198.51.100.66', 443)",
        "sent('198.51.100.66', 443)",
        "sent('2001:db8:1::66', 443)",
        "sent('::ffff:198.51.100.66', 443)",
        "raw('198.51.100.66', socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    ];
    let output = world
        .exec()
        .allow("good.test")
        .arg("--keep-privileges")
        .log(Format::Json)
        .run(&tries(&world, &attempts))
        .await;

    assert_eq!(output.succeeded().text(), "EPERM\n".repeat(attempts.len()));
    origin.was_never_reached().await;
    assert!(!echo.stdout().contains("seen"), "{}", echo.stdout());
    let log = output.json_log();
    assert!(log.iter().all(|record| record["ending"] == "refused"), "{log:#?}");
    let denied = |code: &str| -> u64 {
        let of_code = log.iter().filter(|record| record["squid_result"] == code);
        of_code
            .map(|record| record["attempts"].as_u64().unwrap_or(1))
            .sum()
    };
    assert_eq!(denied("TCP_DENIED"), 3, "{log:#?}");
    assert_eq!(denied("UDP_DENIED"), 4, "{log:#?}");
    assert_eq!(denied("NONE_DENIED"), 1, "{log:#?}");
    assert!(
        log.iter().all(|record| record["command"] == "python3"),
        "{log:#?}"
    );
    let tcp = log.iter().find(|record| record["squid_result"] == "TCP_DENIED");
    assert_eq!(
        tcp.map(|record| &record["outcome"]),
        Some(&Value::from("no_rule"))
    );
}

async fn an_allowed_block_is_reached_directly_and_logged_with_its_bytes() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 5432, async |mut connection| {
            connection.read_exact(1000).await?;
            connection.send(&[7; 2000]).await
        })
        .await;
    let attempts = ["tcp('198.51.100.10', 5432)", "tcp('2001:db8:1::10', 5432)"];
    let output = world
        .exec()
        .policy(BLOCK)
        .log(Format::Json)
        .run(&tries(&world, &attempts))
        .await;

    assert_eq!(output.succeeded().text(), "2000\n2000\n");
    let seen = origin.seen().await;
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].peer.ip().to_string(), CLIENT_V4);
    let log = output.json_log();
    assert_eq!(
        of(&log, "outcome"),
        ["allowed_by_rule", "allowed_by_rule"],
        "{log:#?}"
    );
    for record in &log {
        assert_eq!(record["rule"], "EgressPolicy default/block egress[0]", "{record}");
        assert_eq!(record["squid_result"], "TCP_TUNNEL", "{record}");
        assert_eq!(record["upstream"], record["original"], "{record}");
        assert_eq!(record["ending"], "complete", "{record}");
        let bytes = |field: &str| record[field].as_u64().unwrap_or_default();
        // The FIN may count.
        assert!((1000..=1001).contains(&bytes("bytes_to_origin")), "{record}");
        assert!((2000..=2001).contains(&bytes("bytes_to_client")), "{record}");
    }
}

async fn an_exception_of_a_block_is_refused() {
    let world = World::new().await;
    let origin = world
        .raw("other.test", 5432, async |connection| connection.stall().await)
        .await;
    let attempts = [
        "tcp('198.51.100.20', 5432)",
        "udp('198.51.100.20', 5353)",
        "tcp('198.51.100.10', 5433)",
        "udp('198.51.100.10', 5432)",
    ];
    let output = world
        .exec()
        .policy(BLOCK)
        .log(Format::Json)
        .run(&tries(&world, &attempts))
        .await;

    assert_eq!(output.succeeded().text(), "EPERM\n".repeat(attempts.len()));
    origin.was_never_reached().await;
    let log = output.json_log();
    assert_eq!(of(&log, "outcome"), ["no_rule"; 4], "{log:#?}");
}

async fn datagrams_to_an_allowed_block_pass_both_ways() {
    let world = World::new().await;
    let echo = echo(&world, 5353).await;
    let attempts = [
        "udp('198.51.100.10', 5353)",
        "sent('198.51.100.10', 5353)",
        "sent('2001:db8:1::10', 5353)",
    ];
    let output = world
        .exec()
        .policy(BLOCK)
        .log(Format::Json)
        .run(&tries(&world, &attempts))
        .await;

    assert_eq!(output.succeeded().text(), "300\n300\n300\n", "{}", output.story());
    echo.says("seen 300").await;
    let log = output.json_log();
    assert_eq!(of(&log, "squid_result"), ["UDP_TUNNEL"; 3], "{log:#?}");
    assert_eq!(of(&log, "outcome"), ["allowed_by_rule"; 3], "{log:#?}");
    // A connected socket has an account.
    let counted = log.iter().find(|record| record["bytes_to_origin"] == 300);
    assert_eq!(
        counted.map(|record| &record["bytes_to_client"]),
        Some(&Value::from(300)),
        "{log:#?}"
    );
}

async fn many_refusals_are_few_lines_with_their_number() {
    let world = World::new().await;
    let program = "
import socket
refused = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for _ in range(5000):
        try: s.sendto(b'x', ('198.51.100.66', 4444))
        except PermissionError: refused += 1
print(refused)
";
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Json)
        .run(&python(&world, "many", program))
        .await;

    assert_eq!(output.succeeded().text(), "5000\n");
    let log = output.json_log();
    assert!(log.len() <= 5, "{} lines", log.len());
    let attempts = log.iter().map(|record| record["attempts"].as_u64().unwrap_or(1));
    assert_eq!(attempts.sum::<u64>(), 5000, "{log:#?}");
}

async fn audit_lets_every_port_pass_and_says_what_would_have_been() {
    let world = World::new().await;
    let origin = world
        .raw("evil.test", 22, async |mut connection| {
            connection.read_exact(1000).await?;
            connection.send(b"hello").await
        })
        .await;
    let echo = echo(&world, 4444).await;
    let attempts = ["tcp('198.51.100.66', 22)", "sent('198.51.100.66', 4444)"];
    let output = world
        .exec()
        .allow("good.test")
        .arg("--audit")
        .log(Format::Json)
        .run(&tries(&world, &attempts))
        .await;

    assert_eq!(output.succeeded().text(), "5\n300\n");
    assert_eq!(origin.seen().await.len(), 1);
    echo.says("seen 300").await;
    let log = output.json_log();
    assert_eq!(log.len(), 2, "{log:#?}");
    for record in &log {
        assert_eq!(record["enforced"], false, "{record}");
        assert_eq!(record["would_deny"], true, "{record}");
        assert_eq!(record["outcome"], "no_rule", "{record}");
        assert_eq!(record["squid_hierarchy"], "HIER_DIRECT", "{record}");
    }
}

/// Connects to 198.51.100.10:5432, says so, and says how that ends.
const HOLDS: &str = "
import errno, socket
s = socket.create_connection(('198.51.100.10', 5432), 10)
s.settimeout(None)
print('open', flush=True)
try: print('ended', len(s.recv(10)), flush=True)
except OSError as e: print('ended', errno.errorcode[e.errno], flush=True)
";

fn block_of(namespace: &str) -> String {
    BLOCK.replace(
        "{name: block}",
        &format!("{{name: block, namespace: {namespace}}}"),
    )
}

/// As it would be told from accepted ones, were it not known who began it.
const HOLDS_AND_LISTENS: &str = "
import errno, socket
def bound(port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', port))
    return s
s = bound(0)
s.connect(('198.51.100.10', 5432))
listening = bound(s.getsockname()[1])
listening.listen()
print('open', flush=True)
try: print('ended', len(s.recv(10)), flush=True)
except OSError as e: print('ended', errno.errorcode[e.errno], flush=True)
";

async fn an_open_direct_connection_ends_when_its_rule_goes() {
    ends_when_its_rule_goes(HOLDS).await;
}

async fn an_open_direct_connection_whose_port_also_listens_ends_too() {
    ends_when_its_rule_goes(HOLDS_AND_LISTENS).await;
}

async fn ends_when_its_rule_goes(holds: &str) {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let origin = world
        .raw("good.test", 5432, async |connection| connection.stall().await)
        .await;
    let daemon = Daemon::start(&world, "").await;
    world.file("policies/block.yaml", &block_of("team-a"));
    let cgroup = daemon.tree.join("a");
    daemon
        .eventually("the block is open", async || {
            let tried = daemon
                .run("a", &second, &tries(&world, &["udp('198.51.100.10', 5353)"]))
                .await;
            tried.text() != "EPERM\n"
        })
        .await;
    let client = world.start_in(&second, &cgroup, &python(&world, "holds", holds));
    client.says("open").await;
    let direct = async || daemon.status().await.unwrap_or_default()["tables"]["direct"].clone();
    assert_eq!(direct().await, json!({"entries": 1, "most": 65536}));

    fs::remove_file(world.path("policies/block.yaml")).expect("the file is there");
    client.says("ended ECONNABORTED").await;
    assert_eq!(direct().await["entries"], 0);

    assert_eq!(origin.seen().await.len(), 1);
    daemon
        .eventually("it is logged", async || {
            daemon.log().iter().any(|record| {
                record["ending"] == "policy_changed" && record["original"] == "198.51.100.10:5432"
            })
        })
        .await;
}

/// Judged again by its packets, which the machine's own NAT has rewritten by then.
async fn an_open_direct_connection_lives_on_as_long_as_a_rule_allows_it() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _origin = world
        .raw("good.test", 5432, async |mut connection| {
            for _ in 0..2 {
                connection.read_exact(1).await?;
                connection.send(b"!").await?;
            }
            Ok(())
        })
        .await;
    world.file("policies/block.yaml", &block_of("team-a"));
    let daemon = Daemon::start(&world, "").await;
    let marker = world.path("go");
    let speaks = format!(
        "
import os, socket, time
s = socket.create_connection(('198.51.100.10', 5432), 10)
s.sendall(b'?')
print('first', s.recv(1).decode(), flush=True)
while not os.path.exists({:?}): time.sleep(0.05)
s.sendall(b'?')
print('second', s.recv(1).decode(), flush=True)
",
        marker.display().to_string()
    );
    let cgroup = daemon.tree.join("a");
    let client = world.start_in(&second, &cgroup, &python(&world, "speaks", &speaks));
    client.says("first !").await;
    let wider = block_of("team-a").replace("{port: 5432}", "{port: 5432}, {port: 5433}");
    world.file("policies/block.yaml", &wider);
    daemon
        .eventually("the wider policy is in force", async || {
            let tried = daemon
                .run("a", &second, &tries(&world, &["tcp('198.51.100.10', 5433)"]))
                .await;
            tried.text() == "ECONNREFUSED\n"
        })
        .await;
    world.file("go", "");
    client.says("second !").await;
}

async fn a_connection_from_before_the_enforcement_is_closed_and_an_accepted_one_lives() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _origin = world
        .raw("good.test", 5432, async |connection| connection.stall().await)
        .await;
    let cgroup = world.cgroup.child("tree/a");
    let serves = "
import socket
with socket.create_server(('198.18.3.2', 7000)) as server:
    print('serving', flush=True)
    with server.accept()[0] as s:
        print('accepted', flush=True)
        while data := s.recv(100): s.sendall(data)
        print('done', flush=True)
";
    let server = world.start_in(&second, &cgroup, &python(&world, "serves", serves));
    server.says("serving").await;
    let visits = "
import socket, sys
with socket.create_connection(('198.18.3.2', 7000), 10) as s:
    print('in', flush=True)
    sys.stdin.readline()
    s.sendall(b'still there?')
    print('answer', s.recv(100).decode(), flush=True)
";
    let visitor_cgroup = world.cgroup.child("visitor");
    let marker = world.path("go");
    let visits = visits.replace(
        "sys.stdin.readline()",
        &format!(
            "import os, time\n    while not os.path.exists({:?}): time.sleep(0.05)",
            marker.display().to_string()
        ),
    );
    let visitor = world.start_in(
        &world.origins,
        &visitor_cgroup,
        &python(&world, "visits", &visits),
    );
    visitor.says("in").await;
    server.says("accepted").await;
    let client = world.start_in(&second, &cgroup, &python(&world, "holds", HOLDS));
    client.says("open").await;

    let daemon = Daemon::start(&world, "").await;
    client.says("ended ECONNABORTED").await;
    world.file("go", "");
    visitor.says("answer still there?").await;
    daemon
        .eventually("it is logged", async || {
            daemon.log().iter().any(|record| {
                record["outcome"] == "opened_before"
                    && record["original"] == "198.51.100.10:5432"
                    && record["namespace"] == "team-a"
            })
        })
        .await;
}

async fn direct_connections_are_judged_and_logged_while_no_agent_lives() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _origin = world
        .raw("good.test", 5432, async |mut connection| {
            connection.read_exact(1000).await?;
            connection.send(&[7; 2000]).await
        })
        .await;
    world.file("policies/block.yaml", &block_of("team-a"));
    let daemon = Daemon::start(&world, "").await;
    daemon.kill();
    let attempts = [
        "tcp('198.51.100.10', 5432)",
        "tcp('198.51.100.20', 5432)",
        "sent('198.51.100.10', 443)",
        "tcp('198.51.100.10', 443)",
    ];
    let tried = daemon.run("a", &second, &tries(&world, &attempts)).await;
    // The last one is for the proxy, and has nobody to go to.
    let lines = tried.text();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.get(..3), Some(&["2000", "EPERM", "EPERM"][..]), "{lines:?}");
    assert!(["timeout", "ECONNREFUSED"].contains(&lines[3]), "{lines:?}");

    let daemon = daemon.kill_and_succeed().await;
    daemon
        .eventually("both are logged", async || {
            let log = daemon.log();
            let has = |outcome: &str, port: &str| {
                log.iter().any(|record| {
                    record["outcome"] == outcome
                        && record["original"]
                            .as_str()
                            .is_some_and(|text| text.ends_with(port))
                })
            };
            has("allowed_by_rule", "100.10:5432") && has("no_rule", "100.20:5432")
        })
        .await;
}

/// A policy of 300 rules, each with a set of ports of its own, of `chunks` times 512 ports one in each.
fn many_ports(chunks: usize, domain: &str) -> String {
    let mut text = policy("ports", "team-a", domain);
    for rule in 0..300 {
        let ports: Vec<String> = (0..chunks)
            .map(|chunk| format!("{{port: {}}}", 512 * chunk + rule + 1))
            .collect();
        let (third, fourth) = (rule / 256, rule % 256);
        writeln!(
            text,
            "  - to: [{{cidr: 198.18.{third}.{fourth}/32}}]\n    ports: [{}]",
            ports.join(", ")
        )
        .expect("a text takes everything");
    }
    text
}

/// The table takes 65,536 chunks. What was in force before stays in it for two sweeps, at most 20 seconds.
async fn policies_that_do_not_fit_yet_are_in_force_once_there_is_room() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    world.file("policies/ports.yaml", &many_ports(127, "good.test"));
    let entries = async || {
        let status = daemon.status().await.unwrap_or_default();
        status["tables"]["ports"]["entries"].as_u64().unwrap_or(0)
    };
    daemon
        .eventually("many are in force", async || entries().await > 300 * 127)
        .await;
    world.file("policies/ports.yaml", &policy("ports", "team-a", "other.test"));
    daemon
        .eventually("few are", async || daemon.codes("a", &second).await == "200,200,")
        .await;

    world.file("policies/ports.yaml", &many_ports(126, "good.test"));
    let error = async || {
        let status = daemon.status().await.unwrap_or_default();
        status["policy_error"].as_str().map(str::to_owned)
    };
    daemon
        .eventually("they do not fit", async || error().await.is_some())
        .await;
    assert_eq!(daemon.codes("a", &second).await, "200,200,");
    tokio::time::sleep(Duration::from_secs(5)).await;
    daemon
        .eventually("there is room", async || error().await.is_none())
        .await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let there = entries_of(&daemon.pins().join("PORTS")).await.len();
    assert_eq!(
        there as u64,
        entries().await,
        "nothing is left of the first attempt"
    );
    daemon.stop().await.succeeded();
}
