//! The peers are blocking sockets on threads of their own; the tunnel runs on the test's thread as it would on a worker.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream as Peer},
    thread,
    time::Instant,
};

use super::*;
use crate::proxy::leg::LegSettings;

const MIB: u64 = 1024 * 1024;

/// Both ends of a tunnel.
struct Ends {
    client: Peer,
    origin: Peer,
}

/// What is left when a tunnel has ended.
struct Done<T> {
    result: T,
    ending: Ending,
    counters: Counters,
}

/// The leg to the client with its options, and the client.
fn client_leg() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    LegSettings::default().prepare_listener(&listener).unwrap();
    let client = Peer::connect(listener.local_addr().unwrap()).unwrap();
    ready(listener.accept().unwrap().0, client)
}

/// The leg to the origin with its options, and the origin.
fn origin_leg() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let leg = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    LegSettings::default().prepare_origin(&leg).unwrap();
    leg.connect(&listener.local_addr().unwrap().into()).unwrap();
    ready(leg.into(), listener.accept().unwrap().0)
}

/// The peer fails rather than waits for ever.
fn ready(leg: Peer, peer: Peer) -> (TcpStream, Peer) {
    leg.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    peer.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    (TcpStream::from_std(leg).unwrap(), peer)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

/// Runs `test` on another thread at the ends of a tunnel.
fn tunnelled<T: Send>(limits: &Limits, test: impl FnOnce(Ends) -> T + Send) -> Done<T> {
    thread::scope(|scope| {
        run(async {
            let (client_leg, client) = client_leg();
            let (origin_leg, origin) = origin_leg();
            let peers = scope.spawn(|| test(Ends { client, origin }));
            let counters = Counters::default();
            let ending = tunnel(client_leg, origin_leg, Bytes::new(), limits, &counters).await;
            assert_eq!(pipes().0, 0, "the ended tunnel has given its pipes back");
            Done {
                result: peers.join().unwrap(),
                ending,
                counters,
            }
        })
    })
}

/// Bytes that do not repeat within any window of a tunnel: lost, doubled or swapped ones cannot go unnoticed.
fn stream_of_bytes(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut state = seed | 1;
    move |buffer| {
        for chunk in buffer.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
    }
}

fn send_stream(mut to: &Peer, seed: u64, bytes: u64) {
    let mut next = stream_of_bytes(seed);
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..bytes / buffer.len() as u64 {
        next(&mut buffer);
        to.write_all(&buffer).unwrap();
    }
    to.shutdown(Shutdown::Write).unwrap();
}

fn expect_stream(mut from: &Peer, seed: u64, bytes: u64) {
    let mut next = stream_of_bytes(seed);
    let (mut expected, mut buffer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    for at in 0..bytes / buffer.len() as u64 {
        next(&mut expected);
        from.read_exact(&mut buffer).unwrap();
        assert!(buffer == expected, "wrong bytes in block {at}");
    }
    assert_eq!(
        from.read(&mut buffer).unwrap(),
        0,
        "the end follows the last byte"
    );
}

/// `bytes` each way at the same time, every byte checked.
fn exchange(ends: &Ends, seed: u64, bytes: u64) {
    thread::scope(|scope| {
        scope.spawn(|| send_stream(&ends.client, seed, bytes));
        scope.spawn(|| send_stream(&ends.origin, !seed, bytes));
        scope.spawn(|| expect_stream(&ends.origin, seed, bytes));
        expect_stream(&ends.client, !seed, bytes);
    });
}

/// Writes until nothing more is taken for a while; how much was.
fn write_until_blocked(mut to: &Peer) -> u64 {
    to.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = [7; 64 * 1024];
    let mut total = 0;
    loop {
        match to.write(&block) {
            Ok(taken) => total += taken as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return total,
            Err(error) => panic!("{error}"),
        }
    }
}

fn reset(peer: Peer) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
}

fn copying_only() -> Limits {
    Limits {
        splice_after: u64::MAX,
        ..Limits::default()
    }
}

#[test]
fn bulk_both_ways_arrives_intact_and_goes_by_splice_after_the_threshold() {
    let done = tunnelled(&Limits::default(), |ends| exchange(&ends, 1, 64 * MIB));
    assert_eq!(done.ending, Ending::Complete);
    assert_eq!(
        (done.counters.to_client(), done.counters.to_origin()),
        (64 * MIB, 64 * MIB)
    );
    // Each direction copies the first 256 KiB and at most one buffer more.
    assert!(
        done.counters.spliced() >= 127 * MIB,
        "{} spliced",
        done.counters.spliced()
    );
    assert!(
        pipes().1 <= 2,
        "the two directions had one pipe each, and they are kept"
    );
}

#[test]
fn bulk_both_ways_arrives_intact_by_copying_where_there_are_no_pipes() {
    let no_pipes = Limits {
        pipes: 0,
        ..Limits::default()
    };
    let done = tunnelled(&no_pipes, |ends| exchange(&ends, 2, 16 * MIB));
    assert_eq!((done.ending, done.counters.spliced()), (Ending::Complete, 0));
    assert_eq!(
        (done.counters.to_client(), done.counters.to_origin()),
        (16 * MIB, 16 * MIB)
    );
}

#[test]
fn single_bytes_pass_one_by_one_and_what_was_read_before_comes_first() {
    let seen = thread::scope(|scope| {
        run(async {
            let (client_leg, mut client) = client_leg();
            let (origin_leg, mut origin) = origin_leg();
            let peers = scope.spawn(move || {
                let mut first = [0; 12];
                origin.read_exact(&mut first).unwrap();
                client.set_nodelay(true).unwrap();
                for byte in 0..=255 {
                    client.write_all(&[byte]).unwrap();
                    let mut seen = [0];
                    origin.read_exact(&mut seen).unwrap();
                    assert_eq!(seen, [byte]);
                }
                first
            });
            let counters = Counters::default();
            let prefixes = Prefixes {
                to_origin: Bytes::from_static(b"ClientHello!"),
                to_client: Bytes::new(),
            };
            let ending = tunnel_with(client_leg, origin_leg, prefixes, &Limits::default(), &counters).await;
            assert_eq!((ending, counters.to_origin()), (Ending::Complete, 12 + 256));
            peers.join().unwrap()
        })
    });
    assert_eq!(&seen, b"ClientHello!");
}

#[test]
fn each_side_may_finish_first_and_the_other_still_speaks() {
    for client_first in [true, false] {
        let done = tunnelled(&Limits::default(), |ends| {
            let (mut first, mut second) = if client_first {
                (ends.client, ends.origin)
            } else {
                (ends.origin, ends.client)
            };
            first.write_all(b"question").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            let mut question = String::new();
            second.read_to_string(&mut question).unwrap();
            second.write_all(question.to_uppercase().as_bytes()).unwrap();
            drop(second);
            let mut answer = String::new();
            first.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(
            (done.result.as_str(), done.ending),
            ("QUESTION", Ending::Complete)
        );
    }
}

#[test]
fn a_reset_is_passed_on_as_a_reset_both_ways() {
    for client_resets in [true, false] {
        let done = tunnelled(&Limits::default(), |mut ends| {
            ends.client.write_all(b"x").unwrap();
            ends.origin.read_exact(&mut [0]).unwrap();
            let (gone, mut left) = if client_resets {
                (ends.client, ends.origin)
            } else {
                (ends.origin, ends.client)
            };
            reset(gone);
            left.read(&mut [0]).unwrap_err().kind()
        });
        assert_eq!(done.result, io::ErrorKind::ConnectionReset);
        let expected = if client_resets {
            Ending::ClientAborted
        } else {
            Ending::OriginAborted
        };
        assert_eq!(done.ending, expected);
    }
}

#[test]
fn a_reset_is_passed_on_also_while_the_other_side_does_not_read() {
    for limits in [Limits::default(), copying_only()] {
        let done = tunnelled(&limits, |ends| {
            write_until_blocked(&ends.origin);
            reset(ends.origin);
            // Nothing is read, so only the error state of the socket can tell.
            let deadline = Instant::now() + Duration::from_secs(10);
            while ends.client.take_error().unwrap().is_none() {
                assert!(Instant::now() < deadline, "no reset came");
                thread::yield_now();
            }
        });
        assert_eq!(done.ending, Ending::OriginAborted);
    }
}

#[test]
fn an_answer_sent_before_a_reset_still_arrives() {
    // The tunnel may learn of the reset by its own send, by its receive or by the event: many times, to see them all.
    for round in 0..200 {
        let done = tunnelled(&Limits::default(), |mut ends| {
            ends.client.write_all(&[0; 300_000]).unwrap();
            ends.origin.read_exact(&mut [0; 10]).unwrap();
            ends.origin.write_all(b"413").unwrap();
            // With bytes unread this sends a reset, as a server does that refuses an upload.
            drop(ends.origin);
            let mut answer = [0; 3];
            let read = ends.client.read_exact(&mut answer);
            (read.map(|()| answer), ends.client.read(&mut [0]))
        });
        let (answer, after) = done.result;
        assert_eq!(answer.unwrap(), *b"413", "round {round}");
        assert_eq!(
            after.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset,
            "round {round}"
        );
        assert_eq!(done.ending, Ending::OriginAborted, "round {round}");
    }
}

/// What the node may hold for a reader that is behind: receive buffer, pipe, send buffer.
const HELD_AT_MOST: u64 = 8 * MIB;

/// Leaves a peer little buffer of its own, so that what is under way is what the tunnel holds.
fn without_buffers(peer: &Peer) {
    let peer = SockRef::from(peer);
    peer.set_send_buffer_size(64 * 1024).unwrap();
    peer.set_recv_buffer_size(64 * 1024).unwrap();
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_within_a_few_megabytes() {
    for (limits, download) in [
        (Limits::default(), true),
        (Limits::default(), false),
        (copying_only(), true),
    ] {
        let done = tunnelled(&limits, |ends| {
            let (writer, mut reader) = if download {
                (&ends.origin, &ends.client)
            } else {
                (&ends.client, &ends.origin)
            };
            without_buffers(writer);
            without_buffers(reader);
            let held = write_until_blocked(writer);
            // Once it reads, everything is there.
            let (mut rest, mut buffer) = (held, vec![0; 64 * 1024]);
            while rest > 0 {
                rest -= reader.read(&mut buffer).unwrap() as u64;
            }
            held
        });
        assert_eq!(done.ending, Ending::Complete);
        println!("{} KiB held", done.result / 1024);
        assert!(done.result < HELD_AT_MOST, "{} bytes held", done.result);
    }
}

#[test]
fn a_slow_reader_never_falls_further_behind_than_a_few_megabytes() {
    let done = tunnelled(&Limits::default(), |ends| {
        without_buffers(&ends.origin);
        let written = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let block = [7; 64 * 1024];
                while written.load(Ordering::Relaxed) < 64 * MIB {
                    let taken = (&ends.origin).write(&block).unwrap();
                    written.fetch_add(taken as u64, Ordering::Relaxed);
                }
                ends.origin.shutdown(Shutdown::Write).unwrap();
            });
            let (mut read, mut behind, mut buffer) = (0, 0, vec![0; 64 * 1024]);
            loop {
                match (&ends.client).read(&mut buffer).unwrap() {
                    0 => return behind,
                    bytes => read += bytes as u64,
                }
                behind = behind.max(written.load(Ordering::Relaxed).saturating_sub(read));
                // A pace, not a wait: some 50 MB/s.
                thread::sleep(Duration::from_millis(1));
            }
        })
    });
    println!("{} KiB behind", done.result / 1024);
    // Its own receive buffer grows as it reads, to 6 MiB with the usual tcp_rmem, and is the workload's affair.
    assert!(
        done.result < HELD_AT_MOST + 6 * MIB,
        "{} bytes behind",
        done.result
    );
}

#[test]
fn two_hundred_tunnels_of_one_worker_keep_their_bytes_apart() {
    thread::scope(|scope| {
        run(async {
            let limits = Limits::default();
            let tunnels: futures_util::stream::FuturesUnordered<_> = (0..200)
                .map(|number| {
                    let (client_leg, client) = client_leg();
                    let (origin_leg, origin) = origin_leg();
                    scope.spawn(move || exchange(&Ends { client, origin }, number, MIB));
                    let limits = &limits;
                    async move {
                        let counters = Counters::default();
                        let ending = tunnel(client_leg, origin_leg, Bytes::new(), limits, &counters).await;
                        (ending, counters.to_client(), counters.to_origin())
                    }
                })
                .collect();
            let ends: Vec<_> = futures_util::StreamExt::collect(tunnels).await;
            assert_eq!(ends, vec![(Ending::Complete, MIB, MIB); 200]);
            assert_eq!(pipes().0, 0);
        });
    });
}

#[test]
fn a_bulk_tunnel_leaves_the_others_of_its_worker_their_turns() {
    let (limits, bulk, pings) = (Limits::default(), Counters::default(), Counters::default());
    thread::scope(|scope| {
        run(async {
            let (bulk_client_leg, bulk_client) = client_leg();
            let (bulk_origin_leg, bulk_origin) = origin_leg();
            let (client_leg, mut client) = client_leg();
            let (origin_leg, mut origin) = origin_leg();
            scope.spawn(move || {
                let block = [7; 256 * 1024];
                let mut to = &bulk_origin;
                while to.write_all(&block).is_ok() {}
            });
            scope.spawn(move || io::copy(&mut &bulk_client, &mut io::sink()).unwrap_or_default());
            let counters = &bulk;
            let overtaken = scope.spawn(move || {
                let mut overtaken = Vec::new();
                while counters.to_client() < 64 * MIB || overtaken.len() < 500 {
                    let before = counters.to_client();
                    client.write_all(&[0]).unwrap();
                    origin.read_exact(&mut [0]).unwrap();
                    overtaken.push(counters.to_client() - before);
                }
                overtaken.sort_unstable();
                overtaken
            });
            // The bulk never ends by itself: it is dropped when the other tunnel is done.
            tokio::select! {
                ending = tunnel(bulk_client_leg, bulk_origin_leg, Bytes::new(), &limits, &bulk) => {
                    panic!("{ending:?}")
                }
                ending = tunnel(client_leg, origin_leg, Bytes::new(), &limits, &pings) => assert_eq!(ending, Ending::Complete),
            }
            let overtaken = overtaken.join().unwrap();
            let median = overtaken[overtaken.len() / 2];
            println!(
                "{} KiB of bulk pass within a single byte's way, {:?} at worst",
                median / 1024,
                overtaken.last()
            );
            // One turn of the bulk and what it moves while the peers wake up; the worst case is the machine's.
            assert!(
                median < 8 * MIB,
                "{median} bytes passed before a single byte had its turn"
            );
        });
    });
}

#[test]
fn an_idle_tunnel_is_reset_and_one_in_which_bytes_move_is_not() {
    let limits = Limits {
        idle_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let done = tunnelled(&limits, |mut ends| {
        // Longer than the time limit altogether, each pause shorter.
        for _ in 0..8 {
            ends.client.write_all(b"x").unwrap();
            ends.origin.read_exact(&mut [0]).unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        let quiet_since = Instant::now();
        let errors = [&mut ends.client, &mut ends.origin].map(|peer| peer.read(&mut [0]).unwrap_err().kind());
        (errors, quiet_since.elapsed())
    });
    let (errors, waited) = done.result;
    assert_eq!(errors, [io::ErrorKind::ConnectionReset; 2]);
    assert_eq!((done.ending, done.counters.to_origin()), (Ending::IdleTimeout, 8));
    assert!(waited >= Duration::from_millis(250), "{waited:?}");
}

#[test]
fn a_tunnel_that_is_dropped_resets_both_sides() {
    run(async {
        let (client_leg, mut client) = client_leg();
        let (origin_leg, mut origin) = origin_leg();
        let (limits, counters) = (Limits::default(), Counters::default());
        let mut running = Box::pin(tunnel(client_leg, origin_leg, Bytes::new(), &limits, &counters));
        assert!(futures_util::poll!(&mut running).is_pending());
        drop(running);
        for peer in [&mut client, &mut origin] {
            assert_eq!(
                peer.read(&mut [0]).unwrap_err().kind(),
                io::ErrorKind::ConnectionReset
            );
        }
    });
}

#[test]
fn a_sniffer_sees_the_clients_first_bytes_and_delays_nobody() {
    let mut seen = Vec::new();
    thread::scope(|scope| {
        run(async {
            let (client_leg, mut client) = client_leg();
            let (origin_leg, mut origin) = origin_leg();
            scope.spawn(move || {
                // The server speaks first.
                origin.write_all(b"220 ready").unwrap();
                client.read_exact(&mut [0; 9]).unwrap();
                for _ in 0..3 {
                    client.write_all(b"EHLO").unwrap();
                    origin.read_exact(&mut [0; 4]).unwrap();
                }
            });
            let counters = Counters::default();
            let sniffer = |bytes: &[u8]| {
                seen.extend_from_slice(bytes);
                if seen.len() < 8 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let ending = sniff(
                client_leg,
                origin_leg,
                Bytes::new(),
                &Limits::default(),
                &counters,
                sniffer,
            )
            .await;
            assert_eq!((ending, counters.to_origin()), (Ending::Complete, 12));
        });
    });
    assert_eq!(seen, b"EHLOEHLO");
}
