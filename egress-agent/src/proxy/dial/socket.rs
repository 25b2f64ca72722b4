//! Upstream sockets, made so that they leave as the workload's own would have.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU32,
};

use nix::{
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
    unistd::{Uid, setfsuid},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    kernel::VettedTable,
    netns::Netns,
    proxy::{connection::Route, leg::LegSettings},
};

/// Connects to `address` from the route's namespace, source address and device.
pub(super) async fn connect(
    address: SocketAddr,
    route: &Route,
    legs: &LegSettings,
    vetted: Option<&VettedTable>,
) -> io::Result<TcpStream> {
    let make = || {
        Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
    };
    // A socket belongs to the namespace that it is made in; everything after that can happen outside.
    let socket = route.netns.within(|| match route.user {
        None => make(),
        Some(user) => as_user(Uid::from_raw(user), make),
    })??;
    if let Some(index) = route.device.and_then(NonZeroU32::new) {
        // Despite its name it serves both families on Linux: SO_BINDTOIFINDEX.
        socket.bind_device_by_index_v4(Some(index))?;
    }
    if let Some(source) = route.source.map(|source| source.to_canonical())
        && source.is_ipv4() == address.is_ipv4()
        && !source.is_unspecified()
    {
        // The port is chosen at connect(2), where it only has to be unique for this destination; at bind(2) it would have
        // to be unique altogether, which limits a source address to 28,232 connections.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    legs.prepare_origin(&socket)?;
    // The agent's own namespace is never fenced.
    if let Some(vetted) = vetted.filter(|_table| !route.netns.is_home()) {
        vetted.let_out(&socket, address)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// Makes a socket as a user of the machine's: by that user a packet filter's owner match (`xt_owner`) tells whose it is. Of
/// this thread alone, which must not do anything else meanwhile.
fn as_user(user: Uid, make: impl FnOnce() -> io::Result<Socket>) -> io::Result<Socket> {
    /// Nobody: the call changes nothing, and tells who it is.
    const TELL: Uid = Uid::from_raw(u32::MAX);
    struct Return(Uid);
    impl Drop for Return {
        fn drop(&mut self) {
            setfsuid(self.0);
        }
    }
    let _back = Return(setfsuid(user));
    if setfsuid(TELL) != user {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "CAP_SETUID is wanted to get past the sidecar of the pod's service mesh",
        ));
    }
    make()
}

/// The source address that the route to `destination` gives: connect(2) on a datagram socket sends nothing.
pub(super) fn source_for(netns: &Netns, destination: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = netns.within(|| UdpSocket::bind(SocketAddr::new(any, 0)))??;
    // Any port but 0; 9 is discard's.
    socket.connect(SocketAddr::new(destination, 9))?;
    Ok(socket.local_addr()?.ip())
}
