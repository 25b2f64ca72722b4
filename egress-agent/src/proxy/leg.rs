//! Options of the two sockets that a workload's connection is made of: the leg to the client, which is accepted on
//! loopback, and the leg to the origin, which is dialled.

use std::{io, os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    sys::socket::{
        setsockopt,
        sockopt::{RcvBufForce, SndBufForce},
    },
};
use socket2::{SockRef, TcpKeepalive};

/// Options of both legs.
///
/// The buffers bound what the node holds for a reader that is behind. Left to the kernel, a receive buffer grows to
/// tcp_rmem's maximum (32 MiB on new kernels) while the tunnel still keeps up, and is filled when it no longer does:
/// measured, 29 MiB ahead of a client that does not read, against 9 with these, of which 4 are the sender's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegSettings {
    /// Keepalive of both legs; `None` switches it off.
    pub keepalive: Option<KeepAlive>,
    /// Receive buffer of the leg to the origin in bytes, as in SO_RCVBUF (the kernel doubles it for its book-keeping). It
    /// bounds the throughput of one connection to about its size per round trip: 2 MiB give 300 Mbit/s at 50 ms. `None`
    /// leaves it to the kernel's own tuning.
    pub origin_receive: Option<usize>,
    /// Both buffers of the leg to the client, likewise. A round trip on loopback takes microseconds, so little is enough.
    pub client: Option<usize>,
}

/// When a silent peer is probed, and when it is given up: tcp(7). It finds peers that vanished, and clients that closed a
/// tunnel for good while the origin has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first probe (TCP_KEEPIDLE).
    pub idle: Duration,
    /// Time between probes (TCP_KEEPINTVL).
    pub interval: Duration,
    /// Unanswered probes before the connection counts as dead (TCP_KEEPCNT).
    pub probes: u32,
}

impl Default for LegSettings {
    fn default() -> Self {
        Self {
            keepalive: Some(KeepAlive::default()),
            origin_receive: Some(2 * 1024 * 1024),
            client: Some(512 * 1024),
        }
    }
}

impl Default for KeepAlive {
    /// Below the 350 s and 5 min after which common NAT gateways and load balancers forget a silent connection.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(120),
            interval: Duration::from_secs(30),
            probes: 4,
        }
    }
}

impl LegSettings {
    /// Prepares a listening socket; the legs accepted from it inherit everything (`tcp_create_openreq_child`), so that an
    /// accepted connection costs no system call for it.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn prepare_listener(&self, listener: impl AsFd) -> io::Result<()> {
        self.prepare(&listener)?;
        if let Some(bytes) = self.client {
            unless_unprivileged(setsockopt(&listener, RcvBufForce, &bytes))?;
            unless_unprivileged(setsockopt(&listener, SndBufForce, &bytes))?;
        }
        Ok(())
    }

    /// Prepares a socket that is not connected yet: the window scale is settled in the handshake.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn prepare_origin(&self, socket: impl AsFd) -> io::Result<()> {
        self.prepare(&socket)?;
        match self.origin_receive {
            Some(bytes) => unless_unprivileged(setsockopt(&socket, RcvBufForce, &bytes)),
            None => Ok(()),
        }
    }

    fn prepare(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        // Who writes in pieces is the application's affair; Nagle's algorithm on a second hop would only add to its delay.
        socket.set_tcp_nodelay(true)?;
        let Some(keepalive) = &self.keepalive else {
            return Ok(());
        };
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.probes),
        )
    }
}

/// Without CAP_NET_ADMIN a buffer cannot exceed net.core.rmem_max, by default 208 KiB before Linux 6.15: too little to be
/// fixed there, so the kernel's own tuning stays.
fn unless_unprivileged(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::EPERM) => Ok(()),
        result => result.map_err(io::Error::from),
    }
}
