//! Socket options that no crate wraps. With `kernel` and `readiness.rs` the only place with unsafe code.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

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

/// Sends one message with descriptors (SCM_RIGHTS, unix(7)).
///
/// # Errors
/// See sendmsg(2); also if the message was sent in part.
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[] } else { &control[..] };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives one message of at most `most_bytes`, with at most `most_descriptors`; no bytes mean the peer's end.
///
/// # Errors
/// See recvmsg(2); also if the message has more of either, which are closed.
pub fn receive_with(
    socket: BorrowedFd<'_>,
    most_bytes: usize,
    most_descriptors: usize,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; most_bytes];
    // SAFETY: CMSG_SPACE computes a size and touches no memory.
    let space = unsafe {
        libc::CMSG_SPACE(
            (most_descriptors * size_of::<RawFd>())
                .try_into()
                .unwrap_or(u32::MAX),
        )
    };
    let mut control = vec![0; space as usize];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has made these descriptors for this message; nobody else knows them.
            descriptors.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    let (length, flags) = (received.bytes, received.flags);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message that is too long",
        ));
    }
    bytes.truncate(length);
    Ok((bytes, descriptors))
}
