//! The client's leg: the bytes already read are replayed, everything is counted, and what hyper says on its own account
//! is kept back.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{self, Instant},
};

use super::interim::Interim;

/// How long a closed connection is still read, so that a refusal is not torn down by a reset while its client is busy
/// sending (RFC 9112 section 9.6; nginx's `lingering_time` and `lingering_timeout`), and how much of it.
const LINGER_TOTAL: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(5);
const LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// The socket to the client and what is known of it. One task polls it at a time.
#[derive(Debug)]
pub(super) struct Client {
    stream: RefCell<TcpStream>,
    /// Read before hyper came: comes first.
    prefix: RefCell<Bytes>,
    read: Cell<u64>,
    written: Cell<u64>,
    /// The last write was cut short: nothing of ours may come between its parts.
    is_mid_write: Cell<bool>,
    /// The client has finished sending, or the socket has failed.
    is_gone: Cell<bool>,
    moved_at: Cell<Instant>,
    /// No request is being answered: whatever hyper writes now is its own bare answer to a head that it could not read.
    /// It is swallowed, because ours says more.
    is_muted: Cell<bool>,
    swallowed: RefCell<Vec<u8>>,
    /// How often hyper's own buffer was found empty.
    flushes: Cell<u64>,
    /// Somebody waits for the next flush.
    wakes_on_flush: Cell<bool>,
    /// The answer is over: what comes after the next flush is no part of it.
    mutes_on_flush: Cell<bool>,
    /// 1xx heads waiting to be sent.
    pub(super) interim: Interim,
}

/// What hyper reads and writes.
#[derive(Debug)]
pub(super) struct ClientIo(pub(super) Rc<Client>);

impl Client {
    pub(super) fn new(stream: TcpStream, prefix: Bytes) -> Rc<Self> {
        Rc::new(Self {
            read: Cell::new(prefix.len() as u64),
            stream: RefCell::new(stream),
            prefix: RefCell::new(prefix),
            written: Cell::new(0),
            is_mid_write: Cell::new(false),
            is_gone: Cell::new(false),
            moved_at: Cell::new(Instant::now()),
            is_muted: Cell::new(true),
            swallowed: RefCell::default(),
            flushes: Cell::new(0),
            wakes_on_flush: Cell::new(false),
            mutes_on_flush: Cell::new(false),
            interim: Interim::default(),
        })
    }

    /// Bytes that came from the client so far.
    pub(super) fn read(&self) -> u64 {
        self.read.get()
    }

    /// Bytes that the socket has taken so far.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// When a byte last moved, in either direction and on either leg.
    pub(super) fn moved_at(&self) -> Instant {
        self.moved_at.get()
    }

    pub(super) fn touch(&self) {
        self.moved_at.set(Instant::now());
    }

    /// Whether the client has closed its side or the socket has failed.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.get()
    }

    pub(super) fn mark_gone(&self) {
        self.is_gone.set(true);
    }

    /// A request is being answered from now on.
    pub(super) fn unmute(&self) {
        self.is_muted.set(false);
        self.mutes_on_flush.set(false);
    }

    /// The answer has been handed to hyper in full.
    pub(super) fn mute_after_flush(&self) {
        self.mutes_on_flush.set(true);
    }

    pub(super) fn is_muted(&self) -> bool {
        self.is_muted.get()
    }

    /// The status that hyper wanted to answer by itself, if it did: 400, 414 or 431.
    pub(super) fn swallowed_status(&self) -> Option<u16> {
        let swallowed = self.swallowed.borrow();
        let code = swallowed
            .strip_prefix(b"HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))?;
        std::str::from_utf8(code).ok()?.parse().ok()
    }

    /// A mark for [`Client::poll_flushed`].
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Ready once the socket has taken everything that hyper had to write since the mark was taken.
    pub(super) fn poll_flushed(&self, since: u64) -> Poll<()> {
        if self.flushes.get() > since {
            return Poll::Ready(());
        }
        self.wakes_on_flush.set(true);
        Poll::Pending
    }

    /// Sends what the origin said beforehand (1xx), unless hyper is in the middle of a write.
    pub(super) fn poll_interim(&self, cx: &mut Context<'_>) -> io::Result<()> {
        self.interim.register(cx.waker());
        while !self.is_mid_write.get() {
            let Some(mut head) = self.interim.take() else {
                return Ok(());
            };
            match Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, &head) {
                Poll::Ready(result) => {
                    let sent = result?;
                    self.count_written(sent);
                    head.advance(sent.min(head.len()));
                }
                Poll::Pending => {
                    self.interim.put_back(head);
                    return Ok(());
                }
            }
            self.interim.put_back(head);
        }
        Ok(())
    }

    /// Writes `bytes` and counts them; for what we say after hyper has finished.
    pub(super) async fn say(&self, mut bytes: Bytes) -> io::Result<()> {
        let mut socket = ClientSocket(self);
        socket.write_all_buf(&mut bytes).await
    }

    /// Ends our side and reads on until the client has ended its own, within bounds.
    pub(super) async fn linger(&self) {
        let mut socket = ClientSocket(self);
        if self.is_gone() || socket.shutdown().await.is_err() {
            return;
        }
        let drain = async {
            let mut scrap = vec![0; 16 * 1024];
            let mut left = LINGER_BYTES;
            while left > 0 && !self.is_gone() {
                match time::timeout(LINGER_PAUSE, socket.read(&mut scrap)).await {
                    Ok(Ok(count)) if count > 0 => left = left.saturating_sub(count as u64),
                    _ => return,
                }
            }
        };
        // Running out of time is as good an end as any.
        drop(time::timeout(LINGER_TOTAL, drain).await);
    }

    /// Makes the close that follows a reset, so that what was cut off does not look finished.
    pub(super) fn reset_on_close(&self) {
        if let Err(error) = SockRef::from(&*self.stream.borrow()).set_linger(Some(Duration::ZERO)) {
            tracing::trace!(%error, "cannot ask for a reset");
        }
    }

    /// The socket itself, for a tunnel. `None` while hyper still holds it.
    pub(super) fn into_stream(self: Rc<Self>) -> Option<TcpStream> {
        Rc::into_inner(self).map(|client| client.stream.into_inner())
    }

    fn count_written(&self, count: usize) {
        self.written.set(self.written.get() + count as u64);
        self.touch();
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut prefix = self.prefix.borrow_mut();
        if !prefix.is_empty() {
            let count = prefix.len().min(buffer.remaining());
            buffer.put_slice(&prefix.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        match &result {
            Poll::Ready(Ok(())) if count > 0 || buffer.remaining() == 0 => {
                self.read.set(self.read.get() + count as u64);
                self.touch();
            }
            Poll::Ready(_) => self.is_gone.set(true),
            Poll::Pending => {}
        }
        result
    }

    /// Bookkeeping behind a write of `offered` bytes.
    fn wrote(&self, offered: usize, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(count)) => {
                self.count_written(*count);
                self.is_mid_write.set(*count < offered);
            }
            Poll::Ready(Err(_)) => self.is_gone.set(true),
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let client = &*self.0;
        if client.is_muted.get() {
            client.swallowed.borrow_mut().extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut *client.stream.borrow_mut()).poll_write(cx, bytes);
        client.wrote(bytes.len(), &result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let client = &*self.0;
        let offered = pieces.iter().map(|piece| piece.len()).sum();
        if client.is_muted.get() {
            let mut swallowed = client.swallowed.borrow_mut();
            for piece in pieces {
                swallowed.extend_from_slice(piece);
            }
            return Poll::Ready(Ok(offered));
        }
        let result = Pin::new(&mut *client.stream.borrow_mut()).poll_write_vectored(cx, pieces);
        client.wrote(offered, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let client = &*self.0;
        // hyper calls this when its own buffer is empty. A TCP socket has nothing to flush.
        client.flushes.set(client.flushes.get() + 1);
        if client.mutes_on_flush.take() {
            client.is_muted.set(true);
        }
        if client.wakes_on_flush.take() {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `linger` does it.
        Poll::Ready(Ok(()))
    }
}

/// The socket without hyper's manners.
struct ClientSocket<'a>(&'a Client);

impl AsyncRead for ClientSocket<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientSocket<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes);
        self.0.wrote(bytes.len(), &result);
        result
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}
