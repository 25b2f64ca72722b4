//! Servers inside enforced workloads answer as before: what comes in from outside is not the enforcer's business.

use std::net::{IpAddr, SocketAddr};

use egress_tests::{
    agent::Running,
    clients::{Client, python},
    daemon::Daemon,
    lab::{CLIENT_V4, CLIENT_V6, World, ip},
    promises,
    require::Need,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Duration, timeout},
};

promises![
    a_tcp_server_answers_as_before,
    a_tcp_server_on_ipv6_answers_as_before: [Need::Ipv6],
    a_udp_server_answers_as_before,
    a_udp_server_on_all_addresses_answers_each_from_the_right_one: [Need::Ipv6],
    a_udp_server_that_connects_to_its_client_answers_as_before,
    a_udp_server_answers_many_clients,
    an_answer_to_somebody_who_has_not_asked_is_refused,
    servers_answer_while_the_agent_is_dead,
];

/// How long an answer may take on a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// Servers of one workload. TCP 7000: sends back what it gets. UDP 7001 (IPv4) and 7002 (all addresses of both families): the same,
/// by an unconnected socket. UDP 7003: by a socket that it connects to the client. UDP 7004: to the client, and to somebody else.
const SERVERS: &str = r#"
import errno, os, select, socket, sys
def bound(kind, family, address, port):
    s = socket.socket(family, kind)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_DGRAM and family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    s.bind((address, port))
    return s
listener = bound(socket.SOCK_STREAM, socket.AF_INET6, "::", 7000)
listener.listen(100)
plain = bound(socket.SOCK_DGRAM, socket.AF_INET, "192.0.2.2", 7001)
every = bound(socket.SOCK_DGRAM, socket.AF_INET6, "::", 7002)
polite = bound(socket.SOCK_DGRAM, socket.AF_INET, "192.0.2.2", 7003)
sly = bound(socket.SOCK_DGRAM, socket.AF_INET, "192.0.2.2", 7004)
print("serving", flush=True)
while True:
    ready, _, _ = select.select([listener, plain, every, polite, sly], [], [])
    for s in ready:
        if s is listener:
            connection, _ = s.accept()
            if os.fork() == 0:
                while data := connection.recv(65536): connection.sendall(data)
                os._exit(0)
            connection.close()
        elif s is every:
            data, ancillary, _, client = s.recvmsg(2048, 256)
            s.sendmsg([data], [(level, kind, value) for level, kind, value in ancillary], 0, client)
        elif s is polite:
            data, client = s.recvfrom(2048)
            answer = bound(socket.SOCK_DGRAM, socket.AF_INET, "192.0.2.2", 7003)
            answer.connect(client)
            answer.send(data)
        elif s is sly:
            data, client = s.recvfrom(2048)
            try:
                s.sendto(b"unasked", ("198.51.100.66", 9999))
                seen = b"sent"
            except OSError as error:
                seen = errno.errorcode[error.errno].encode()
            s.sendto(seen, client)
        else:
            data, client = s.recvfrom(2048)
            s.sendto(data, client)
"#;

fn servers(world: &World) -> Client {
    python(world, "servers", SERVERS)
}

/// The servers as the workload `a`, which may reach good.test and nothing else.
async fn serving<'w>(world: &'w World) -> (Daemon<'w>, Running<'w>) {
    let daemon = Daemon::start(world, "").await;
    let running = world.start_in(&world.client, &daemon.tree.join("a"), &servers(world));
    running.says("serving").await;
    assert_eq!(
        daemon.codes("a", &world.client).await,
        "200,403,",
        "it is enforced"
    );
    (daemon, running)
}

/// Sends `text` from `from` in the origins' namespace and returns what comes back, and from where.
async fn ask_by_udp(world: &World, from: &str, to: (&str, u16), text: &str) -> Option<(String, SocketAddr)> {
    let (from, to) = (SocketAddr::new(ip(from), 0), SocketAddr::new(ip(to.0), to.1));
    let text = text.to_owned();
    world
        .origins
        .run(async move {
            let socket = UdpSocket::bind(from).await.expect("a socket");
            socket.send_to(text.as_bytes(), to).await.expect("it is sent");
            let mut buffer = [0; 2048];
            let (length, source) = timeout(SOON, socket.recv_from(&mut buffer)).await.ok()?.ok()?;
            Some((String::from_utf8_lossy(&buffer[..length]).into_owned(), source))
        })
        .await
}

async fn ask_by_tcp(world: &World, to: IpAddr, length: usize) -> usize {
    world
        .origins
        .run(async move {
            let stream = TcpStream::connect(SocketAddr::new(to, 7000))
                .await
                .expect("it connects");
            let (mut reader, mut writer) = stream.into_split();
            let sending = tokio::spawn(async move {
                writer.write_all(&vec![b'x'; length]).await.expect("it takes all");
                writer.shutdown().await.expect("the end is sent");
            });
            let mut data = Vec::new();
            let read = timeout(SOON, reader.read_to_end(&mut data)).await;
            read.expect("it answers in time").expect("it answers");
            sending.await.expect("all is sent");
            data.len()
        })
        .await
}

async fn a_tcp_server_answers_as_before() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    for length in [1, 3_000_000] {
        assert_eq!(ask_by_tcp(&world, ip(CLIENT_V4), length).await, length);
    }
}

async fn a_tcp_server_on_ipv6_answers_as_before() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    assert_eq!(ask_by_tcp(&world, ip(CLIENT_V6), 100_000).await, 100_000);
}

async fn a_udp_server_answers_as_before() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    // From an address that no rule allows.
    let answer = ask_by_udp(&world, "198.51.100.66", (CLIENT_V4, 7001), "who is there").await;
    let (text, source) = answer.expect("an answer");
    assert_eq!((text.as_str(), source.ip()), ("who is there", ip(CLIENT_V4)));
}

async fn a_udp_server_on_all_addresses_answers_each_from_the_right_one() {
    let world = World::new().await;
    world.client.ip("addr add 192.0.2.77/24 dev eth0").await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    for (from, to) in [
        ("198.51.100.66", CLIENT_V4),
        ("198.51.100.66", "192.0.2.77"),
        ("2001:db8:1::66", CLIENT_V6),
    ] {
        let (text, source) = ask_by_udp(&world, from, (to, 7002), to).await.expect("an answer");
        assert_eq!((text.as_str(), source.ip()), (to, ip(to)));
    }
}

async fn a_udp_server_that_connects_to_its_client_answers_as_before() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    let answer = ask_by_udp(&world, "198.51.100.66", (CLIENT_V4, 7003), "connect to me").await;
    assert_eq!(answer.expect("an answer").0, "connect to me");
}

async fn a_udp_server_answers_many_clients() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    for number in 1..=250 {
        let from = format!("203.0.113.{number}");
        let answer = ask_by_udp(&world, &from, (CLIENT_V4, 7001), &from).await;
        assert_eq!(answer.expect("an answer").0, from);
    }
}

async fn an_answer_to_somebody_who_has_not_asked_is_refused() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (_daemon, _running) = serving(&world).await;
    let answer = ask_by_udp(&world, "203.0.113.9", (CLIENT_V4, 7004), "tell me").await;
    assert_eq!(answer.expect("an answer").0, "EPERM");
}

async fn servers_answer_while_the_agent_is_dead() {
    let world = World::new().await;
    let _good = world.http("good.test").await;
    let (daemon, _running) = serving(&world).await;
    daemon.kill();
    assert_eq!(ask_by_tcp(&world, ip(CLIENT_V4), 10_000).await, 10_000);
    let answer = ask_by_udp(&world, "198.51.100.66", (CLIENT_V4, 7001), "are you there").await;
    assert_eq!(answer.expect("an answer").0, "are you there");
    // For the sake of what it has left in the kernel.
    daemon.kill_and_succeed().await.stop().await.succeeded();
}
