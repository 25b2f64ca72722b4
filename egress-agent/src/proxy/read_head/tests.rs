use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
};

use super::*;

const HELLO: &[u8] = include_bytes!("../../../testdata/client_hello/boringssl-as-chrome150.bin");
const EARLY_DATA: &[u8] = include_bytes!("../../../testdata/client_hello/openssl-3.0-early-data.bin");

/// Counts how often it is asked, and how often it had nothing.
struct Counted<S> {
    inner: S,
    polls: usize,
    pending: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.polls += 1;
        let answer = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.pending += usize::from(answer.is_pending());
        answer
    }
}

fn limits() -> Limits {
    Limits::default()
}

/// What `read_head` finds in `bytes` if the client then closes.
async fn head(mut bytes: &[u8]) -> Head {
    read_head(&mut bytes, &limits(), now(), None).await
}

/// The paused clock of the test as [`Instant`].
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[tokio::test]
async fn each_protocol_is_found_and_its_bytes_are_kept() {
    let tls = head(HELLO).await;
    assert!(matches!(&tls.opening, Opening::Tls(hello) if hello.server_name.is_some()));
    assert_eq!(tls.received, HELLO);
    let early = head(EARLY_DATA).await;
    assert!(matches!(early.opening, Opening::Tls(_)));
    assert_eq!(early.received, EARLY_DATA, "early data is replayed too");
    for (bytes, opening) in [
        (&b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], Opening::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Opening::Http2),
        (b"SSH-2.0-x\r\n", Opening::Unreadable(Unreadable::Unknown)),
        (
            b"\x16\x03\x01\0\0",
            Opening::Unreadable(Unreadable::Tls(HelloRefusal::EmptyRecord)),
        ),
    ] {
        assert_eq!(
            head(bytes).await,
            Head {
                opening,
                received: Bytes::copy_from_slice(bytes)
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_comes_byte_by_byte_over_five_seconds_is_read_without_spinning() {
    let (mut client, ours) = duplex(1);
    let mut ours = Counted {
        inner: ours,
        polls: 0,
        pending: 0,
    };
    let gap = Duration::from_millis(4990) / u32::try_from(HELLO.len()).unwrap();
    let sending = tokio::spawn(async move {
        // On a schedule, since the timer rounds each sleep up to a millisecond.
        let start = tokio::time::Instant::now();
        for (index, byte) in (1..).zip(HELLO) {
            tokio::time::sleep_until(start + gap * index).await;
            client.write_all(&[*byte]).await.unwrap();
        }
        client
    });
    let head = read_head(&mut ours, &limits(), now(), None).await;
    assert!(matches!(head.opening, Opening::Tls(_)), "{:?}", head.opening);
    assert_eq!(head.received, HELLO);
    drop(sending.await.unwrap());
    assert_eq!(ours.polls - ours.pending, HELLO.len(), "one read for each byte");
    // One wake-up for each byte, one for the first poll and a few of the timer.
    assert!(
        ours.pending <= HELLO.len() + 64,
        "{} polls found nothing",
        ours.pending
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_too_slow_after_the_timeout() {
    let (client, mut ours) = duplex(64);
    let accepted = now();
    let head = read_head(&mut ours, &limits(), accepted, None).await;
    assert_eq!(
        head.opening,
        Opening::Unreadable(Unreadable::TooSlow(Protocol::Unknown))
    );
    assert_eq!(now() - accepted, limits().head_timeout);
    assert_eq!(head.received, "");
    let Opening::Unreadable(why) = head.opening else {
        unreachable!()
    };
    assert_eq!((why.outcome(), why.alert()), (Outcome::HeadTimeout, None));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_server_is_known_by_its_silence() {
    let silence = Duration::from_millis(300);
    let (client, mut ours) = duplex(64);
    let accepted = now();
    let head = read_head(&mut ours, &limits(), accepted, Some(silence)).await;
    assert_eq!(head.opening, Opening::Unreadable(Unreadable::Silent));
    assert_eq!(now() - accepted, silence);
    drop(client);

    let (client, mut ours) = duplex(64);
    drop(client);
    let head = read_head(&mut ours, &limits(), now(), Some(silence)).await;
    assert_eq!(
        head.opening,
        Opening::Unreadable(Unreadable::Gone(Protocol::Unknown))
    );
}

#[tokio::test(start_paused = true)]
async fn one_byte_is_enough_to_be_heard_to_the_end() {
    let silence = Duration::from_millis(300);
    let (mut client, mut ours) = duplex(4096);
    let sending = tokio::spawn(async move {
        client.write_all(&HELLO[..1]).await.unwrap();
        tokio::time::sleep(2 * silence).await;
        client.write_all(&HELLO[1..]).await.unwrap();
        client
    });
    let head = read_head(&mut ours, &limits(), now(), Some(silence)).await;
    assert!(matches!(head.opening, Opening::Tls(_)), "{:?}", head.opening);
    assert_eq!(head.received, HELLO);
    drop(sending.await.unwrap());

    // And all at once, well before the silence is over.
    let (mut client, mut ours) = duplex(4096);
    client.write_all(HELLO).await.unwrap();
    let head = read_head(&mut ours, &limits(), now(), Some(silence)).await;
    assert!(matches!(head.opening, Opening::Tls(_)), "{:?}", head.opening);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_counts_from_accept_and_half_a_hello_is_kept() {
    let (mut client, mut ours) = duplex(4096);
    client.write_all(&HELLO[..900]).await.unwrap();
    let accepted = now();
    tokio::time::advance(Duration::from_secs(3)).await;
    let head = read_head(&mut ours, &limits(), accepted, None).await;
    assert_eq!(
        head.opening,
        Opening::Unreadable(Unreadable::TooSlow(Protocol::Tls))
    );
    assert_eq!(now() - accepted, limits().head_timeout);
    assert_eq!(head.received, HELLO[..900]);
    let Opening::Unreadable(why) = head.opening else {
        unreachable!()
    };
    assert_eq!(
        why.alert(),
        Some(Alert::AccessDenied),
        "half a hello is answered in its own protocol"
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_with_what_it_had_said() {
    for (bytes, protocol) in [
        (&b""[..], Protocol::Unknown),
        (b"GE", Protocol::Unknown),
        (b"PRI * HTTP", Protocol::Unknown),
        (&HELLO[..3], Protocol::Tls),
        (&HELLO[..HELLO.len() - 1], Protocol::Tls),
    ] {
        let head = head(bytes).await;
        assert_eq!(head.opening, Opening::Unreadable(Unreadable::Gone(protocol)));
        assert_eq!(head.received, bytes);
    }
}

#[tokio::test]
async fn a_client_that_resets_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut ours, _) = listener.accept().await.unwrap();
    client.write_all(&HELLO[..100]).await.unwrap();
    let reading = tokio::spawn(async move { read_head(&mut ours, &limits(), Instant::now(), None).await });
    client.set_zero_linger().unwrap();
    drop(client);
    let head = reading.await.unwrap();
    assert!(
        matches!(head.opening, Opening::Unreadable(Unreadable::Gone(_))),
        "{:?}",
        head.opening
    );
}

#[tokio::test]
async fn no_more_than_the_bound_is_read() {
    let limits = Limits {
        head_bytes: 1000,
        ..limits()
    };
    // A hello that tells its length is refused at once; one in one-byte records cannot tell early.
    let mut dripping = Vec::new();
    for byte in [1, 0, 2, 0].into_iter().chain([3; 4000]) {
        dripping.extend_from_slice(&[22, 3, 1, 0, 1, byte]);
    }
    for bytes in [HELLO, &dripping] {
        let mut rest = bytes;
        let head = read_head(&mut rest, &limits, Instant::now(), None).await;
        assert_eq!(
            head.opening,
            Opening::Unreadable(Unreadable::Tls(HelloRefusal::TooLarge))
        );
        assert!(head.received.len() <= 1000, "{}", head.received.len());
        assert_eq!(head.received.len() + rest.len(), bytes.len());
    }
}

#[tokio::test]
async fn a_hello_of_exactly_the_bound_is_read() {
    let limits = Limits {
        head_bytes: HELLO.len(),
        ..limits()
    };
    let mut rest: &[u8] = &[HELLO, b"more"].concat();
    let head = read_head(&mut rest, &limits, Instant::now(), None).await;
    assert!(matches!(head.opening, Opening::Tls(_)));
    assert_eq!(rest, b"more");
}

#[tokio::test]
async fn bounds_below_a_request_line_do_not_stop_http() {
    let limits = Limits {
        head_bytes: 1,
        ..limits()
    };
    let mut bytes = &b"UPDATEREDIRECTREF / HTTP/1.1\r\n"[..];
    let head = read_head(&mut bytes, &limits, Instant::now(), None).await;
    assert_eq!(head.opening, Opening::Http1);
}
