//! Queries of workloads that are only observed: to the very server that was asked, from the workload's own network
//! namespace, byte for byte.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    time::Duration,
};

use tokio::{net::UdpSocket, time};

use crate::netns::Netns;

/// Longer than any resolver library waits for one server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Passes one datagram on and waits for its answer.
///
/// # Errors
/// No answer came, or the server cannot be reached: the asker then hears nothing, as it would have.
pub async fn relay(netns: &Netns, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = netns.within(|| StdUdpSocket::bind(any))??;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let length = time::timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    buffer.truncate(length);
    Ok(buffer)
}
