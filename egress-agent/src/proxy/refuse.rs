//! How a client is told no: by an answer in its own protocol where it has one, else by a reset. Never by silence.

mod alert;

use std::{io, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

pub use alert::Alert;

/// How long and how much a client is still listened to after our last word.
///
/// Data that arrives at a closed socket is answered by a reset, and a reset makes a client's kernel fail its pending
/// writes, so that some clients report a broken connection instead of what they were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the last word.
    pub time: Duration,
    /// Bytes read and thrown away.
    pub bytes: usize,
}

impl Patience {
    /// For a TLS client: it has sent its hello, at most some early data, and waits. Early data is bounded by the
    /// origin's ticket, 16 KiB by OpenSSL's default.
    pub const TLS: Self = Self {
        time: Duration::from_secs(1),
        bytes: 256 * 1024,
    };
}

/// Refuses a TLS client: the alert, then a close at which the alert is not lost. Gives the number of bytes sent.
pub async fn send_alert(mut stream: TcpStream, alert: Alert) -> usize {
    let bytes = alert.bytes();
    // The send buffer is empty, nothing was sent before: this never waits.
    match stream.try_write(&bytes) {
        Ok(sent) if sent == bytes.len() => {
            close_after_answer(&mut stream, Patience::TLS).await;
            sent
        }
        Ok(_) | Err(_) => {
            reset(stream);
            0
        }
    }
}

/// Ends a connection on which the last word has been written: half-close, so that the client sees the end of it, then
/// read what it still sends until it closes too or `patience` ends. The socket is to be dropped after it.
pub async fn close_after_answer(stream: &mut TcpStream, patience: Patience) {
    let deadline = Instant::now() + patience.time;
    if stream.shutdown().await.is_err() {
        return;
    }
    // A client that goes on beyond it is reset by the kernel at the close.
    let _in_time = timeout_at(deadline, drain(stream, patience.bytes)).await;
}

/// Ends a connection with a reset, the answer for what has no words for a refusal, or for a client that should see a
/// failed connection.
pub fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot set SO_LINGER: the client sees an ordinary close");
    }
    drop(stream);
}

async fn drain(stream: &TcpStream, mut bytes: usize) {
    while bytes > 0 && stream.readable().await.is_ok() {
        match discard(stream) {
            Ok(0) => return,
            Ok(count) => bytes = bytes.saturating_sub(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Apart from [`drain`] so that the buffer is not part of its future.
fn discard(stream: &TcpStream) -> io::Result<usize> {
    stream.try_read(&mut [0; 8192])
}

#[cfg(test)]
mod tests;
