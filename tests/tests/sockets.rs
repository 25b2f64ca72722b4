//! Every way to connect a socket leads through the agent, and none of them shows the workload that it does.

use egress_tests::{
    agent::{Finished, Format},
    clients::{Client, compile_static, python},
    lab::{CLIENT_V4, CLIENT_V6, World, ip},
    patience::seconds,
    promises,
    require::Need,
};
use serde_json::{Value, json};

promises![
    getpeername_and_getsockname_show_what_a_direct_connection_would,
    getpeername_and_getsockname_are_right_for_ipv6: [Need::Ipv6],
    getpeername_and_getsockname_are_right_for_mapped_addresses: [Need::Ipv6],
    ipv4_and_mapped_addresses_work_where_ipv6_is_switched_off: [Need::Ipv6],
    a_v6only_socket_cannot_use_a_mapped_address: [Need::Ipv6],
    a_non_blocking_connect_works,
    a_second_connect_of_a_connected_socket_is_refused_by_the_kernel,
    a_socket_disconnected_by_af_unspec_is_judged_anew,
    a_socket_whose_first_connect_failed_can_be_used_again,
    a_bound_source_address_is_kept,
    a_socket_bound_to_a_device_is_never_left_to_hang_or_to_slip_through,
    fast_open_carries_no_byte_past_the_judge: [Need::FastOpen],
    mptcp_is_judged_too: [Need::Mptcp],
    io_uring_is_judged_too: [Need::IoUring],
    a_socket_passed_to_another_process_is_judged,
];

/// What the programs below share.
const PRELUDE: &str = r#"
import ctypes, errno, json, os, select, socket, struct, sys
socket.setdefaulttimeout(20)

def fetch(s, host="good.test"):
    s.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while part := s.recv(65536):
        data += part
    return data.decode()

def status(answer):
    return int(answer.split()[1])

def ends(s):
    return {"peer": s.getpeername()[0], "port": s.getpeername()[1], "own": s.getsockname()[0]}

def tell(**facts):
    print(json.dumps(facts))
"#;

fn program(world: &World, text: &str) -> Client {
    python(world, "program", &format!("{PRELUDE}\n{text}"))
}

/// Asserts that the agent has had to do with it: what works by itself proves nothing.
#[track_caller]
fn was_judged(world: &World) {
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

#[track_caller]
fn told(output: &Finished) -> Value {
    serde_json::from_str(&output.succeeded().text()).unwrap_or(Value::Null)
}

async fn getpeername_and_getsockname_show_what_a_direct_connection_would() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.create_connection(("198.51.100.10", 80))
before = ends(s)
tell(before=before, status=status(fetch(s)), after=ends(s))"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    let ends = json!({"peer": "198.51.100.10", "port": 80, "own": CLIENT_V4});
    assert_eq!(
        told(&output),
        json!({"before": ends, "status": 200, "after": ends})
    );
    assert_eq!(
        told(&output),
        told(&world.directly(&client).await),
        "and so does a direct connection"
    );
    assert_eq!(origin.seen().await.len(), 2);
    was_judged(&world);
}

async fn getpeername_and_getsockname_are_right_for_ipv6() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.create_connection(("2001:db8:1::10", 80))
tell(ends=ends(s), status=status(fetch(s)))"#,
    );

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    let ends = json!({"peer": "2001:db8:1::10", "port": 80, "own": CLIENT_V6});
    assert_eq!(told(&output), json!({"ends": ends, "status": 200}));
    let seen = origin.seen().await;
    assert_eq!(seen[0].local.ip(), ip("2001:db8:1::10"));
    assert_eq!(seen[0].peer.ip(), ip(CLIENT_V6));
    assert!(output.log.starts_with(CLIENT_V6), "{}", output.log);
    was_judged(&world);
}

async fn getpeername_and_getsockname_are_right_for_mapped_addresses() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(&world, MAPPED);

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    let ends = json!({"peer": "::ffff:198.51.100.10", "port": 80, "own": "::ffff:192.0.2.2"});
    assert_eq!(told(&output), json!({"ends": ends, "status": 200}));
    assert_eq!(origin.seen().await[0].local.ip(), ip("198.51.100.10"));
    assert!(
        output.log.starts_with(CLIENT_V4),
        "judged and logged as IPv4: {}",
        output.log
    );
    was_judged(&world);
}

const MAPPED: &str = r#"
s = socket.socket(socket.AF_INET6)
s.connect(("::ffff:198.51.100.10", 80))
tell(ends=ends(s), status=status(fetch(s)))"#;

async fn ipv4_and_mapped_addresses_work_where_ipv6_is_switched_off() {
    let world = World::new().await;
    for interface in ["all", "default", "lo", "eth0"] {
        world
            .client
            .sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")
            .await;
    }
    let origin = world.http("good.test").await;
    let plain = r#"tell(status=status(fetch(socket.create_connection(("198.51.100.10", 80)))))"#;

    let output = world.exec().allow("good.test").run(&program(&world, plain)).await;
    assert_eq!(told(&output), json!({"status": 200}));
    let output = world
        .exec()
        .allow("good.test")
        .run(&program(&world, MAPPED))
        .await;
    assert_eq!(told(&output)["status"], 200);
    assert_eq!(origin.seen().await.len(), 2);
    was_judged(&world);
}

async fn a_v6only_socket_cannot_use_a_mapped_address() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
tell(error=errno.errorcode[s.connect_ex(("::ffff:198.51.100.10", 80))])"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(told(&output), told(&world.directly(&client).await));
    origin.was_never_reached().await;
}

async fn a_non_blocking_connect_works() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.socket()
s.setblocking(False)
first = s.connect_ex(("198.51.100.10", 80))
_, writable, _ = select.select([], [s], [], 10)
error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
s.setblocking(True)
tell(first=errno.errorcode[first], writable=len(writable), error=error, ends=ends(s), status=status(fetch(s)))"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    let ends = json!({"peer": "198.51.100.10", "port": 80, "own": CLIENT_V4});
    let expected = json!({"first": "EINPROGRESS", "writable": 1, "error": 0, "ends": ends, "status": 200});
    assert_eq!(told(&output), expected);
    assert_eq!(origin.seen().await.len(), 1);
    was_judged(&world);
}

async fn a_second_connect_of_a_connected_socket_is_refused_by_the_kernel() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let client = program(
        &world,
        r#"
s = socket.socket()
s.settimeout(None)
s.connect(("198.51.100.10", 80))
again = s.connect_ex(("198.51.100.66", 80))
tell(again=errno.errorcode[again], peer=s.getpeername()[0], status=status(fetch(s)))"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(
        told(&output),
        json!({"again": "EISCONN", "peer": "198.51.100.10", "status": 200})
    );
    assert_eq!(origin.seen().await.len(), 1);
    evil.was_never_reached().await;
    was_judged(&world);
}

async fn a_socket_disconnected_by_af_unspec_is_judged_anew() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let client = program(
        &world,
        r#"
libc = ctypes.CDLL(None, use_errno=True)
s = socket.create_connection(("198.51.100.10", 80))
first = ends(s)
dissolved = libc.connect(s.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)
peer = None
try: s.getpeername()
except OSError as error: peer = errno.errorcode[error.errno]
s.connect(("198.51.100.20", 80))
second = s.getpeername()[0]
allowed = status(fetch(s, "other.test"))
s = socket.create_connection(("198.51.100.10", 80))
libc.connect(s.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)
s.connect(("198.51.100.66", 80))
tell(dissolved=dissolved, peer=peer, second=second, allowed=allowed, denied=status(fetch(s, "evil.test")))"#,
    );
    let other = world.http("other.test").await;

    let output = world
        .exec()
        .allow("good.test")
        .allow("other.test")
        .run(&client)
        .await;

    let expected =
        json!({"dissolved": 0, "peer": "ENOTCONN", "second": "198.51.100.20", "allowed": 200, "denied": 403});
    assert_eq!(told(&output), expected);
    assert_eq!(other.requests().await.len(), 1);
    assert!(good.requests().await.is_empty());
    evil.was_never_reached().await;
}

async fn a_socket_whose_first_connect_failed_can_be_used_again() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.socket()
s.settimeout(None)
first = s.connect_ex(("127.0.0.1", 9))
s.connect(("198.51.100.10", 80))
tell(first=errno.errorcode[first], peer=s.getpeername()[0], status=status(fetch(s)))"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(
        told(&output),
        json!({"first": "ECONNREFUSED", "peer": "198.51.100.10", "status": 200})
    );
    assert_eq!(origin.seen().await.len(), 1);
    was_judged(&world);
}

async fn a_bound_source_address_is_kept() {
    let world = World::new().await;
    world.client.ip("addr add 192.0.2.77/24 dev eth0").await;
    let origin = world.http("good.test").await;
    let client = program(
        &world,
        r#"
s = socket.socket()
s.bind(("192.0.2.77", 0))
s.connect(("198.51.100.10", 80))
tell(ends=ends(s), status=status(fetch(s)))"#,
    );

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    let ends = json!({"peer": "198.51.100.10", "port": 80, "own": "192.0.2.77"});
    assert_eq!(told(&output), json!({"ends": ends, "status": 200}));
    assert!(output.log.starts_with("192.0.2.77 "), "{}", output.log);
    assert_eq!(origin.seen().await.len(), 1);
    was_judged(&world);
}

/// SO_BINDTODEVICE holds the socket to the device, and the listener is on another one: either the agent takes the
/// option back, or the connect is refused.
async fn a_socket_bound_to_a_device_is_never_left_to_hang_or_to_slip_through() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let client = program(
        &world,
        r#"
import time
facts, begun = {}, time.monotonic()
for name, address in ("good", "198.51.100.10"), ("evil", "198.51.100.66"):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    try:
        s.connect((address, 80))
        facts[name] = status(fetch(s, name + ".test"))
    except OSError as error:
        facts[name] = errno.errorcode.get(error.errno, str(error))
tell(**facts, took=time.monotonic() - begun)"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    let facts = told(&output);
    let took = facts["took"].as_f64().expect("seconds");
    assert!(took < seconds(3).as_secs_f64(), "{}", output.story());
    assert!(facts["good"] == 200 || facts["good"] == "EPERM", "{facts}");
    assert!(facts["evil"] == 403 || facts["evil"] == "EPERM", "{facts}");
    evil.was_never_reached().await;
    assert!(good.seen().await.len() <= 1);
}

async fn fast_open_carries_no_byte_past_the_judge() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let client = program(
        &world,
        r#"
def fast_open(address, host):
    s = socket.socket()
    s.settimeout(None)
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    sent = s.sendto(request, socket.MSG_FASTOPEN, (address, 80))
    s.sendall(request[sent:])
    data = b""
    while part := s.recv(65536): data += part
    return status(data.decode())
# The second one of each would carry its request in the SYN, if the first one brought a cookie.
tell(good=[fast_open("198.51.100.10", "good.test") for _ in range(2)],
     evil=[fast_open("198.51.100.66", "evil.test") for _ in range(2)])"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(told(&output), json!({"good": [200, 200], "evil": [403, 403]}));
    assert_eq!(good.requests().await.len(), 2);
    evil.was_never_reached().await;
}

async fn mptcp_is_judged_too() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    // getpeername is left out: the kernel asks the programs with the MPTCP socket, and what it dialled is stored with the
    // subflow's, which the programs cannot find from there.
    let client = program(
        &world,
        r#"
def multipath(address, host):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    s.connect((address, 80))
    return status(fetch(s, host))
tell(good=multipath("198.51.100.10", "good.test"), evil=multipath("198.51.100.66", "evil.test"))"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(told(&output), json!({"good": 200, "evil": 403}));
    assert_eq!(good.requests().await.len(), 1);
    evil.was_never_reached().await;
}

async fn a_socket_passed_to_another_process_is_judged() {
    let world = World::new().await;
    let evil = world.http("evil.test").await;
    let client = program(
        &world,
        r#"
near, far = socket.socketpair(socket.AF_UNIX)
if os.fork() == 0:
    _, descriptors, _, _ = socket.recv_fds(far, 1, 1)
    s = socket.socket(fileno=descriptors[0])
    s.connect(("198.51.100.66", 80))
    tell(status=status(fetch(s, "evil.test")))
    sys.exit(0)
passed = socket.socket()
socket.send_fds(near, [b"x"], [passed.fileno()])
os.wait()"#,
    );

    let output = world.exec().allow("good.test").run(&client).await;

    assert_eq!(told(&output), json!({"status": 403}));
    evil.was_never_reached().await;
}

async fn io_uring_is_judged_too() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let client = compile_static(&world, "io_uring", include_str!("../programs/io_uring.c")).await;

    let allowed = client.clone().words("198.51.100.10 good.test");
    let output = world.exec().allow("good.test").run(&allowed).await;
    assert!(
        output.succeeded().text().starts_with("HTTP/1.1 200 "),
        "{}",
        output.story()
    );
    let output = world
        .exec()
        .allow("good.test")
        .run(&client.words("198.51.100.66 evil.test"))
        .await;
    assert!(
        output.succeeded().text().starts_with("HTTP/1.1 403 "),
        "{}",
        output.story()
    );

    assert_eq!(good.requests().await.len(), 1);
    evil.was_never_reached().await;
}
