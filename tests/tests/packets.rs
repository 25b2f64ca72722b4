//! Nothing leaves a fenced network namespace without a socket that a verdict has let go there; everything else does as
//! before. The far end of the workload's veth pair is where the agent runs, and the witness.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
};

use egress_tests::{
    agent::verb,
    clients::{Client, python, shell},
    daemon::Daemon,
    lab::{Place, World},
    promises,
    require::{Need, tool},
    wire::Wire,
};

promises![
    a_packet_socket_sends_nothing_out: [Need::Ipv6],
    a_tun_device_sends_nothing_out: [Need::Tun],
    a_connection_that_only_seems_to_come_in_opens_no_way_out,
    what_root_in_the_namespace_makes_of_a_packet_does_not_leave: [Need::PacketEditing],
    what_a_verdict_has_let_out_passes_a_fence: [Need::Ipv6],
    a_server_in_a_fenced_namespace_answers: [Need::Ipv6],
    a_fence_outlives_its_agent_and_is_taken_over,
    a_fence_of_another_layout_is_replaced_without_a_gap,
    a_fence_that_somebody_takes_away_is_put_back,
    a_fence_that_cannot_be_mended_keeps_nobody_from_the_others,
    an_audited_workload_is_not_fenced,
    a_way_out_that_cannot_be_fenced_is_told,
];

/// The address that every attack is after.
const EVIL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// An internal address: what is sent there passes every fence.
const INTERNAL: &str = "10.66.0.9:9";

const CONFIG: &str = "internal: [10.66.0.0/16]";

/// TCP, UDP, ICMP, ICMPv6, and a number for experiments (RFC 3692).
const PROTOCOLS: &[i32] = &[6, 17, 1, 58, 253];

/// What the attacks share: frames written by hand, each with a text by which the witness knows it.
const PRELUDE: &str = r#"
import fcntl, os, socket, struct, subprocess, sys, time
SOURCE, EVIL = "192.0.2.2", "198.51.100.66"
SOURCE6, EVIL6 = "2001:db8:0:2::2", "2001:db8:1::66"

def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def ipv4(protocol, payload, source=SOURCE, destination=EVIL, fragment=0):
    if protocol == 6:
        pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", 6, len(payload))
        payload = payload[:16] + struct.pack("!H", checksum(pseudo + payload)) + payload[18:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 4711, fragment, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(destination))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload

def ipv6(protocol, payload, hops=64):
    addresses = socket.inet_pton(socket.AF_INET6, SOURCE6) + socket.inet_pton(socket.AF_INET6, EVIL6)
    if protocol == 58:
        pseudo = addresses + struct.pack("!II", len(payload), protocol)
        payload = payload[:2] + struct.pack("!H", checksum(pseudo + payload)) + payload[4:]
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + addresses + payload

def udp(text, source=5353, destination=443):
    return struct.pack("!HHHH", source, destination, 8 + len(text), 0) + text.encode()

def tcp(text, flags, source=5353, destination=443, sequence=1, acknowledged=0):
    return struct.pack("!HHIIBBHHH", source, destination, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0) + text.encode()

def icmp(kind, text):
    body = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + text.encode()
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]

def attacks(name):
    quoted = ipv4(17, udp("quoted"), source=EVIL, destination=SOURCE)
    error = struct.pack("!BBHI", 3, 3, 0, 0) + quoted + f"{name}-error".encode()
    neighbour = struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, EVIL6)
    return [
        (0x0800, ipv4(17, udp(f"{name}-udp"))),
        (0x0800, ipv4(17, udp(f"{name}-spoofed"), source="192.0.2.77")),
        (0x0800, ipv4(6, tcp(f"{name}-syn", 0x02))),
        (0x0800, ipv4(6, tcp(f"{name}-answer", 0x12))),
        (0x0800, ipv4(6, tcp(f"{name}-data", 0x18))),
        (0x0800, ipv4(6, tcp(f"{name}-reset", 0x04))),
        (0x0800, ipv4(1, icmp(8, f"{name}-ping"))),
        (0x0800, ipv4(1, icmp(0, f"{name}-pong"))),
        (0x0800, ipv4(1, error[:2] + struct.pack("!H", checksum(error)) + error[4:])),
        (0x0800, ipv4(253, f"{name}-protocol".encode())),
        (0x86dd, ipv6(17, udp(f"{name}-udp6"))),
        (0x86dd, ipv6(6, tcp(f"{name}-syn6", 0x02))),
        (0x86dd, ipv6(253, f"{name}-protocol6".encode())),
        (0x86dd, ipv6(58, neighbour + f"{name}-neighbour6".encode(), hops=255)),
    ]

def hardware(name):
    # Not from /sys, which may be of another network namespace. SIOCGIFHWADDR.
    return fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8927, struct.pack("16s24x", name.encode()))[18:24]

def gateway():
    # Asked for by a datagram to an internal address.
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"who", ("10.66.0.9", 9))
    while True:
        for line in open("/proc/net/arp").read().splitlines()[1:]:
            words = line.split()
            if words[3] != "00:00:00:00:00:00": return bytes.fromhex(words[3].replace(":", ""))
        time.sleep(0.02)

def packet_socket(frames, name="eth0", bypass=False):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    if bypass: s.setsockopt(263, 20, 1)
    s.bind((name, 0))
    far = bytes(6) if name == "lo" else gateway()
    for kind, packet in frames: s.send(far + hardware(name) + struct.pack("!H", kind) + packet)
"#;

/// By a packet socket, with and without the queues of the device, and with an address in the place of a header.
const BY_PACKET_SOCKET: &str = r#"
packet_socket(attacks("raw"))
packet_socket(attacks("bypass"), bypass=True)
cooked = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
far = gateway()
for kind, packet in attacks("cooked"): cooked.sendto(packet, ("eth0", kind, 0, 0, far))
"#;

/// What of them arrives where nobody is in the way.
const ARRIVING: [&str; 14] = [
    "udp",
    "spoofed",
    "syn",
    "answer",
    "data",
    "reset",
    "ping",
    "pong",
    "error",
    "protocol",
    "udp6",
    "syn6",
    "protocol6",
    "neighbour6",
];

/// A device of the namespace's own, whose packets are passed on as if they came from elsewhere.
const BY_TUN: &str = r#"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454ca, 1, 0x1000
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun7", IFF_TUN | IFF_NO_PI))
for words in "addr add 172.16.7.1/24 dev tun7", "link set tun7 up": subprocess.run(["ip", *words.split()], check=True)
open("/proc/sys/net/ipv4/ip_forward", "w").write("1")
open("/proc/sys/net/ipv4/conf/tun7/rp_filter", "w").write("0")
for source in "172.16.7.2", "192.0.2.77": os.write(tun, ipv4(17, udp(f"tun-{source}"), source=source))
"#;

fn program(world: &World, name: &str, text: &str) -> Client {
    python(world, name, &format!("{PRELUDE}\n{text}"))
}

/// A world whose origins take packets from anybody, and its witness.
async fn world() -> (World, Wire) {
    let world = World::new().await;
    for place in [&world.origins, &world.client] {
        place.sysctl("net/ipv4/conf/all/rp_filter", "0").await;
        place.sysctl("net/ipv4/conf/default/rp_filter", "0").await;
        place.sysctl("net/ipv4/conf/lo/rp_filter", "0").await;
    }
    world.client.sysctl("net/ipv4/conf/eth0/rp_filter", "0").await;
    world
        .origins
        .sysctl("net/ipv4/conf/to-client2/rp_filter", "0")
        .await;
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    (world, wire)
}

/// Runs `attack` where nobody enforces anything: what does not arrive then proves nothing later.
async fn unopposed(world: &World, attack: &Client) {
    world.directly(attack).await.succeeded();
}

async fn fences(daemon: &Daemon<'_>) -> u64 {
    let status = daemon.status().await.unwrap_or_default();
    status["fences"]["namespaces"].as_u64().unwrap_or(0)
}

async fn refused(daemon: &Daemon<'_>) -> u64 {
    let status = daemon.status().await.unwrap_or_default();
    status["kernel"]["unvetted"].as_u64().unwrap_or(0)
}

/// Waits until everything that has left the client before has arrived: what leaves later arrives later.
async fn settle(world: &World, wire: &Wire, text: &'static str) {
    world
        .client
        .run(async move {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(text.as_bytes(), INTERNAL).expect("a datagram");
        })
        .await;
    wire.sees(text).await;
}

async fn a_packet_socket_sends_nothing_out() {
    let (world, before) = world().await;
    let attack = program(&world, "attack", BY_PACKET_SOCKET);
    unopposed(&world, &attack).await;
    for way in ["raw", "bypass", "cooked"] {
        for what in ARRIVING {
            before.sees(&format!("{way}-{what}")).await;
        }
    }
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;

    daemon.run("a", &world.client, &attack).await.succeeded();

    settle(&world, &wire, "settled").await;
    for way in ["raw", "bypass", "cooked"] {
        for what in ARRIVING {
            let text = format!("{way}-{what}");
            assert!(!wire.saw(&text), "{text} arrived");
        }
    }
    let attempts = 3 * ARRIVING.len() as u64;
    assert!(refused(&daemon).await >= attempts, "{}", refused(&daemon).await);
}

async fn a_tun_device_sends_nothing_out() {
    let (world, before) = world().await;
    let attack = program(&world, "attack", BY_TUN);
    unopposed(&world, &attack).await;
    for source in ["172.16.7.2", "192.0.2.77"] {
        before.sees(&format!("tun-{source}")).await;
    }
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;

    daemon.run("a", &world.client, &attack).await.succeeded();

    settle(&world, &wire, "settled").await;
    assert!(!wire.saw("tun-"));
    assert!(refused(&daemon).await >= 2);
}

/// The kernel of the namespace believes it; where packets come in, nothing has.
async fn a_connection_that_only_seems_to_come_in_opens_no_way_out() {
    let (world, before) = world().await;
    let attack = program(
        &world,
        "attack",
        r#"
listener = socket.create_server((SOURCE, 8080))
packet_socket([(0x0800, ipv4(6, tcp("", 0x02, 443, 8080, 100), source=EVIL, destination=SOURCE))], "lo")
packet_socket([(0x0800, ipv4(17, udp("in", 443, 8081), source=EVIL, destination=SOURCE))], "lo")
time.sleep(0.2)
"#,
    );
    unopposed(&world, &attack).await;
    settle(&world, &before, "unopposed").await;
    assert!(
        before.saw_packet_to(EVIL),
        "the kernel answers what it takes for a connect"
    );
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;

    daemon.run("a", &world.client, &attack).await.succeeded();

    settle(&world, &wire, "settled").await;
    assert!(!wire.saw_packet_to(EVIL));
    assert!(refused(&daemon).await > 0);
}

/// The agent dials an allowed address from within the namespace, where root may write another one into its packets.
async fn what_root_in_the_namespace_makes_of_a_packet_does_not_leave() {
    let (world, _before) = world().await;
    let good = world.http("good.test").await;
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;
    let translate = shell(
        "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress protocol ip u32 match ip dst 198.51.100.10/32 \
         action pedit ex munge ip dst set 198.51.100.66 pipe action csum ip tcp",
    );
    daemon.run("a", &world.client, &translate).await.succeeded();

    let fetch = shell("curl -sS --max-time 3 --resolve good.test:80:198.51.100.10 http://good.test/");
    let output = daemon.run("a", &world.client, &fetch).await;

    assert_ne!(output.code(), 0, "{}", output.story());
    settle(&world, &wire, "settled").await;
    assert!(!wire.saw_packet_to(EVIL));
    assert!(refused(&daemon).await > 0);
    assert!(good.seen().await.is_empty());
}

/// A server that says again what it hears, by TCP and UDP.
const ECHO: &str = r#"
import socket, threading
def serve(address, family):
    listener = socket.create_server(address, family=family)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.bind(address)
    def streams():
        while True:
            stream, _ = listener.accept()
            stream.sendall(stream.recv(65536))
            stream.close()
    def packets():
        while True:
            data, peer = datagrams.recvfrom(65536)
            datagrams.sendto(data, peer)
    for work in streams, packets: threading.Thread(target=work).start()
"#;

const ASK: &str = r#"
import socket, sys
socket.setdefaulttimeout(20)
def ask(address, family):
    with socket.create_connection(address) as stream:
        stream.sendall(b"stream")
        assert stream.recv(100) == b"stream"
    # The last one is in fragments.
    for length in 10, 5000:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(address)
            s.send(b"x" * length)
            assert s.recv(9000) == b"x" * length
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.sendto(b"unconnected", address)
        data, peer = s.recvfrom(100)
        assert data == b"unconnected" and peer[:2] == address
"#;

async fn what_a_verdict_has_let_out_passes_a_fence() {
    let (world, _wire) = world().await;
    let (good, other) = (world.http("good.test").await, world.http("other.test").await);
    let policy = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\n\
                  metadata: {name: direct, namespace: team-a}\nspec:\n  egress:\n\
                  \x20 - to: [{cidr: 203.0.113.0/24}, {cidr: 2001:db8:1::/64}]\n\
                  \x20   ports: [{port: 7000}, {port: 7000, protocol: UDP}]\n";
    world.file("policies/direct.yaml", policy);
    let server = python(
        &world,
        "echo",
        &format!(
            "{ECHO}\nserve((\"203.0.113.5\", 7000), socket.AF_INET)\n\
             serve((\"2001:db8:1::5\", 7000), socket.AF_INET6)\nprint(\"serving\", flush=True)"
        ),
    );
    let server = world.start_in(&world.origins, world.cgroup.path(), &server);
    server.says("serving").await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;

    assert_eq!(daemon.codes("a", &world.client).await, "200,403,");
    let direct = python(
        &world,
        "direct",
        &format!(
            "{ASK}\nask((\"203.0.113.5\", 7000), socket.AF_INET)\nask((\"2001:db8:1::5\", 7000), socket.AF_INET6)"
        ),
    );
    daemon.run("a", &world.client, &direct).await.succeeded();

    assert_eq!(good.requests().await.len(), 1);
    other.was_never_reached().await;
    assert_eq!(fences(&daemon).await, 1);
}

async fn a_server_in_a_fenced_namespace_answers() {
    let (world, wire) = world().await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let server = python(
        &world,
        "echo",
        &format!(
            "{ECHO}\nserve((\"192.0.2.2\", 7000), socket.AF_INET)\n\
             serve((\"2001:db8:0:2::2\", 7000), socket.AF_INET6)\nprint(\"serving\", flush=True)"
        ),
    );
    let server = world.start_in(&world.client, &daemon.tree.join("a"), &server);
    server.says("serving").await;
    daemon
        .eventually("its namespace is fenced", async || fences(&daemon).await == 1)
        .await;

    let client = program(
        &world,
        "client",
        &format!(
            r#"{ASK}
import errno
ask((SOURCE, 7000), socket.AF_INET)
ask((SOURCE6, 7000), socket.AF_INET6)
# What nobody listens at is told at once, and so is that a host is there.
assert socket.socket().connect_ex((SOURCE, 7001)) == errno.ECONNREFUSED
for family, host in (socket.AF_INET, SOURCE), (socket.AF_INET6, SOURCE6):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.connect((host, 7001))
    s.send(b"x")
    try: s.recv(100)
    except ConnectionRefusedError: pass
    else: raise SystemExit("no port is unreachable")
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.sendto(icmp(8, "ping"), (SOURCE, 0))
while b"ping" not in (answer := s.recv(1000)) or answer[20] != 0: pass
"#
        ),
    );
    world
        .start_in(&world.origins, world.cgroup.path(), &client)
        .finish()
        .await
        .succeeded();

    settle(&world, &wire, "settled").await;
    assert_eq!(fences(&daemon).await, 1);
}

async fn a_fence_outlives_its_agent_and_is_taken_over() {
    let (world, _before) = world().await;
    let _good = world.http("good.test").await;
    let attack = program(&world, "attack", r#"packet_socket(attacks(sys.argv[1]))"#);
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;

    daemon.kill();
    let workload = daemon.tree.join("a");
    let by = |name: &str| {
        world
            .start_in(&world.client, &workload, &attack.clone().arg(name))
            .finish()
    };
    by("orphaned").await.succeeded();
    settle(&world, &wire, "while it is dead").await;
    assert!(!wire.saw("orphaned-"));

    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    assert_eq!(fences(&daemon).await, 1);
    by("adopted").await.succeeded();
    assert_eq!(daemon.run("a", &world.client, &good(&world)).await.text(), "200");
    let (daemon, predecessor) = daemon.succeed(&["--take-over"]).await;
    predecessor.finish().await.succeeded();
    by("handed").await.succeeded();
    assert_eq!(daemon.run("a", &world.client, &good(&world)).await.text(), "200");
    settle(&world, &wire, "after both").await;
    assert!(!wire.saw("adopted-") && !wire.saw("handed-"));
    assert!(refused(&daemon).await > 0);

    // The end of it, orderly and otherwise, leaves nothing in the way.
    daemon.stop().await.succeeded();
    by("stopped").await.succeeded();
    wire.sees("stopped-udp").await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    daemon
        .eventually("it is fenced again", async || fences(&daemon).await == 1)
        .await;
    daemon.kill();
    let instance = daemon.instance.clone();
    daemon.running.finish().await;
    verb(&world, &world.origins, &["cleanup", &instance])
        .start()
        .finish()
        .await
        .succeeded();
    by("cleaned").await.succeeded();
    wire.sees("cleaned-udp").await;
}

/// Sends every kind of packet again and again until the file appears, and says so each time.
const IN_A_LOOP: &str = r#"
while not os.path.exists(sys.argv[1]):
    packet_socket(attacks("looping"))
    print("round", flush=True)
"#;

async fn a_fence_of_another_layout_is_replaced_without_a_gap() {
    let (world, before) = world().await;
    let _good = world.http("good.test").await;
    let attack = program(&world, "attack", r#"packet_socket(attacks(sys.argv[1]))"#);
    unopposed(&world, &attack.clone().arg("unopposed")).await;
    before.sees("unopposed-udp").await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;
    let wire = Wire::tap(&world.origins, PROTOCOLS).await;
    let stop = world.path("enough");
    let looping = program(&world, "looping", IN_A_LOOP).arg(&stop);
    let looping = world.start_in(&world.client, &daemon.tree.join("a"), &looping);
    looping.says("round").await;

    daemon.kill();
    daemon.note_layout(4711);
    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    daemon.running.complains("of another layout").await;
    assert_eq!(fences(&daemon).await, 1);
    let rounds = looping.stdout().lines().count();
    looping.says(&"round\n".repeat(rounds + 3)).await;

    world.file("enough", "");
    looping.finish().await.succeeded();
    settle(&world, &wire, "settled").await;
    assert!(!wire.saw("looping-"));
    assert!(refused(&daemon).await > 0);
    assert_eq!(daemon.run("a", &world.client, &good(&world)).await.text(), "200");
    // What the agents before have left would be in the way now.
    daemon.stop().await.succeeded();
    world
        .start_in(&world.client, world.cgroup.path(), &attack.arg("stopped"))
        .finish()
        .await
        .succeeded();
    wire.sees("stopped-udp").await;
}

/// Asks good.test for its status code.
fn good(world: &World) -> Client {
    egress_tests::clients::curl(world)
        .words("--ipv4 --output /dev/null --write-out %{http_code} http://good.test/")
}

async fn a_fence_that_somebody_takes_away_is_put_back() {
    let (world, wire) = world().await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _member = daemon.fenced(&world.client).await;

    let pins = daemon.pins().display().to_string();
    let take_away = shell(&format!(
        "for pin in {pins}/egress_fence_*; do [ -e $pin ] || exec {} filter del dev to-client2 ingress; {} link detach \
         pinned $pin; done",
        tool("tc").display(),
        tool("bpftool").display()
    ));
    world
        .start_in(&world.origins, world.cgroup.path(), &take_away)
        .finish()
        .await
        .succeeded();

    daemon
        .eventually("it is repaired", async || {
            daemon.status().await.is_some_and(|status| status["repairs"] == 1)
        })
        .await;
    let attack = program(&world, "attack", r#"packet_socket(attacks("repaired"))"#);
    daemon.run("a", &world.client, &attack).await.succeeded();
    settle(&world, &wire, "settled").await;
    assert!(!wire.saw("repaired-"));
}

async fn a_fence_that_cannot_be_mended_keeps_nobody_from_the_others() {
    let (world, _wire) = world().await;
    let second = world.another_client("second", 3).await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let _first = daemon.fenced(&world.client).await;
    let _second = world.start_in(&second, &daemon.tree.join("a"), &shell("exec sleep 1000"));
    daemon
        .eventually("both are fenced", async || fences(&daemon).await == 2)
        .await;
    let of_fence = |name: &str| name.strip_prefix("egress_fence_")?.parse::<u32>().ok();
    let mut indices: Vec<u32> = fs::read_dir(daemon.pins())
        .expect("there are pins")
        .filter_map(|entry| of_fence(entry.ok()?.file_name().to_str()?))
        .collect();
    indices.sort_unstable();
    assert!(indices.len() >= 2, "{indices:?}");
    let [first, last] = [indices[0], indices[indices.len() - 1]]
        .map(|index| daemon.pins().join(format!("egress_fence_{index}")));
    let trouble = async || {
        let status = daemon.status().await.unwrap_or_default();
        !status["repair_error"].is_null()
    };

    fs::remove_file(&first).expect("its pin is there");
    fs::create_dir(&first).expect("its place is free");
    daemon.eventually("it is told", trouble).await;
    fs::remove_file(&last).expect("the other's pin is there");
    daemon
        .eventually("the other is mended", async || last.exists())
        .await;
    assert!(trouble().await);
    fs::remove_dir(&first).expect("it is empty");
    daemon
        .eventually("all is well", async || first.exists() && !trouble().await)
        .await;
    daemon.stop().await.succeeded();
}

async fn an_audited_workload_is_not_fenced() {
    let (world, wire) = world().await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let member = daemon.fenced(&world.client).await;
    let audit =
        egress_tests::daemon::policy("a", "team-a", "good.test").replace("spec:\n", "spec:\n  mode: Audit\n");

    world.file("policies/a.yaml", &audit);

    daemon
        .eventually("the fence is taken away", async || fences(&daemon).await == 0)
        .await;
    let attack = program(&world, "attack", r#"packet_socket(attacks("audited"))"#);
    daemon.run("a", &world.client, &attack).await.succeeded();
    wire.sees("audited-udp").await;
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(status["fences"]["not_fenced"].as_array().map(Vec::len), Some(0));
    drop(member);
}

async fn a_way_out_that_cannot_be_fenced_is_told() {
    let (world, _wire) = world().await;
    let elsewhere = Place::new("elsewhere");
    world
        .origins
        .ip(&format!(
            "link add link to-client2 name mv0 netns {} type macvlan mode bridge",
            elsewhere.net().display()
        ))
        .await;
    let daemon = Daemon::beyond(&world, CONFIG).await;
    let told = async |words: &[&str]| {
        let status = daemon.status().await.unwrap_or_default();
        let all = status["fences"]["not_fenced"].to_string();
        words.iter().all(|word| all.contains(word))
    };

    let member = world.start_in(
        &elsewhere,
        &daemon.tree.join("a"),
        &shell("echo here; exec sleep 1000"),
    );
    member.says("here").await;
    daemon
        .eventually("the macvlan is told", async || told(&["mv0", "macvlan"]).await)
        .await;
    let beside = world.start_in(
        &world.origins,
        &daemon.tree.join("a"),
        &shell("echo here; exec sleep 1000"),
    );
    beside.says("here").await;
    daemon
        .eventually("the machine's namespace is told", async || {
            told(&["mv0", "the machine's network namespace"]).await
        })
        .await;

    assert_eq!(fences(&daemon).await, 0);
}
