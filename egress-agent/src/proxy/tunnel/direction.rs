//! One direction of a tunnel: what one leg receives is sent to the other.

use std::{
    io,
    net::Shutdown,
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::copy::{self, Received};

/// Bytes that one direction may move before the other tunnels of the worker have their turn. Some 100 us of copying.
const BUDGET: u64 = 512 * 1024;

/// One direction.
pub(super) struct Direction<'a, S> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    moved: &'a AtomicU64,
    /// Received and not taken by `to` yet.
    held: Bytes,
    sniffer: Option<S>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    /// `from` has finished; what is held has to go out before `to` is told.
    LastBytes,
    Finished,
}

/// What came of a turn.
pub(super) enum Moved {
    /// Everything, and the end has been passed on.
    All,
    /// As much as a turn may move.
    Budget,
    /// A leg has failed.
    Lost(Side),
}

/// Which leg, seen from the direction.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Source,
    Sink,
}

impl<'a, S: FnMut(&[u8]) -> ControlFlow<()>> Direction<'a, S> {
    pub(super) fn new(
        from: &'a TcpStream,
        to: &'a TcpStream,
        moved: &'a AtomicU64,
        prefix: Bytes,
        sniffer: Option<S>,
    ) -> Self {
        Self {
            from,
            to,
            moved,
            held: prefix,
            sniffer,
            state: State::Flowing,
        }
    }

    /// Moves what can be moved now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Moved> {
        if self.state == State::Finished {
            return Poll::Ready(Moved::All);
        }
        let start = self.count();
        loop {
            // Before anything is received: what cannot be passed on stays in the source's receive buffer, where it stops
            // the sender.
            if ready!(self.flush(cx)).is_err() {
                return Poll::Ready(Moved::Lost(Side::Sink));
            }
            if self.state == State::LastBytes {
                return Poll::Ready(self.finish());
            }
            if self.count().wrapping_sub(start) >= BUDGET {
                return Poll::Ready(Moved::Budget);
            }
            if ready!(self.from.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Moved::Lost(Side::Source));
            }
            match self.pass() {
                Ok(()) => {}
                Err(side) => return Poll::Ready(Moved::Lost(side)),
            }
        }
    }

    /// Moves what is already there and will move without waiting; for when the source has failed and no more will come.
    pub(super) fn drain(&mut self, cx: &mut Context<'_>) {
        while matches!(self.poll(cx), Poll::Ready(Moved::Budget)) {}
    }

    /// Sends what is held and waits until more could be sent.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.to.poll_write_ready(cx))?;
            if self.held.is_empty() {
                // Also gives the memory back.
                self.held = Bytes::new();
                return Poll::Ready(Ok(()));
            }
            let sent = copy::send(self.to, &self.held)?;
            self.held.advance(sent);
            self.add(sent);
        }
    }

    /// Receives once and sends at once; holds the rest.
    fn pass(&mut self) -> Result<(), Side> {
        copy::with_buffer(|buffer| {
            let received = match copy::receive(self.from, buffer) {
                Ok(Received::Bytes(received)) => received,
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::End) => {
                    self.state = State::LastBytes;
                    return Ok(());
                }
                Err(_) => return Err(Side::Source),
            };
            if let Some(sniffer) = &mut self.sniffer
                && sniffer(received).is_break()
            {
                self.sniffer = None;
            }
            let sent = copy::send(self.to, received).map_err(|_gone| Side::Sink)?;
            self.add(sent);
            let (_, rest) = received.split_at_checked(sent).unwrap_or_default();
            self.held = Bytes::copy_from_slice(rest);
            Ok(())
        })
    }

    fn finish(&mut self) -> Moved {
        self.state = State::Finished;
        match SockRef::from(self.to).shutdown(Shutdown::Write) {
            Ok(()) => Moved::All,
            Err(_) => Moved::Lost(Side::Sink),
        }
    }

    fn count(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
