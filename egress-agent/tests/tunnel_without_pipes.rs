//! A process of its own, because it takes its own file descriptors away.
#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream as Peer},
    thread,
};

use bytes::Bytes;
use egress_agent::{
    access_log::Ending,
    proxy::{
        limits::Limits,
        tunnel::{Counters, tunnel},
    },
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpStream;

const BULK: usize = 8 * 1024 * 1024;

#[tokio::test]
async fn a_process_without_descriptors_left_copies_instead_of_splicing() {
    let ((client_leg, mut client), (origin_leg, mut origin)) = (leg(), leg());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // What is open stays open; nothing more can be opened.
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    assert!(std::io::pipe().is_err(), "no pipe can be had");

    let peers = thread::spawn(move || {
        thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&vec![7; BULK]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            origin.read_to_end(&mut received).unwrap();
            drop(origin);
            received
        })
    });
    let counters = Counters::default();
    let ending = tunnel(
        client_leg,
        origin_leg,
        Bytes::new(),
        &Limits::default(),
        &counters,
    )
    .await;
    assert_eq!((ending, counters.spliced()), (Ending::Complete, 0));
    assert!(peers.join().unwrap() == vec![7; BULK]);
}

fn leg() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::connect(listener.local_addr().unwrap()).unwrap();
    let leg = listener.accept().unwrap().0;
    leg.set_nonblocking(true).unwrap();
    (TcpStream::from_std(leg).unwrap(), peer)
}
