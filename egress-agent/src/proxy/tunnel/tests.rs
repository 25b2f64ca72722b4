use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Both ends of a tunnel that runs beside the test.
struct Ends {
    client: TcpStream,
    origin: TcpStream,
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

/// Runs `test` at the ends of a tunnel, and gives its result with what became of the tunnel.
async fn tunnelled<T>(
    limits: &Limits,
    prefix: &'static [u8],
    test: impl AsyncFnOnce(Ends) -> T,
) -> (T, Ending, Counters) {
    let (client, client_leg) = connected().await;
    let (origin_leg, origin) = connected().await;
    let counters = Counters::default();
    let (ending, result) = tokio::join!(
        tunnel(
            client_leg,
            origin_leg,
            Bytes::from_static(prefix),
            limits,
            &counters
        ),
        test(Ends { client, origin }),
    );
    (result, ending, counters)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

#[test]
fn the_bytes_read_before_come_first_and_each_half_close_is_passed_on_alone() {
    let (answer, ending, counters) = run(tunnelled(&Limits::default(), b"hello ", async |mut ends| {
        ends.client.write_all(b"world").await.unwrap();
        ends.client.shutdown().await.unwrap();
        let mut request = String::new();
        ends.origin.read_to_string(&mut request).await.unwrap();
        ends.origin
            .write_all(request.to_uppercase().as_bytes())
            .await
            .unwrap();
        drop(ends.origin);
        let mut answer = String::new();
        ends.client.read_to_string(&mut answer).await.unwrap();
        answer
    }));
    assert_eq!((answer.as_str(), ending), ("HELLO WORLD", Ending::Complete));
    assert_eq!((counters.to_origin(), counters.to_client()), (11, 11));
}

#[test]
fn a_reset_is_passed_on_as_a_reset_both_ways() {
    for client_resets in [true, false] {
        let (seen, ending, _) = run(tunnelled(&Limits::default(), b"", async |mut ends| {
            ends.client.write_all(b"x").await.unwrap();
            assert_eq!(ends.origin.read_u8().await.unwrap(), b'x');
            let (gone, mut left) = if client_resets {
                (ends.client, ends.origin)
            } else {
                (ends.origin, ends.client)
            };
            gone.set_zero_linger().unwrap();
            drop(gone);
            left.read_u8().await.unwrap_err().kind()
        }));
        assert_eq!(seen, io::ErrorKind::ConnectionReset);
        assert_eq!(
            ending,
            if client_resets {
                Ending::ClientAborted
            } else {
                Ending::OriginAborted
            }
        );
    }
}
