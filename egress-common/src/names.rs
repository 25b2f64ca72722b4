//! Names of programs, maps and globals, once. They are what a person reads in bpftool.

/// Version of what the pinned maps hold. Raise it with every change to the meaning, order or size of a field in a key or
/// a value: an agent uses an earlier one's maps again only if both have the same number here. A new map needs no new
/// number.
pub const LAYOUT: u32 = 5;

/// Names of the kernel programs, as `bpftool prog` shows them.
pub mod program {
    /// connect(2) on IPv4 sockets.
    pub const CONNECT4: &str = "egress_connect4";
    /// connect(2) on IPv6 sockets, mapped IPv4 destinations included.
    pub const CONNECT6: &str = "egress_connect6";
    /// sendmsg(2) on unconnected IPv4 datagram sockets.
    pub const SENDMSG4: &str = "egress_sendmsg4";
    /// sendmsg(2) on unconnected IPv6 datagram sockets.
    pub const SENDMSG6: &str = "egress_sendmsg6";
    /// recvmsg(2) on IPv4 datagram sockets.
    pub const RECVMSG4: &str = "egress_recvmsg4";
    /// recvmsg(2) on IPv6 datagram sockets.
    pub const RECVMSG6: &str = "egress_recvmsg6";
    /// getpeername(2), IPv4.
    pub const GETPEERNAME4: &str = "egress_peer4";
    /// getpeername(2), IPv6.
    pub const GETPEERNAME6: &str = "egress_peer6";
    /// getsockname(2), IPv4.
    pub const GETSOCKNAME4: &str = "egress_name4";
    /// getsockname(2), IPv6.
    pub const GETSOCKNAME6: &str = "egress_name6";
    /// bind(2), IPv4.
    pub const BIND4: &str = "egress_bind4";
    /// bind(2), IPv6.
    pub const BIND6: &str = "egress_bind6";
    /// socket(2).
    pub const SOCK_CREATE: &str = "egress_create";
    /// close(2).
    pub const SOCK_RELEASE: &str = "egress_release";
    /// setsockopt(2).
    pub const SETSOCKOPT: &str = "egress_option";
    /// TCP state changes.
    pub const SOCK_OPS: &str = "egress_tcp";
    /// execve(2).
    pub const EXEC: &str = "egress_exec";
    /// Packets on their way out.
    pub const SKB_EGRESS: &str = "egress_packet";
    /// Packets that arrive.
    pub const SKB_INGRESS: &str = "egress_arrival";
    /// Packets that leave a fenced network namespace.
    pub const FENCE: &str = "egress_fence";
    /// Packets that come into one.
    pub const ENTRY: &str = "egress_entry";
}

/// Names of the maps.
pub mod map {
    /// Cgroup ids that are left alone.
    pub const EXEMPT: &str = "EXEMPT";
    /// Prefixes that are left alone.
    pub const INTERNAL: &str = "INTERNAL";
    /// Addresses of the explicit proxy.
    pub const PROXIES: &str = "PROXIES";
    /// What is enforced on a cgroup.
    pub const MEMBERS: &str = "MEMBERS";
    /// What policies allow to blocks of addresses.
    pub const BLOCKS: &str = "BLOCKS";
    /// Sets of ports.
    pub const PORTS: &str = "PORTS";
    /// Peers that may be answered.
    pub const INBOUND: &str = "INBOUND";
    /// Open flows that did not go through the agent.
    pub const DIRECT: &str = "DIRECT";
    /// Such flows at their end.
    pub const CLOSED: &str = "CLOSED";
    /// Listeners by network namespace cookie.
    pub const LISTENERS: &str = "LISTENERS";
    /// Flows waiting for their accept.
    pub const FLOWS: &str = "FLOWS";
    /// How many of them each workload has.
    pub const UNDER_WAY: &str = "UNDER_WAY";
    /// Per-socket storage.
    pub const SOCKETS: &str = "SOCKETS";
    /// Per-socket storage of those that ask name servers.
    pub const ASKERS: &str = "ASKERS";
    /// Queries on their way to the agent.
    pub const QUERIES: &str = "QUERIES";
    /// Queries without a name service.
    pub const HELD: &str = "HELD";
    /// The enforced cgroup.
    pub const ENFORCED: &str = "ENFORCED";
    /// Cgroups whose programs' starts were announced.
    pub const ANNOUNCED: &str = "ANNOUNCED";
    /// Fences by interface.
    pub const FENCES: &str = "FENCES";
    /// What has come into fenced network namespaces.
    pub const ARRIVALS: &str = "ARRIVALS";
    /// Packets whose first fragment has left.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Per-socket storage of those that a verdict has let out.
    pub const VETTED: &str = "VETTED";
    /// Datagrams that a verdict has let out.
    pub const SENT: &str = "SENT";
    /// Counted and not yet reported attempts.
    pub const OBSERVED: &str = "OBSERVED";
    /// Reports.
    pub const EVENTS: &str = "EVENTS";
    /// Requests for listeners.
    pub const WANTED: &str = "WANTED";
    /// Per-CPU counters.
    pub const COUNTS: &str = "COUNTS";
}
