//! recv(2) and send(2) through one buffer per worker.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{MsgFlags, recv, send as send_to};
use tokio::{io::Interest, net::TcpStream};

/// Measured: 8 KiB costs 1.9 CPU seconds a gigabyte, 64 KiB .4 to .7, 256 KiB .27 to .39; beyond that little is won.
const BUFFER: usize = 256 * 1024;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a receive gave.
pub(super) enum Received<'b> {
    Bytes(&'b [u8]),
    Nothing,
    End,
}

/// Lends the worker's buffer. Nothing in it outlives the call.
pub(super) fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SHARED.with(|shared| match shared.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.is_empty() {
                buffer.resize(BUFFER, 0);
            }
            work(&mut buffer)
        }
        // Only for `work` that itself asks for the buffer.
        Err(_) => work(&mut vec![0; BUFFER]),
    })
}

/// Receives what is there. A short receive has emptied the socket, so the runtime is told as if the next one had been
/// tried and had failed: that saves a system call each time.
pub(super) fn receive<'b>(from: &TcpStream, buffer: &'b mut [u8]) -> io::Result<Received<'b>> {
    let mut received = 0;
    let result = from.try_io(Interest::READABLE, || {
        received = receive_now(from, buffer)?;
        if 0 < received && received < buffer.len() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    });
    match result {
        Ok(()) if received == 0 => Ok(Received::End),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(match buffer.get(..received) {
            Some(bytes) if !bytes.is_empty() => Received::Bytes(bytes),
            _ => Received::Nothing,
        }),
    }
}

/// Sends what the socket takes; 0 if it takes nothing now. A short send has filled the socket; see [`receive`].
pub(super) fn send(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    let result = to.try_io(Interest::WRITABLE, || {
        sent = send_now(to, bytes)?;
        if sent < bytes.len() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    });
    match result {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(sent),
    }
}

/// recv(2) whatever the runtime knows of the socket.
pub(super) fn receive_now(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| recv(from.as_fd().as_raw_fd(), buffer, MsgFlags::empty()))
}

/// send(2) whatever the runtime knows of the socket.
pub(super) fn send_now(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    retry(|| send_to(to.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL))
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
