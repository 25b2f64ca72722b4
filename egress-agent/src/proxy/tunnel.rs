//! Bytes between a client and an origin, both ways, until both have finished or one of them has gone.
//!
//! The two legs are made to look like one connection: a half-close is passed on when everything before it has been, a
//! reset is passed on as a reset, and a reader that does not read stops the writer on the other side. Between two wake-ups
//! a tunnel holds nothing but its two sockets, unless a reader is behind.

mod copy;
mod direction;
mod splice;

use std::{
    ops::ControlFlow,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{self, Instant},
};

use self::direction::{Count, Direction, Moved, Side};
pub use self::splice::pipes;
use super::limits::Limits;
use crate::access_log::{ByteCounts, Ending};

/// The idle time is cut into so many parts, and a tunnel counts those in which nothing moved: so no read or write has to
/// look at the clock. It ends after the idle time and at most one part more.
const IDLE_PARTS: u32 = 4;

/// Bytes moved by a tunnel, readable while it runs.
#[derive(Debug, Default)]
pub struct Counters {
    to_client: AtomicU64,
    to_origin: AtomicU64,
    spliced: AtomicU64,
}

/// Bytes that were already read from one leg and belong to the other: passed on first, and counted.
#[derive(Debug, Clone, Default)]
pub struct Prefixes {
    /// Read from the client: a ClientHello.
    pub to_origin: Bytes,
    /// Read from the origin: what came right behind a 101.
    pub to_client: Bytes,
}

impl ByteCounts for Counters {
    fn to_client(&self) -> u64 {
        self.to_client()
    }

    fn to_origin(&self) -> u64 {
        self.to_origin()
    }
}

impl Counters {
    /// Bytes that the client's socket has taken.
    #[must_use]
    pub fn to_client(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }

    /// Bytes that the origin's socket has taken.
    #[must_use]
    pub fn to_origin(&self) -> u64 {
        self.to_origin.load(Ordering::Relaxed)
    }

    /// How many of both went by splice(2).
    #[must_use]
    pub fn spliced(&self) -> u64 {
        self.spliced.load(Ordering::Relaxed)
    }

    const fn upload(&self) -> Count<'_> {
        Count {
            moved: &self.to_origin,
            spliced: &self.spliced,
        }
    }

    const fn download(&self) -> Count<'_> {
        Count {
            moved: &self.to_client,
            spliced: &self.spliced,
        }
    }
}

/// Tunnels until the end. `prefix` is what was already read from the client. If the future is dropped before its end, or
/// ends otherwise than [`Ending::Complete`], both legs are reset: a cut-off stream must not look finished.
///
/// A half-closed tunnel has no time limit of its own: it lives as long as bytes flow or the idle timeout allows. A client
/// that has closed for good is found by keepalive (see [`super::leg::KeepAlive`]), since its kernel forgets the
/// connection after a minute (tcp_fin_timeout) and answers the probe with a reset.
pub fn tunnel(
    client: TcpStream,
    origin: TcpStream,
    prefix: Bytes,
    limits: &Limits,
    counters: &Counters,
) -> impl Future<Output = Ending> {
    let prefixes = Prefixes {
        to_origin: prefix,
        to_client: Bytes::new(),
    };
    tunnel_with(client, origin, prefixes, limits, counters)
}

/// As [`tunnel`], for legs of which bytes of both sides were read.
pub fn tunnel_with(
    client: TcpStream,
    origin: TcpStream,
    prefixes: Prefixes,
    limits: &Limits,
    counters: &Counters,
) -> impl Future<Output = Ending> {
    let legs = Legs::new(client, origin);
    run(legs, prefixes, limits, counters, None::<NoSniffer>)
}

/// As [`tunnel`], and shows `sniffer` the client's further bytes just before they are passed on, piece by piece until it
/// breaks: for workloads whose verdicts are only recorded. Whatever the bytes are and whoever speaks first, nothing is held
/// back.
pub fn sniff(
    client: TcpStream,
    origin: TcpStream,
    prefix: Bytes,
    limits: &Limits,
    counters: &Counters,
    sniffer: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> impl Future<Output = Ending> {
    let legs = Legs::new(client, origin);
    let prefixes = Prefixes {
        to_origin: prefix,
        to_client: Bytes::new(),
    };
    run(legs, prefixes, limits, counters, Some(sniffer))
}

async fn run(
    mut legs: Legs,
    prefixes: Prefixes,
    limits: &Limits,
    counters: &Counters,
    sniffer: Option<impl FnMut(&[u8]) -> ControlFlow<()>>,
) -> Ending {
    let ending = drive(&legs, prefixes, limits, counters, sniffer).await;
    legs.complete = ending == Ending::Complete;
    ending
}

/// The type of a sniffer that is not there.
type NoSniffer = fn(&[u8]) -> ControlFlow<()>;

/// Both sockets. Dropped before `complete` is set, they are reset.
struct Legs {
    client: TcpStream,
    origin: TcpStream,
    complete: bool,
}

impl Legs {
    const fn new(client: TcpStream, origin: TcpStream) -> Self {
        Self {
            client,
            origin,
            complete: false,
        }
    }
}

impl Drop for Legs {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        for leg in [&self.client, &self.origin] {
            // Fails only for a socket that its peer has reset already.
            if let Err(error) = SockRef::from(leg).set_linger(Some(Duration::ZERO)) {
                tracing::trace!(%error, "cannot ask for a reset");
            }
        }
    }
}

async fn drive(
    legs: &Legs,
    prefixes: Prefixes,
    limits: &Limits,
    counters: &Counters,
    sniffer: Option<impl FnMut(&[u8]) -> ControlFlow<()>>,
) -> Ending {
    let Legs { client, origin, .. } = legs;
    let mut pair = Pair {
        upload: Direction::new(
            client,
            origin,
            counters.upload(),
            limits,
            prefixes.to_origin,
            sniffer,
        ),
        download: Direction::new(
            origin,
            client,
            counters.download(),
            limits,
            prefixes.to_client,
            None,
        ),
    };
    // The reset of a leg that is not read, because its bytes cannot be passed on yet, shows in these alone.
    let mut client_error = pin!(client.ready(Interest::ERROR));
    let mut origin_error = pin!(origin.ready(Interest::ERROR));
    let mut idle = Idle::new(limits.idle_timeout, counters);
    let mut part_over = pin!(time::sleep(idle.part));
    let mut wake = |cx: &mut Context<'_>| {
        if let Poll::Ready(pause) = pair.poll(cx) {
            return Poll::Ready(pause);
        }
        if client_error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Pause::End(Ending::ClientAborted));
        }
        if origin_error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Pause::End(Ending::OriginAborted));
        }
        while part_over.as_mut().poll(cx).is_ready() {
            if idle.is_over() {
                return Poll::Ready(Pause::End(Ending::IdleTimeout));
            }
            part_over.as_mut().reset(Instant::now() + idle.part);
        }
        Poll::Pending
    };
    loop {
        match std::future::poll_fn(&mut wake).await {
            Pause::End(ending) => return ending,
            // Not a plain wake of ourselves: that would run again before the worker has looked for events of others.
            Pause::Yield => tokio::task::yield_now().await,
        }
    }
}

/// Both directions.
struct Pair<'a, S> {
    upload: Direction<'a, S>,
    download: Direction<'a, NoSniffer>,
}

/// Why the work of a wake-up is over.
enum Pause {
    /// There is more to do, but it is the others' turn.
    Yield,
    /// The tunnel has ended.
    End(Ending),
}

impl<S: FnMut(&[u8]) -> ControlFlow<()>> Pair<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Pause> {
        let upload = self.upload.poll(cx);
        if let Poll::Ready(Moved::Lost(side)) = upload {
            return Poll::Ready(Pause::End(match side {
                Side::Source => Ending::ClientAborted,
                Side::Sink => {
                    self.download.drain();
                    Ending::OriginAborted
                }
            }));
        }
        let download = self.download.poll(cx);
        if let Poll::Ready(Moved::Lost(side)) = download {
            return Poll::Ready(Pause::End(match side {
                Side::Source => Ending::OriginAborted,
                Side::Sink => {
                    self.upload.drain();
                    Ending::ClientAborted
                }
            }));
        }
        match (upload, download) {
            (Poll::Ready(Moved::All), Poll::Ready(Moved::All)) => Poll::Ready(Pause::End(Ending::Complete)),
            (Poll::Ready(Moved::Budget), _) | (_, Poll::Ready(Moved::Budget)) => Poll::Ready(Pause::Yield),
            _ => Poll::Pending,
        }
    }
}

/// Counts the parts of the idle time in which nothing moved.
struct Idle<'a> {
    part: Duration,
    quiet: u32,
    seen: u64,
    counters: &'a Counters,
}

impl<'a> Idle<'a> {
    fn new(timeout: Duration, counters: &'a Counters) -> Self {
        Self {
            part: (timeout / IDLE_PARTS).max(Duration::from_millis(1)),
            quiet: 0,
            seen: 0,
            counters,
        }
    }

    /// To be asked once at the end of each part.
    fn is_over(&mut self) -> bool {
        let moved = self.counters.to_client().wrapping_add(self.counters.to_origin());
        if moved == self.seen {
            self.quiet += 1;
        } else {
            self.quiet = 0;
            self.seen = moved;
        }
        self.quiet >= IDLE_PARTS
    }
}

#[cfg(test)]
mod tests;
