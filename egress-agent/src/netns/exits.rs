//! By which interfaces packets leave a network namespace, asked of the kernel by rtnetlink(7) from inside it.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

/// An interface that leads out of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// One end of a veth pair, whose other end is in the agent's own namespace, with this index there.
    Pair(u32),
    /// Any other: what leaves by it passes no place of the agent's.
    Other(OtherExit),
}

/// An interface that leads out by another way than to the agent's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherExit {
    name: String,
    kind: String,
}

impl fmt::Display for OtherExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            "" => write!(f, "{} is a device of the machine", self.name),
            "veth" => write!(
                f,
                "the other end of {} is in a third network namespace",
                self.name
            ),
            kind => write!(f, "{} is of the kind {kind}", self.name),
        }
    }
}

// include/uapi/linux/rtnetlink.h, netlink.h, if_link.h, net_namespace.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `struct rtgenmsg`, with its padding.
const GENERIC_HEADER: usize = 4;
const HEADER: usize = 16;
const LOOPBACK: u32 = libc::IFF_LOOPBACK.cast_unsigned();

/// The kernel fills what fits a page, at most 32 KiB.
const BUFFER: usize = 32 * 1024;

/// A link as the kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Link {
    flags: u32,
    name: String,
    kind: String,
    /// Index of the other end, or of the interface below.
    other: Option<u32>,
    /// The namespace of that, as the asked one numbers it; absent if it is the same.
    other_netns: Option<i32>,
}

impl Netns {
    /// How packets leave this namespace; `home` is the agent's.
    ///
    /// # Errors
    /// The namespace cannot be entered or does not answer.
    pub fn exits(&self, home: &Self) -> io::Result<Vec<Exit>> {
        let (links, number) = self.within(|| {
            let socket = Socket::new(
                Domain::from(libc::AF_NETLINK),
                Type::RAW.cloexec(),
                Some(Protocol::from(libc::NETLINK_ROUTE)),
            )?;
            let number = number_of(&socket, home)?;
            Ok::<_, io::Error>((links(&socket)?, number))
        })??;
        Ok(links.into_iter().filter_map(|link| exit(link, number)).collect())
    }
}

/// How the asked namespace numbers `home`; `None` if nothing in it leads there.
fn number_of(socket: &Socket, home: &Netns) -> io::Result<Option<i32>> {
    let mut body = vec![0; GENERIC_HEADER];
    body.extend(8_u16.to_ne_bytes());
    body.extend(NETNSA_FD.to_ne_bytes());
    body.extend(home.as_fd().as_raw_fd().to_ne_bytes());
    ask(socket, RTM_GETNSID, 0, &body)?;
    let mut number = None;
    receive(socket, false, |kind, body| {
        if kind == RTM_NEWNSID {
            number = attributes(body.get(GENERIC_HEADER..).unwrap_or_default())
                .find(|(kind, _)| *kind == NETNSA_NSID)
                .and_then(|(_, value)| Some(i32::from_ne_bytes(value.try_into().ok()?)));
        }
    })?;
    // -1 stands for none.
    Ok(number.filter(|number| *number >= 0))
}

fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    ask(socket, RTM_GETLINK, NLM_F_DUMP, &[0; LINK_HEADER])?;
    let mut links = Vec::new();
    receive(socket, true, |kind, body| {
        if kind == RTM_NEWLINK {
            links.push(link(body));
        }
    })?;
    Ok(links)
}

/// What leads out: what has its other end, or the device below it, in another namespace, and what is no software device
/// at all. Everything else sends through one of those.
fn exit(link: Link, home: Option<i32>) -> Option<Exit> {
    if link.flags & LOOPBACK != 0 || (link.other_netns.is_none() && !link.kind.is_empty()) {
        return None;
    }
    match link.other {
        Some(index) if link.kind == "veth" && home.is_some() && link.other_netns == home => {
            Some(Exit::Pair(index))
        }
        _ => Some(Exit::Other(OtherExit {
            name: link.name,
            kind: link.kind,
        })),
    }
}

fn link(body: &[u8]) -> Link {
    let mut link = Link {
        flags: body.get(8..).map_or(0, number),
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(LINK_HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.other = Some(number(value)),
            IFLA_LINK_NETNSID => link.other_netns = Some(number(value).cast_signed()),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

/// The first four bytes; 0 if there are fewer, which the kernel does not send.
fn number(bytes: &[u8]) -> u32 {
    let first = bytes.first_chunk::<4>();
    first.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// Kinds and values of a row of attributes (`struct nlattr`). Ends where they do not fit.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // Without the bits that tell nested ones and byte order.
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

fn ask(socket: &Socket, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    // Without an address it goes to the kernel.
    socket.send(&message).map(drop)
}

/// Hands out the kind and the body of each message of the answer: one, or all up to the end of a dump.
fn receive(socket: &Socket, is_dump: bool, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        let length = io::Read::read(&mut &*socket, &mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let [a, b, c, d, e, f, ..] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
            match u16::from_ne_bytes([e, f]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let error = number(body).cast_signed();
                    return if error == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-error))
                    };
                }
                kind => each(kind, body),
            }
            if !is_dump {
                return Ok(());
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_kind(kind: &str, other_netns: Option<i32>) -> Link {
        Link {
            name: "eth0".to_owned(),
            kind: kind.to_owned(),
            other: Some(7),
            other_netns,
            ..Link::default()
        }
    }

    #[test]
    fn a_pair_to_the_agents_namespace_is_told_from_every_other_way_out() {
        assert_eq!(exit(of_kind("veth", Some(3)), Some(3)), Some(Exit::Pair(7)));
        for (kind, other, word) in [
            ("veth", Some(4), "third"),
            ("macvlan", Some(3), "macvlan"),
            ("ipvlan", Some(3), "ipvlan"),
            ("vlan", Some(3), "vlan"),
            ("", None, "of the machine"),
        ] {
            match exit(of_kind(kind, other), Some(3)) {
                Some(Exit::Other(other)) => assert!(other.to_string().contains(word), "{other}"),
                found => panic!("{kind}: {found:?}"),
            }
        }
        assert!(exit(of_kind("veth", None), None).is_none());
        let unnumbered = exit(of_kind("veth", Some(0)), None);
        assert!(matches!(unnumbered, Some(Exit::Other(_))));
    }

    #[test]
    fn what_sends_through_others_leads_nowhere_by_itself() {
        for kind in ["veth", "tun", "bridge", "dummy", "vlan", "sit", "wireguard"] {
            assert_eq!(exit(of_kind(kind, None), Some(3)), None, "{kind}");
        }
        let loopback = Link {
            flags: LOOPBACK,
            ..Link::default()
        };
        assert_eq!(exit(loopback, Some(3)), None);
    }

    #[test]
    fn attributes_are_read_as_far_as_they_fit() {
        let bytes = [
            7, 0, 3, 0, b'l', b'o', 0, 0, 8, 0, 18, 0x80, 1, 2, 3, 4, 9, 0, 1, 0, 1,
        ];
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"lo\0"[..]), (18, &[1, 2, 3, 4])]);
        assert_eq!(attributes(&[1, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn the_kernel_tells_the_links_of_a_namespace() {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )
        .unwrap();
        let links = links(&socket).unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(loopback.flags & LOOPBACK != 0);
    }
}
