//! HTTP/2 in clear, with prior knowledge: every stream is judged by its own authority.

use egress_tests::{
    agent::Format,
    bytes::{digest_of, digest_of_payload},
    clients::{curl, python},
    dns::Answer,
    lab::{World, ip},
    promises, squid_log,
};

promises![
    h2c_passes_and_is_logged_like_a_request,
    a_denied_stream_gets_a_403_and_the_others_go_on,
    an_upload_over_h2c_passes_whole,
];

async fn h2c_passes_and_is_logged_like_a_request() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let client = curl(&world)
        .words("--http2-prior-knowledge")
        .arg("http://good.test/bytes/1000000");

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    assert_eq!(
        digest_of(&output.succeeded().stdout),
        digest_of_payload(1_000_000)
    );
    let requests = origin.requests().await;
    assert_eq!(
        (requests[0].version.as_str(), requests[0].host.as_str()),
        ("HTTP/2.0", "good.test")
    );
    let line = squid_log::single(&output.log);
    assert_eq!(
        line.gist(),
        "GET http://good.test/bytes/1000000 200 TCP_MISS:HIER_DIRECT"
    );
    assert_eq!(line.version, "2.0");
}

/// curl opens one connection for two names at one address, if it may: `--parallel` with HTTP/2 and `--connect-to`.
async fn a_denied_stream_gets_a_403_and_the_others_go_on() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    for name in ["evil.test", "good.test"] {
        world.zone.set(name, Answer::Addresses(vec![ip("198.51.100.10")]));
    }
    let client = python(&world, "streams", STREAMS);

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    output.succeeded().printed("1 200\n3 403\n5 200\n");
    let hosts: Vec<String> = origin
        .requests()
        .await
        .into_iter()
        .map(|request| request.host)
        .collect();
    assert_eq!(hosts, ["good.test", "good.test"]);
    let mut gists: Vec<String> = squid_log::combined(&output.log)
        .iter()
        .map(squid_log::Line::gist)
        .collect();
    gists.sort();
    assert_eq!(
        gists,
        [
            "GET http://evil.test/ 403 TCP_DENIED:HIER_NONE",
            "GET http://good.test/ 200 TCP_MISS:HIER_DIRECT",
            "GET http://good.test/ 200 TCP_MISS:HIER_DIRECT"
        ]
    );
}

/// Three requests on one connection, in HPACK literals without indexing, and the status of each answer. The status is
/// read from HPACK's static table (8 is 200, 12 is 403 by name 8 and a literal), so that no library is needed.
const STREAMS: &str = r#"
import socket, struct
def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload
def literal(index, value):
    return bytes([index, len(value)]) + value.encode()
def request(authority):
    # :method GET, :scheme http, :path / are entries 2, 6 and 4 of the static table; :authority is entry 1.
    return b"\x82\x86\x84" + literal(0x01, authority)
s = socket.create_connection(("198.51.100.10", 80), timeout=10)
s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
for stream, authority in (1, "good.test"), (3, "evil.test"), (5, "good.test"):
    s.sendall(frame(1, 5, stream, request(authority)))
received, answers, ended = b"", {}, set()
def status(block):
    # Indexed :status 200..500, or a literal whose name is one of those entries.
    while block and block[0] & 0xe0 == 0x20: block = block[1:]
    known = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
    if block[0] & 0x80: return known[block[0] & 0x7f]
    length = block[1] & 0x7f
    value = block[2:2 + length]
    if block[1] & 0x80:
        # Huffman: the digits 0, 1, 2 have 5 bits, the others 6 (RFC 7541, appendix B).
        bits = "".join(f"{byte:08b}" for byte in value)
        codes = {"00000": "0", "00001": "1", "00010": "2", "011001": "3", "011010": "4", "011011": "5",
                 "011100": "6", "011101": "7", "011110": "8", "011111": "9"}
        text, at = "", 0
        while len(text) < 3:
            for size in 5, 6:
                if bits[at:at + size] in codes:
                    text += codes[bits[at:at + size]]; at += size; break
            else: raise SystemExit(f"status {value!r}")
        return int(text)
    return int(value)
while len(ended) < 3:
    part = s.recv(65536)
    if not part: raise SystemExit(f"closed: {answers} {ended}")
    received += part
    while len(received) >= 9:
        length = int.from_bytes(received[:3], "big")
        if len(received) < 9 + length: break
        kind, flags = received[3], received[4]
        stream = int.from_bytes(received[5:9], "big")
        payload, received = received[9:9 + length], received[9 + length:]
        if kind == 4 and not flags & 1: s.sendall(frame(4, 1, 0))
        if kind == 6 and not flags & 1: s.sendall(frame(6, 1, 0, payload))
        if kind == 1 and stream not in answers: answers[stream] = status(payload)
        if kind == 3: raise SystemExit(f"stream {stream} was reset: {payload.hex()}")
        if kind == 7: raise SystemExit(f"goaway: {payload!r}")
        if kind in (0, 1) and flags & 1: ended.add(stream)
for stream in sorted(answers): print(stream, answers[stream])
"#;

async fn an_upload_over_h2c_passes_whole() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let file = world.file("upload", &"stream by stream ".repeat(200_000));
    let client = curl(&world)
        .words("--http2-prior-knowledge --upload-file")
        .arg(&file)
        .arg("http://good.test/hash");

    let output = world.exec().allow("good.test").run(&client).await;

    let digest = digest_of(&std::fs::read(file).unwrap_or_default());
    output.succeeded().printed(&format!("{digest}\n"));
    assert_eq!(origin.requests().await[0].body, Some(digest));
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}
