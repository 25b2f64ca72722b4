//! A process of its own, because it measures the process.
#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream as Peer},
    thread,
};

use bytes::Bytes;
use egress_agent::proxy::{
    limits::Limits,
    tunnel::{Counters, pipes, tunnel},
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{net::TcpStream, sync::oneshot};

const TUNNELS: usize = 500;

/// Enough to go over to splice(2) in both directions.
const BLOCK: usize = 1024 * 1024;

/// Both ends of a tunnel.
type Ends = (Peer, Peer);

#[tokio::test]
async fn an_idle_tunnel_holds_its_two_sockets_and_no_buffer_however_much_it_has_moved() {
    let limits = Limits::default();
    let counters: Vec<Counters> = (0..TUNNELS).map(|_| Counters::default()).collect();
    let mut tunnels = FuturesUnordered::new();
    let mut open = |counters| {
        let ((client_leg, client), (origin_leg, origin)) = (leg(), leg());
        (
            tunnel(client_leg, origin_leg, Bytes::new(), &limits, counters),
            (client, origin),
        )
    };
    let (first, second) = counters.split_at(TUNNELS / 2);

    // What the worker and the peers need once is there before anything is measured.
    let (running, ends): (Vec<_>, Vec<_>) = first.iter().map(&mut open).unzip();
    tunnels.extend(running);
    let _open = exchange(&mut tunnels, ends).await;
    let (memory, files) = (resident(), descriptors());

    let (running, ends): (Vec<_>, Vec<_>) = second.iter().map(&mut open).unzip();
    tunnels.extend(running);
    let _open_too = exchange(&mut tunnels, ends).await;

    assert!(
        counters.iter().all(|counters| counters.spliced() > 0),
        "all went over to splice(2)"
    );
    assert_eq!(pipes().0, 0, "no pipe is held");
    // Two legs, and the two peers, which live in this process too.
    assert_eq!(descriptors() - files, second.len() * 4);
    let each = resident().saturating_sub(memory) / second.len();
    println!("{each} bytes of user memory for an idle tunnel");
    // The future and the runtime's part of two sockets make 2 KiB, the allocator's arenas vary by some more; a buffer
    // would be 256 KiB.
    assert!(each < 32 * 1024, "{each} bytes for an idle tunnel");
}

/// Moves a block each way through each tunnel in turn.
async fn exchange<F: Future>(tunnels: &mut FuturesUnordered<F>, ends: Vec<Ends>) -> Vec<Ends> {
    let (done, is_done) = oneshot::channel();
    thread::spawn(move || {
        for (client, origin) in &ends {
            pass(client, origin);
            pass(origin, client);
        }
        done.send(ends).unwrap();
    });
    tokio::select! {
        ends = is_done => ends.unwrap(),
        _ = tunnels.next() => panic!("a tunnel ended"),
    }
}

fn pass(mut from: &Peer, mut to: &Peer) {
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&vec![7; BLOCK]).unwrap());
        to.read_exact(&mut vec![0; BLOCK]).unwrap();
    });
}

fn leg() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::connect(listener.local_addr().unwrap()).unwrap();
    let leg = listener.accept().unwrap().0;
    leg.set_nonblocking(true).unwrap();
    (TcpStream::from_std(leg).unwrap(), peer)
}

/// Resident memory in bytes: the second number of proc_pid_statm(5), in pages.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
