//! No window: workloads that are born and connect before anybody can know them.

use std::{collections::BTreeMap, fs, time::Instant};

use egress_tests::{
    clients::python,
    daemon::{Daemon, policy},
    lab::World,
    origins::RawConnection,
    promises,
};
use tokio::net::UdpSocket;

promises![a_thousand_workloads_that_connect_first_thing_let_nothing_out: alone];

/// How many there are, and how many of them in network namespaces of their own, each with a cable to the origins.
const WORKLOADS: usize = 1000;
const APART: usize = 20;

/// Each workload is a process that enters a cgroup of its own, made that very moment, and dials: by turns an allowed host, a
/// forbidden host, a forbidden port, and a forbidden datagram.
const SPAWNER: &str = r#"
import collections, ctypes, errno, json, os, select, socket, subprocess, sys
tree, origins, workloads, apart = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
socket.setdefaulttimeout(30)

def fetch(address, host):
    s = socket.create_connection((address, 80))
    s.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return s.recv(65536)[9:12].decode()

def forbidden_port():
    # A cgroup that is not known yet is redirected, whatever the port, and refused when it is known.
    s = socket.create_connection(("198.51.100.66", 8080))
    s.sendall(b"evil")
    return "answered" if s.recv(100) else "ECONNRESET"

def datagram():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"evil", ("198.51.100.66", 9999))
    return "sent"

ACTS = [("allowed", lambda: fetch("198.51.100.10", "good.test")), ("denied", lambda: fetch("198.51.100.66", "evil.test")),
        ("port", forbidden_port), ("datagram", datagram)]

def ip(net, *lines):
    subprocess.run(["nsenter", f"--net={net}", "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)

def cable(number, process):
    "A network namespace's way out: 198.19.N.2, and the origins at 198.19.N.1."
    near, device = f"198.19.{number}.1", f"apart{number}"
    ip(origins, f"link add {device} type veth peer name eth0 netns {process}", f"addr add {near}/24 dev {device}",
       f"link set {device} up")
    ip(f"/proc/{process}/ns/net", "link set lo up", f"addr add 198.19.{number}.2/24 dev eth0", "link set eth0 up",
       f"route add default via {near}")

class Workload:
    def __init__(self, number):
        self.number, self.act = number, ACTS[number % 4]
        self.directory = f"{tree}/w{number}"
        self.result, result = os.pipe()
        is_apart, go = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            if number < apart:
                libc.unshare(0x40000000)
                os.write(is_apart[1], b"x")
                os.read(go[0], 1)
            with open(f"{self.directory}/cgroup.procs", "w") as file:
                # From here on it is a workload, and its next act is to dial.
                file.write("0")
            try:
                seen = self.act[1]()
            except TimeoutError:
                seen = "timeout"
            except OSError as error:
                seen = errno.errorcode.get(error.errno, str(error))
            os.write(result, seen.encode())
            os._exit(0)
        os.close(result)
        if number < apart:
            os.read(is_apart[0], 1)
            cable(number, self.process)
            os.write(go[1], b"x")
        for end in is_apart + go: os.close(end)

    def end(self):
        seen = os.read(self.result, 100).decode() or "died"
        os.close(self.result)
        os.waitpid(self.process, 0)
        os.rmdir(self.directory)
        return self.act[0], seen

seen, living, next = collections.Counter(), {}, 0
while next < workloads or living:
    while next < workloads and len(living) < 20:
        os.mkdir(f"{tree}/w{next}")
        workload = Workload(next)
        living[workload.result] = workload
        next += 1
    ready, _, _ = select.select(list(living), [], [])
    for descriptor in ready:
        act, word = living.pop(descriptor).end()
        seen[f"{act} {word}"] += 1
print(json.dumps(seen))
"#;

async fn a_thousand_workloads_that_connect_first_thing_let_nothing_out() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let evil = world.http("evil.test").await;
    let port = world.raw("evil.test", 8080, RawConnection::stall).await;
    let datagrams = world
        .origins
        .run(async { UdpSocket::bind("198.51.100.66:9999").await.expect("a socket") })
        .await;
    world.file("policies/default.yaml", &policy("all", "default", "good.test"));
    let daemon = Daemon::start(&world, "").await;
    let outside = world.cgroup.child("outside");
    let spawner = python(&world, "spawner", SPAWNER)
        .arg(&daemon.tree)
        .arg(world.origins.net())
        .args([WORKLOADS.to_string(), APART.to_string()]);

    let begun = Instant::now();
    let output = world.start_in(&world.client, &outside, &spawner).finish().await;
    let took = begun.elapsed();

    let seen: BTreeMap<String, usize> = serde_json::from_str(&output.succeeded().text()).unwrap_or_default();
    let quarter = WORKLOADS / 4;
    for (act, words) in [
        ("allowed", &["200"][..]),
        ("denied", &["403"]),
        ("port", &["EPERM", "ECONNRESET"]),
        ("datagram", &["EPERM"]),
    ] {
        let as_wanted = words.iter().filter_map(|word| seen.get(&format!("{act} {word}")));
        assert_eq!(
            as_wanted.sum::<usize>(),
            quarter,
            "{act}: {seen:?} after {took:?}"
        );
    }
    assert_eq!(good.requests().await.len(), quarter);
    evil.was_never_reached().await;
    port.was_never_reached().await;
    // The first datagram that arrives is the lab's own.
    let first = world
        .origins
        .run(async move {
            let own = UdpSocket::bind("198.51.100.66:0").await.expect("a socket");
            own.send_to(b"mine", "198.51.100.66:9999")
                .await
                .expect("it is sent");
            let mut buffer = [0; 100];
            let length = datagrams.recv(&mut buffer).await.expect("it arrives");
            buffer[..length].to_vec()
        })
        .await;
    assert_eq!(first, b"mine");
    let text = fs::read_to_string(world.path("log.json")).expect("the log");
    let allowed = text
        .lines()
        .filter(|line| line.contains("\"allowed_by_rule\""))
        .count();
    assert_eq!(allowed, quarter, "each is on record");
    println!("{WORKLOADS} workloads, {APART} of them in namespaces of their own, in {took:?}");
    assert!(
        world
            .agent_dns
            .names_asked()
            .iter()
            .all(|name| name == "good.test")
    );
    daemon.stop().await.succeeded();
}
