//! Socket options that no crate wraps. With `kernel` and `proxy/tunnel/splice.rs` the only place with unsafe code.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// SO_NETNS_COOKIE, include/uapi/asm-generic/socket.h; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace the socket was made in.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    // An option of 8 bytes always fits the type of its length.
    let mut length = 8 as libc::socklen_t;
    // SAFETY: the descriptor is open for the borrow's time; value and length point to live locals of the sizes told.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Closes a connection with a reset instead of an orderly end.
pub fn reset(stream: tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    if let Err(error) = socket.set_linger(Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "cannot reset a connection: it ends in order");
    }
}
