//! Every bound of the data path, in one place.

use std::time::Duration;

/// Bounds that keep one connection from costing more than it may. All but `splice_after` and `pipes` are settable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest ClientHello (with its record headers) or HTTP request head, in bytes.
    pub head_bytes: usize,
    /// How long the first bytes may take to become judgeable, from accept.
    pub head_timeout: Duration,
    /// How long a client may say nothing on a port where servers may speak first, before it is taken for one that waits for
    /// its server. Nothing on ports where the client speaks first.
    pub silence: Duration,
    /// How long one upstream dial may take, lookup included.
    pub connect_timeout: Duration,
    /// A tunnel in which nothing moves this long is closed.
    pub idle_timeout: Duration,
    /// An HTTP connection on which no further request begins this long is closed.
    pub keep_alive_timeout: Duration,
    /// A direction of a tunnel that has moved this many bytes goes over to splice(2).
    pub splice_after: u64,
    /// Pipes that one worker may have in use for splice(2) at a time; beyond it, and with 0, bytes are copied. A pipe is
    /// held over a wake-up only for a reader that is behind, and then holds up to 1 MiB.
    pub pipes: usize,
    /// Concurrent h2c streams a client may open.
    pub h2_streams: u32,
    /// Open connections a workload may have; more are refused.
    pub connections_per_workload: u32,
    /// While an access log cannot be written nothing new is let pass.
    pub deny_unlogged: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // OpenSSL's own bound on a ClientHello is 128 KiB, real ones with post-quantum shares are below 4 KiB.
            head_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(5),
            // Each connection to a server that speaks first is late by this much; a TLS client's hello comes with its ACK.
            silence: Duration::from_millis(300),
            connect_timeout: Duration::from_secs(10),
            // squid's read_timeout is 15 minutes; long polls and SSH through 443 idle for longer.
            idle_timeout: Duration::from_secs(3600),
            keep_alive_timeout: Duration::from_secs(120),
            // Below it a pipe costs more than it saves; measured, see ARCHITECTURE.md.
            splice_after: 256 * 1024,
            pipes: 128,
            h2_streams: 100,
            // Each takes two descriptors, and usually 16 KiB in the kernel.
            connections_per_workload: 8192,
            deny_unlogged: false,
        }
    }
}
