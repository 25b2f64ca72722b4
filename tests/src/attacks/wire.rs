//! The witness: what arrives at the far end of a workload's network cable.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt},
    unistd::Pid,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::World;

/// Begins what the lab itself sends to see that everything before it has arrived.
const MARK: &[u8] = b"egress-mark";
/// What every attempt carries.
const EVIL: &[u8] = b"evil";
/// The far end of the first workload's cable.
const INTERFACE: &str = "to-client2";
/// ETH_P_ALL: a tap that is handed every frame, before the interface's own filters.
const EVERY_PROTOCOL: [u16; 1] = [3];
/// IPv4, IPv6, ARP, and one for experiments (IEEE 802, 0x88b5): taps of one protocol are handed what the interface's own
/// filters have let in (__netif_receive_skb_core), and a fence is such a filter.
const EACH_PROTOCOL: [u16; 4] = [0x0800, 0x86dd, 0x0806, 0x88b5];
/// PACKET_OUTGOING: sent by the far end itself.
const OUTGOING: u8 = 4;
/// How long a mark may be under way on a busy machine.
const SOON: u16 = 15_000;

/// A tap.
#[derive(Debug)]
pub(super) struct Wire {
    sockets: Arc<Vec<Socket>>,
    index: usize,
    marks: AtomicU32,
}

impl Wire {
    /// Taps all that comes out of the cable.
    pub(super) async fn tap(world: &World) -> Self {
        Self::of(world, &EVERY_PROTOCOL).await
    }

    /// Taps what comes out of the cable and through a fence at its end.
    pub(super) async fn behind_a_fence(world: &World) -> Self {
        Self::of(world, &EACH_PROTOCOL).await
    }

    async fn of(world: &World, protocols: &'static [u16]) -> Self {
        let (sockets, index) = world
            .origins
            .run(async {
                let sockets = protocols.iter().map(|protocol| {
                    let protocol = Protocol::from(i32::from(protocol.to_be()));
                    let socket =
                        Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a packet socket");
                    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("SO_RCVBUFFORCE");
                    socket.set_nonblocking(true).expect("non-blocking");
                    socket
                });
                (sockets.collect(), if_nametoindex(INTERFACE).expect("the cable"))
            })
            .await;
        let wire = Self {
            sockets: Arc::new(sockets),
            index: usize::try_from(index).expect("a small number"),
            marks: AtomicU32::new(0),
        };
        // The first of each family wait for the neighbour's link address, and would be overtaken.
        wire.arrived(world).await;
        wire
    }

    /// What has arrived since the last call and has no business there, once everything has arrived that was sent before
    /// this call.
    pub(super) async fn arrived(&self, world: &World) -> Vec<String> {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed);
        let sent = world.client.run(async move { send_marks(mark) }).await;
        let (sockets, index) = (Arc::clone(&self.sockets), self.index);
        tokio::task::spawn_blocking(move || read(&sockets, index, mark, sent))
            .await
            .expect("the tap is read")
    }
}

/// From each processor, because each has a queue of its own of what is on the cable; and by both families. Tells how many.
fn send_marks(mark: u32) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let targets = if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        &["198.51.100.250:9", "[2001:db8:1::250]:9"][..]
    } else {
        &["198.51.100.250:9"][..]
    };
    for processor in 0..processors {
        // A thread of its own, so that the runtime's keep all processors.
        let sending = thread::spawn(move || {
            let mut set = CpuSet::new();
            set.set(processor).expect("a processor's number");
            sched_setaffinity(Pid::from_raw(0), &set).expect("sched_setaffinity");
            for target in targets {
                let any = if target.starts_with('[') {
                    "[::]:0"
                } else {
                    "0.0.0.0:0"
                };
                let text = [MARK, format!(" {mark} {processor} {target}\n").as_bytes()].concat();
                let socket = UdpSocket::bind(any).expect("a socket");
                socket.send_to(&text, target).expect("a mark is sent");
            }
        });
        sending.join().expect("marks are sent");
    }
    processors * targets.len()
}

fn read(sockets: &[Socket], index: usize, mark: u32, wanted: usize) -> Vec<String> {
    let mut marks = BTreeSet::new();
    let mut wrong = Vec::new();
    let prefix = [MARK, format!(" {mark} ").as_bytes()].concat();
    let mut drain = |marks: &mut BTreeSet<Vec<u8>>| {
        for frame in sockets.iter().flat_map(|socket| frames(socket, index)) {
            if let Some(at) = find(&frame, &prefix) {
                marks.insert(frame[at..].to_vec());
            } else {
                wrong.extend(complaint(&frame));
            }
        }
    };
    drain(&mut marks);
    while marks.len() < wanted {
        let mut ready: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        let count = poll(&mut ready, PollTimeout::from(SOON)).expect("poll");
        assert!(count > 0, "of {wanted} marks only {} have arrived", marks.len());
        drain(&mut marks);
    }
    // The marks are read from one socket, and what was ahead of them may wait in another.
    drain(&mut marks);
    wrong
}

/// What has come out of the cable by now, of what a socket is handed.
fn frames(socket: &Socket, index: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                if from.is_some_and(|from| from.ifindex() == index && from.pkttype() != OUTGOING) {
                    frames.push(buffer[..length].to_vec());
                }
            }
            Err(Errno::EAGAIN) => return frames,
            Err(error) => panic!("the tap: {}", io::Error::from(error)),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// What is wrong with a frame; `None` for what the lab, the kernel and the agent have to send.
fn complaint(frame: &[u8]) -> Option<String> {
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(14..)?;
    let told = match kind {
        0x0800 => Told::v4(packet),
        0x86dd => Told::v6(packet),
        // ARP.
        0x0806 => None,
        _ => return Some(format!("a frame of protocol {kind:#06x}")),
    };
    let is_evil = find(&frame.to_ascii_lowercase(), EVIL).is_some();
    match told {
        Some(told) if is_evil || !told.is_fine() => Some(told.to_string()),
        None if is_evil => Some(format!("a frame of protocol {kind:#06x}")),
        Some(_) | None => None,
    }
}

/// What the header of a packet says.
struct Told {
    to: std::net::IpAddr,
    protocol: u8,
    /// The destination port of TCP and UDP, the type of ICMP.
    number: u16,
    /// The header is the shortest there is.
    is_plain: bool,
}

impl Told {
    fn v4(packet: &[u8]) -> Option<Self> {
        let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        let length = usize::from(packet.first()? & 15) * 4;
        let protocol = *packet.get(9)?;
        Some(Self {
            to: Ipv4Addr::from(to).into(),
            protocol,
            number: number(protocol, packet.get(length..)?),
            is_plain: length == 20,
        })
    }

    fn v6(packet: &[u8]) -> Option<Self> {
        let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        let protocol = *packet.get(6)?;
        Some(Self {
            to: Ipv6Addr::from(to).into(),
            protocol,
            number: number(protocol, packet.get(40..)?),
            is_plain: true,
        })
    }

    fn is_fine(&self) -> bool {
        let to = self.to.to_string();
        let is_name_server = to == "198.51.100.53";
        match (self.protocol, self.number) {
            _ if !self.is_plain => false,
            (6 | 17, 53) => is_name_server,
            // The agent's upstream connections to allowed names, and the block that a rule allows.
            (6, 80 | 443) => ["198.51.100.10", "2001:db8:1::10"].contains(&to.as_str()),
            (6, 5432) | (17, 123) => to
                .strip_prefix("203.0.113.")
                .and_then(|last| last.parse::<u8>().ok())
                .is_some_and(|last| last < 128),
            // An answer of the name server's that nobody waits for any more.
            (1, 3) => is_name_server,
            // Neighbours and routers, and who listens to multicast (behind a hop-by-hop header).
            (58, 133..=137 | 143) => true,
            (0, _) => to == "ff02::16",
            _ => false,
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "protocol {} to {} {}", self.protocol, self.to, self.number)?;
        if self.is_plain {
            Ok(())
        } else {
            f.write_str(" with options")
        }
    }
}

/// A source port stands before the destination port; ICMP begins with its type.
fn number(protocol: u8, payload: &[u8]) -> u16 {
    match (protocol, payload) {
        (1 | 58, [kind, ..]) => u16::from(*kind),
        (_, [_, _, high, low, ..]) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}
