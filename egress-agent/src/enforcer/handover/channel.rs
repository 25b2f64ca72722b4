//! What the agent that serves and its successor say to each other: messages over a Unix socket that keeps their borders
//! (SOCK_SEQPACKET), some with descriptors (SCM_RIGHTS).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use egress_common::{
    dns::RESOLVERS,
    listener::{LISTENERS_PER_FAMILY, Listeners},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::socket;

/// Raised whenever a message changes; who speaks another version is refused.
pub(super) const VERSION: u32 = 2;

/// How long one side waits for the other's next message. The longest step is the verifier's look at all programs: 0.1 s
/// on a quiet machine, some seconds in an emulated one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than any message: a cgroup's path is the longest part.
const MOST_BYTES: usize = 16 * 1024;

/// A namespace's own descriptor, and those of its listeners and of its name service.
const MOST_DESCRIPTORS: usize = 1 + 2 * LISTENERS_PER_FAMILY + 2 * RESOLVERS;

/// One end of a hand-over.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
}

/// In the order in which they are sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// From the successor: who it is.
    Hello {
        version: u32,
        /// Version of the program, for the log.
        agent: String,
        cgroup: PathBuf,
    },
    /// In answer: no, and why. Nothing has changed.
    Refused { why: String },
    /// In answer: who serves, with the descriptor of the instance's lock; so many sites follow.
    Welcome {
        agent: String,
        layout: u32,
        generation: u64,
        sites: usize,
    },
    /// A served network namespace, with its descriptor and those of its listeners.
    Site { table: Table },
    /// From the successor: its programs are loaded, and it can go on at once.
    Ready,
    /// In answer: nothing is accepted any more, and no report is read.
    Yours,
    /// From the successor: everything is in force, and it accepts.
    Done,
    /// In answer: from now on the sender only drains.
    Farewell,
}

/// [`Listeners`] as they are sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Table {
    v4: [u16; LISTENERS_PER_FAMILY],
    v6: [u16; LISTENERS_PER_FAMILY],
    dns_v4: u16,
    dns_v6: u16,
    source_v4: [u8; 4],
    source_v6: [u8; 16],
}

impl Channel {
    /// Calls the agent that listens at `path`.
    pub(super) fn call(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::new(socket)
    }

    /// The end of a connection that was accepted or made. The peer must be root: the socket lies in a directory that
    /// only root can enter, and a descriptor that was passed on is not enough.
    pub(in crate::enforcer) fn new(socket: Socket) -> io::Result<Self> {
        let peer = getsockopt(&socket, PeerCredentials)?;
        if peer.uid() != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {} at the other end is not root", peer.uid()),
            ));
        }
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// The other end's process.
    pub(super) fn peer(&self) -> io::Result<i32> {
        Ok(getsockopt(&self.socket, PeerCredentials)?.pid())
    }

    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[])
    }

    pub(super) fn send_with(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        socket::send_with(self.socket.as_fd(), &serde_json::to_vec(message)?, descriptors)
    }

    pub(super) fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        let (bytes, descriptors) = socket::receive_with(self.socket.as_fd(), MOST_BYTES, MOST_DESCRIPTORS)?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&bytes)?, descriptors))
    }

    /// So that its end can be awaited.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl From<Listeners> for Table {
    fn from(listeners: Listeners) -> Self {
        Self {
            v4: listeners.v4,
            v6: listeners.v6,
            dns_v4: listeners.dns_v4,
            dns_v6: listeners.dns_v6,
            source_v4: listeners.source_v4,
            source_v6: listeners.source_v6,
        }
    }
}

impl From<Table> for Listeners {
    fn from(table: Table) -> Self {
        Self {
            v4: table.v4,
            v6: table.v6,
            source_v4: table.source_v4,
            dns_v4: table.dns_v4,
            dns_v6: table.dns_v6,
            source_v6: table.source_v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (left, right) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        (Channel { socket: left }, Channel { socket: right })
    }

    #[test]
    fn a_listener_is_the_same_one_at_the_other_end() {
        let (left, right) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let table = Table::from(Listeners::default());
        left.send_with(&Message::Site { table }, &[listener.as_fd()])
            .unwrap();

        let (message, mut descriptors) = right.receive().unwrap();

        assert!(matches!(message, Message::Site { .. }));
        let received = TcpListener::from(descriptors.remove(0));
        assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(descriptors.is_empty());
    }

    #[test]
    fn what_is_no_message_is_an_error_and_so_is_the_end() {
        let (left, right) = pair();
        for bytes in [&b"hello"[..], b"{\"Hello\":{}}", &[b' '; MOST_BYTES + 1]] {
            socket::send_with(left.socket.as_fd(), bytes, &[]).unwrap();
            assert!(right.receive().is_err(), "{}", bytes.len());
        }
        drop(left);
        assert_eq!(right.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
