//! A connection that a script of the test drives.

use std::{io, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Pen;
use crate::bytes::{Hash, Payload};

/// An accepted connection: everything that goes through it is noted.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    pen: Pen,
}

impl RawConnection {
    pub(super) fn new(stream: TcpStream, pen: Pen) -> Self {
        Self { stream, pen }
    }

    /// Reads exactly `length` bytes.
    ///
    /// # Errors
    /// The client ended before.
    pub async fn read_exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            let count = self.stream.read(&mut bytes[filled..]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pen.received(&bytes[filled..filled + count]);
            filled += count;
        }
        Ok(bytes)
    }

    /// Reads one TLS record: a ClientHello that is not fragmented, for example.
    ///
    /// # Errors
    /// The client ended before.
    pub async fn read_record(&mut self) -> io::Result<Vec<u8>> {
        let mut record = self.read_exact(5).await?;
        let length = u16::from_be_bytes([record[3], record[4]]);
        record.extend(self.read_exact(usize::from(length)).await?);
        Ok(record)
    }

    /// Reads what there is. An empty answer is the client's end.
    ///
    /// # Errors
    /// The client reset the connection.
    pub async fn read_some(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64 * 1024];
        let count = self.stream.read(&mut bytes).await?;
        bytes.truncate(count);
        self.pen.received(&bytes);
        Ok(bytes)
    }

    /// Reads to the client's end and returns `LENGTH SHA256` of what came.
    ///
    /// # Errors
    /// The client reset the connection.
    pub async fn hash_to_end(&mut self) -> io::Result<String> {
        let mut hash = Hash::default();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = self.stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(hash.finish());
            }
            hash.update(&buffer[..count]);
            self.pen.received(&buffer[..count]);
        }
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// The client reset the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.stream.write(rest).await?;
            self.pen.note(|seen| seen.sent += count as u64);
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Sends the first `length` bytes of the [`Payload`].
    ///
    /// # Errors
    /// The client reset the connection.
    pub async fn send_payload(&mut self, length: u64) -> io::Result<()> {
        let mut payload = Payload::new();
        let mut left = length;
        while left > 0 {
            let bytes = payload.next(left);
            left -= bytes.len() as u64;
            self.send(bytes).await?;
        }
        Ok(())
    }

    /// Sends the end and keeps reading open.
    ///
    /// # Errors
    /// The client reset the connection.
    pub async fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Ends by RST.
    ///
    /// # Errors
    /// SO_LINGER cannot be set.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Makes the receive buffer as small as it gets: for an origin that reads slowly.
    ///
    /// # Errors
    /// SO_RCVBUF cannot be set.
    pub fn shrink_receive_buffer(&self) -> io::Result<()> {
        SockRef::from(&self.stream).set_recv_buffer_size(4096)
    }

    /// Neither reads nor sends nor ends, for as long as the world lives.
    pub async fn stall(self) -> io::Result<()> {
        let _open = self;
        std::future::pending().await
    }
}
