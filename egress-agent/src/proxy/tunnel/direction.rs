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

use super::{
    copy::{self, Received},
    splice::{Filled, Pipe},
};
use crate::proxy::limits::Limits;

/// Bytes that one direction may move before the other tunnels of the worker have their turn. Some 100 us of copying.
const BUDGET: u64 = 512 * 1024;

/// A fill of less than this many bytes costs more by splice(2) than by copying, which needs a system call less.
const SMALL: usize = 16 * 1024;

/// So many small fills one after the other send a direction back to copying.
const SMALL_IN_A_ROW: u8 = 16;

/// One direction.
pub(super) struct Direction<'a, S> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    count: Count<'a>,
    limits: &'a Limits,
    /// Received and not taken by `to` yet.
    held: Bytes,
    /// In use, or with bytes that `to` has not taken yet.
    pipe: Option<Pipe>,
    /// Bytes copied since the beginning or since splicing was last given up.
    copied: u64,
    /// Small fills one after the other.
    small: u8,
    sniffer: Option<S>,
    state: State,
}

/// Where a direction counts what it has moved.
#[derive(Clone, Copy)]
pub(super) struct Count<'a> {
    pub(super) moved: &'a AtomicU64,
    pub(super) spliced: &'a AtomicU64,
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
        count: Count<'a>,
        limits: &'a Limits,
        prefix: Bytes,
        sniffer: Option<S>,
    ) -> Self {
        Self {
            from,
            to,
            count,
            limits,
            held: prefix,
            pipe: None,
            copied: 0,
            small: 0,
            sniffer,
            state: State::Flowing,
        }
    }

    /// Moves what can be moved now. Between two turns it keeps nothing, unless the sink is behind.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Moved> {
        if self.state == State::Finished {
            return Poll::Ready(Moved::All);
        }
        let moved = self.turn(cx);
        if self.pipe.as_ref().is_some_and(Pipe::is_empty) {
            self.pipe = None;
        }
        moved
    }

    /// Moves what the kernel has of a source that has failed, as far as the sink takes it at once. The failure was seen
    /// on the other direction, so the runtime may not know yet that there is something to read, and what looks like the
    /// end is none and is not passed on.
    pub(super) fn drain(&mut self) {
        // What is behind, or a sink that has gone as well, ends it: the sink is about to be reset.
        if let Err(error) = self.try_drain() {
            tracing::trace!(%error, "not all of a failed source's bytes passed on");
        }
    }

    fn try_drain(&mut self) -> io::Result<()> {
        while !self.held.is_empty() {
            let sent = copy::send_now(self.to, &self.held)?;
            self.held.advance(sent);
            self.add(sent);
        }
        while let Some(pipe) = &mut self.pipe
            && !pipe.is_empty()
        {
            let sent = pipe.empty_now(self.to)?;
            if sent == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.add(sent);
        }
        copy::with_buffer(|buffer| {
            loop {
                let received = copy::receive_now(self.from, buffer)?;
                let mut rest = buffer.get(..received).unwrap_or_default();
                if rest.is_empty() {
                    return Ok(());
                }
                while !rest.is_empty() {
                    let sent = copy::send_now(self.to, rest)?;
                    self.add(sent);
                    rest = rest.get(sent..).unwrap_or_default();
                }
            }
        })
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Moved> {
        let start = self.count.moved.load(Ordering::Relaxed);
        loop {
            // Before anything is received: what cannot be passed on stays in the source's receive buffer, where it stops
            // the sender.
            if ready!(self.flush(cx)).is_err() {
                return Poll::Ready(Moved::Lost(Side::Sink));
            }
            if self.state == State::LastBytes {
                return Poll::Ready(self.finish());
            }
            if self.count.moved.load(Ordering::Relaxed).wrapping_sub(start) >= BUDGET {
                return Poll::Ready(Moved::Budget);
            }
            if ready!(self.from.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Moved::Lost(Side::Source));
            }
            if let Err(side) = self.receive() {
                return Poll::Ready(Moved::Lost(side));
            }
        }
    }

    /// Sends what is held, and waits until more could be sent.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.to.poll_write_ready(cx))?;
            if !self.held.is_empty() {
                let sent = copy::send(self.to, &self.held)?;
                self.held.advance(sent);
                self.add(sent);
            } else if let Some(pipe) = &mut self.pipe
                && !pipe.is_empty()
            {
                let sent = pipe.empty(self.to)?;
                self.add(sent);
                self.count.spliced.fetch_add(sent as u64, Ordering::Relaxed);
            } else {
                // An emptied Bytes would keep its memory.
                self.held = Bytes::new();
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn receive(&mut self) -> Result<(), Side> {
        if self.copied >= self.limits.splice_after && self.sniffer.is_none() {
            if self.pipe.is_none() {
                self.pipe = Pipe::take(self.limits.pipes);
            }
            if self.pipe.is_some() {
                return self.fill();
            }
            // None to be had: asked for again after as many bytes more.
            self.copied = 0;
        }
        self.copy()
    }

    /// Fills the pipe; [`Self::flush`] empties it.
    fn fill(&mut self) -> Result<(), Side> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        match pipe.fill(self.from).map_err(|_gone| Side::Source)? {
            Filled::Nothing => {}
            Filled::End => self.state = State::LastBytes,
            Filled::Bytes(bytes) if bytes >= SMALL => self.small = 0,
            Filled::Bytes(_) => {
                self.small += 1;
                if self.small >= SMALL_IN_A_ROW {
                    self.small = 0;
                    self.copied = 0;
                }
            }
        }
        Ok(())
    }

    /// Receives once and sends at once; holds the rest.
    fn copy(&mut self) -> Result<(), Side> {
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
            self.copied = self.copied.saturating_add(received.len() as u64);
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

    fn add(&self, bytes: usize) {
        self.count.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
