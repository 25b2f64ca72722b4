//! The agent's listeners in one network namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use egress_common::{
    dns::{self, RESOLVERS},
    listener::{LISTENERS_PER_FAMILY, Listeners, PREFERRED_PORT, endpoint},
};
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, Socket, Type};

use super::leg::LegSettings;
use crate::netns::Netns;

/// Connections that may wait for their accept; the kernel caps it by net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Ports that are tried. Somebody may have taken some; whoever has taken all of these has taken them to keep us busy.
const PORTS: usize = 32;

/// Listeners of one namespace, and what the kernel is to be told of them.
#[derive(Debug)]
pub struct Bound {
    /// The n-th goes to the n-th worker (modulo their number).
    pub listeners: Vec<TcpListener>,
    /// The name service, by the place of the resolver; IPv4 first.
    pub datagrams: Vec<(usize, UdpSocket)>,
    /// For the kernel's table.
    pub table: Listeners,
}

/// Binds listeners for `workers` workers in `netns`: for each an address in 127.0.0.0/8, and a port on ::1 where IPv6
/// is there.
///
/// The port is `first`, else the usual one unless somebody in the namespace has it already, and then the next that is
/// free: applications may own any port, and another instance of the agent may serve the same namespace. `first` is what
/// an earlier agent had.
///
/// # Errors
/// The namespace cannot be entered, or has no usable port at all.
pub fn bind(netns: &Netns, workers: usize, legs: &LegSettings, first: Option<u16>) -> io::Result<Bound> {
    let count = workers.clamp(1, LISTENERS_PER_FAMILY);
    netns.within(|| {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        let usual = (PREFERRED_PORT..=u16::MAX - 8)
            .step_by(LISTENERS_PER_FAMILY)
            .take(PORTS);
        for port in first.into_iter().chain(usual) {
            match bind_at(port, count, legs) {
                Ok(mut bound) => {
                    bind_name_service(&mut bound)?;
                    return Ok(bound);
                }
                Err(error) if is_taken(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    })?
}

/// Must run inside the namespace.
fn bind_at(port: u16, count: usize, legs: &LegSettings) -> io::Result<Bound> {
    let mut table = Listeners::default();
    let mut listeners = Vec::with_capacity(2 * count);
    for (index, place) in table.v4.iter_mut().enumerate().take(count) {
        listeners.push(listen(endpoint(true, index, port).socket_addr(), legs)?);
        *place = port;
    }
    for (place, port) in table.v6.iter_mut().zip(port..).take(count) {
        match listen(endpoint(false, 0, port).socket_addr(), legs) {
            Ok(listener) => {
                listeners.push(listener);
                *place = port;
            }
            Err(error) if is_taken(&error) => return Err(error),
            // No IPv6 here (ipv6.disable=1, disable_ipv6=1): its connects have nowhere to go and are refused.
            Err(error) => {
                tracing::debug!(%error, "no IPv6 listener in this namespace");
                break;
            }
        }
    }
    (table.source_v4, table.source_v6) = own_addresses();
    Ok(Bound {
        listeners,
        datagrams: Vec::new(),
        table,
    })
}

/// Binds the name service's sockets: on IPv4 an address for each resolver that a socket can ask, on ::1 a port. Must run
/// inside the namespace.
fn bind_name_service(bound: &mut Bound) -> io::Result<()> {
    bound.table.dns_v4 = bind_places(true, &mut bound.datagrams)?;
    // Where the listeners have no IPv6 there is none.
    if bound.table.v6.iter().any(|port| *port != 0) {
        bound.table.dns_v6 = bind_places(false, &mut bound.datagrams)?;
    }
    Ok(())
}

/// The sockets of a name service, to be served: the originals stay.
///
/// # Errors
/// No descriptor is free.
pub fn duplicate_places(places: &[(usize, UdpSocket)]) -> io::Result<Vec<(usize, UdpSocket)>> {
    places
        .iter()
        .map(|(slot, socket)| Ok((*slot, socket.try_clone()?)))
        .collect()
}

/// The port, or the first of the ports.
fn bind_places(is_v4: bool, datagrams: &mut Vec<(usize, UdpSocket)>) -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    let ports = (dns::PREFERRED_PORT..=u16::MAX - 8).step_by(RESOLVERS);
    for port in ports.take(PORTS) {
        let places = (0..RESOLVERS).map(|slot| {
            let socket = UdpSocket::bind(dns::place(is_v4, slot, port).socket_addr())?;
            socket.set_nonblocking(true)?;
            Ok((slot, socket))
        });
        match places.collect::<io::Result<Vec<_>>>() {
            Ok(bound) => {
                datagrams.extend(bound);
                return Ok(port);
            }
            Err(error) if is_taken(&error) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Somebody has the place: another program, or another agent that encloses this one and guards its listeners.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

fn listen(address: SocketAddr, legs: &LegSettings) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier agent may linger in TIME_WAIT. SO_REUSEPORT is never set: with it a neighbour could
    // bind beside us and be handed connections.
    socket.set_reuse_address(true)?;
    legs.prepare_listener(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A first guess at what getsockname(2) should show: the first address of the namespace that is not a loopback or
/// link-local one. Corrected by the route of each connection that is accepted.
fn own_addresses() -> ([u8; 4], [u8; 16]) {
    let mut v4 = Ipv4Addr::UNSPECIFIED;
    let mut v6 = std::net::Ipv6Addr::UNSPECIFIED;
    let Ok(interfaces) = getifaddrs() else {
        return (v4.octets(), v6.octets());
    };
    for address in interfaces.filter_map(|interface| interface.address) {
        if let Some(inet) = address.as_sockaddr_in() {
            if v4.is_unspecified() && !inet.ip().is_loopback() && !inet.ip().is_link_local() {
                v4 = inet.ip();
            }
        } else if let Some(inet) = address.as_sockaddr_in6()
            && v6.is_unspecified()
            && !inet.ip().is_loopback()
            && !inet.ip().is_unicast_link_local()
        {
            v6 = inet.ip();
        }
    }
    (v4.octets(), v6.octets())
}

/// The table with `source` as the address that getsockname(2) shows; `None` if that is what it has.
#[must_use]
pub fn with_source(table: &Listeners, source: IpAddr) -> Option<Listeners> {
    let mut changed = *table;
    match source {
        IpAddr::V4(source) => changed.source_v4 = source.octets(),
        IpAddr::V6(source) => changed.source_v6 = source.octets(),
    }
    (changed != *table).then_some(changed)
}
