//! Which sockets are connected in a network namespace, and how to close them from outside: NETLINK_SOCK_DIAG
//! (linux/sock_diag.h, linux/inet_diag.h).

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use egress_common::member::Transport;
use socket2::{Domain, Protocol, Socket, Type};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_NETLINK: i32 = 16;
const SOCK_RAW: i32 = 3;
const NETLINK_SOCK_DIAG: i32 = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// NLM_F_ROOT | NLM_F_MATCH.
const NLM_F_DUMP: u16 = 0x300;
/// The attribute with the id of the socket's cgroup (since 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;

/// `struct nlmsghdr`, `struct inet_diag_sockid`, `struct inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const MESSAGE: usize = 72;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// Every state (include/net/tcp_states.h) but TIME_WAIT, CLOSE and that of a SYN that was received.
const OPEN: u32 = 1 << ESTABLISHED | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;

/// What the kernel sends at once; more than it ever does (NLMSG_GOODSIZE grows with the reader, up to 32 KiB).
const LARGEST: usize = 64 * 1024;

/// A socket that has a peer, or listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSocket {
    /// How it talks.
    pub transport: Transport,
    /// Its own end.
    pub local: SocketAddr,
    /// Its peer.
    pub peer: SocketAddr,
    /// Id of the cgroup that it was made in.
    pub cgroup: u64,
    /// Its cookie.
    pub cookie: u64,
    /// It waits for connections and has no peer.
    pub listens: bool,
    family: u8,
    id: [u8; ID],
}

/// Asks in the network namespace in which it was opened, whatever the thread does later.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
}

impl SockDiag {
    /// Opens a socket for questions about the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(AF_NETLINK),
            Type::from(SOCK_RAW),
            Some(Protocol::from(NETLINK_SOCK_DIAG)),
        )?;
        Ok(Self { socket })
    }

    /// Every TCP socket that is connected, connecting or listening, and every connected UDP socket.
    ///
    /// # Errors
    /// The kernel has no support for one of them (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG), or says something else than it
    /// was asked.
    pub fn sockets(&self) -> io::Result<Vec<OpenSocket>> {
        let mut sockets = Vec::new();
        for (transport, number, states) in [(Transport::Tcp, 6, OPEN), (Transport::Udp, 17, 1 << ESTABLISHED)]
        {
            for family in [AF_INET, AF_INET6] {
                let request = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, number, states, &[0; ID]);
                (&self.socket).write_all(&request)?;
                self.each(|message| sockets.extend(socket(message, transport)))?;
            }
        }
        Ok(sockets)
    }

    /// Closes a socket, whoever has it: its owner gets ECONNABORTED, a TCP peer a reset. False if it is gone already.
    ///
    /// # Errors
    /// The kernel has no support for that (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&self, socket: &OpenSocket) -> io::Result<bool> {
        let number = match socket.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        let request = request(
            SOCK_DESTROY,
            NLM_F_ACK,
            socket.family,
            number,
            u32::MAX,
            &socket.id,
        );
        (&self.socket).write_all(&request)?;
        match self.each(|_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads messages up to the last one, or the error, of the answer.
    fn each(&self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = (&self.socket).read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (kind, message, after) = split(rest).ok_or_else(malformed)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match i32_at(message, 0).ok_or_else(malformed)? {
                            0 => Ok(()),
                            negative => Err(io::Error::from_raw_os_error(negative.saturating_neg())),
                        };
                    }
                    SOCK_DIAG_BY_FAMILY => visit(message),
                    _ => {}
                }
                rest = after;
            }
        }
    }
}

fn request(kind: u16, flags: u16, family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 8 + ID);
    let length: u32 = 72;
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port: there is one question at a time, and the kernel fills in the port.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, protocol, 0, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

/// The first message: its kind, what is in it, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16_at(bytes, 4)?;
    let message = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, after))
}

fn socket(message: &[u8], transport: Transport) -> Option<OpenSocket> {
    let [family, state, ..] = *message.first_chunk::<4>()?;
    let id: [u8; ID] = *message.get(4..)?.first_chunk()?;
    let cookie = message.get(4 + 40..)?.first_chunk()?;
    Some(OpenSocket {
        transport,
        local: SocketAddr::new(address(family, message.get(8..24)?)?, u16_be_at(message, 4)?),
        peer: SocketAddr::new(address(family, message.get(24..40)?)?, u16_be_at(message, 6)?),
        cgroup: cgroup(message.get(MESSAGE..)?)?,
        cookie: u64::from_ne_bytes(*cookie),
        listens: state == LISTEN && transport == Transport::Tcp,
        family,
        id,
    })
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical()),
        _ => None,
    }
}

/// The cgroup among the attributes.
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)?;
        let value = attributes.get(4..length)?;
        if kind == INET_DIAG_CGROUP_ID {
            return Some(u64::from_ne_bytes(*value.first_chunk()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_be_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's list of sockets is malformed",
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn open_sockets_are_found_with_both_ends_and_can_be_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("[::1]:0").unwrap();
        datagrams.connect("[::1]:9").unwrap();

        let diag = SockDiag::open().unwrap();
        let sockets = diag.sockets().unwrap();
        let of = |local: SocketAddr| sockets.iter().find(move |socket| socket.local == local);
        assert!(of(listener.local_addr().unwrap()).unwrap().listens);
        let found = of(stream.local_addr().unwrap()).unwrap().clone();
        assert_eq!(
            (found.peer, found.transport, found.listens),
            (listener.local_addr().unwrap(), Transport::Tcp, false)
        );
        assert_ne!(found.cgroup, 0);
        let connected = of(datagrams.local_addr().unwrap()).unwrap();
        assert_eq!(connected.peer.to_string(), "[::1]:9");
        assert_eq!(connected.transport, Transport::Udp);

        // Needs CAP_NET_ADMIN: without it the kernel says so.
        match diag.destroy(&found) {
            Ok(closed) => {
                assert!(closed);
                let error = stream.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                assert!(!diag.destroy(&found).unwrap(), "it is gone");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn whatever_is_no_list_of_sockets_is_refused_and_not_read_beyond() {
        for length in 0..HEADER {
            assert!(split(&vec![0xff; length]).is_none());
        }
        assert!(split(&[0xff; 64]).is_none(), "longer than it is");
        assert!(socket(&[0; MESSAGE], Transport::Tcp).is_none());
        assert!(cgroup(&[0, 0, 21, 0, 1, 2, 3, 4]).is_none());
        assert!(cgroup(&[8, 0, 21, 0, 1, 2, 3, 4]).is_none());
    }
}
