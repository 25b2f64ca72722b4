//! What became of a connect, a packet, a connection or a request: one closed, numbered list.
//!
//! The kernel programs, the proxy, the access log (`rule`/`outcome` fields), `status` and the manual all use
//! these words. A number is never reused: a retired one stays reserved.

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident, $label:literal;)*) => {
        /// What became of it. See the module's documentation.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum Outcome { $($(#[$doc])* $name = $number,)* }

        impl Outcome {
            /// Every outcome, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word used in logs, `status` and the manual.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Whether bytes may flow, must not, or could not.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }

            /// The outcome with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

/// The meaning of an outcome for the bytes that wait on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Bytes flow.
    Allow,
    /// Refused by policy, or because what was asked could not be told for sure.
    Deny,
    /// Allowed, but the origin could not be reached, or somebody went away first.
    Fail,
}

outcomes! {
    // 1..=63: told by the kernel programs.
    /// The destination is internal: the connect was not touched.
    Internal = 1, Allow, "internal";
    /// The cgroup is exempt (the agent itself): not touched.
    Exempt = 2, Allow, "exempt";
    /// The connect was rewritten to the listener of its own network namespace.
    Redirected = 3, Allow, "redirected";
    /// As `Redirected`, but the namespace has no listener yet: its SYN is held back until there is one.
    Held = 4, Allow, "held";
    /// TCP to a port that is not redirected, by a workload that is only observed or audited.
    OtherTcp = 5, Allow, "other_tcp";
    /// A datagram, or a datagram socket's connect, by such a workload.
    OtherUdp = 6, Allow, "other_udp";
    /// What is neither TCP nor UDP, by such a workload.
    OtherSocket = 7, Allow, "other_socket";
    /// The socket was born in another cgroup than the one that connects it.
    ForeignSocket = 8, Deny, "foreign_socket";
    /// Somebody else tried to bind the listener's address.
    ListenerAddress = 9, Deny, "listener_address";
    /// The socket is bound to a device that the redirect could not release it from.
    BoundDevice = 10, Deny, "bound_device";
    /// The kernel had no memory to note the connect's destination.
    NoStorage = 11, Deny, "no_storage";
    /// An address family or socket type that the programs cannot judge.
    UnknownFamily = 12, Deny, "unknown_family";
    /// The namespace has listeners, but none of the connect's family.
    NoListener = 13, Deny, "no_listener";

    /// A rule allows the address and port, and no name has to be asked: it goes where it wants to.
    Direct = 14, Allow, "direct";
    /// The policies do not allow the address and port: refused in the system call.
    Refused = 15, Deny, "refused";
    /// A protocol that no rule can allow: raw, ICMP, SCTP, DCCP, UDP-Lite, source routes.
    ForbiddenProtocol = 16, Deny, "forbidden_protocol";
    /// The agent does not know the cgroup yet, and what was tried cannot wait for it.
    UnknownCgroup = 17, Deny, "unknown_cgroup";
    /// A datagram back to a peer that has sent one.
    InboundReply = 18, Allow, "inbound_reply";
    /// The table of direct flows is full.
    DirectFull = 19, Deny, "direct_table_full";
    /// A newer policy does not allow an open direct flow any more.
    Revoked = 20, Deny, "revoked";
    /// The socket was connected before the enforcement began: closed.
    OpenedBefore = 21, Deny, "opened_before";

    /// A datagram socket was connected to what no rule allows: nothing leaves by that, and what is sent is refused.
    DatagramConnect = 22, Allow, "datagram_connect";
    /// The workload has as many redirected connects under way as one may have.
    ShareFull = 23, Deny, "share_full";
    /// A packet without a socket that a verdict had let go there, on its way out of a fenced network namespace.
    Unvetted = 30, Deny, "unvetted";

    // 40..=47: name service.
    /// A DNS query that was sent to the agent instead of the name server that was asked.
    Query = 40, Allow, "dns_query";
    /// As `Query`, but the namespace has no name service yet: the agent is handed the query itself.
    QueryHeld = 41, Allow, "dns_query_held";
    /// A DNS query from a local address that a socket of another cgroup has just used: it is lost, because the agent
    /// could take one for the other.
    QueryAmbiguous = 42, Deny, "dns_query_ambiguous";

    // 64..=95: verdicts of the policy.
    /// A rule allows it.
    AllowedByRule = 64, Allow, "allowed_by_rule";
    /// No policy selects the workload: observed only.
    Unselected = 65, Allow, "unselected";
    /// No rule that selects the workload allows it.
    NoRule = 66, Deny, "no_rule";
    /// A cluster policy denies it.
    ClusterDeny = 67, Deny, "cluster_deny";
    /// It lies outside the ceiling that a cluster policy sets.
    OutsideCeiling = 68, Deny, "outside_ceiling";
    /// No policy selects the workload, and unselected workloads are denied.
    UnselectedDenied = 69, Deny, "unselected_denied";

    // 96..=127: what the proxy could not tell for sure, so refused.
    /// A TLS ClientHello without a server name (and no rule allows the address).
    NoServerName = 96, Deny, "no_server_name";
    /// A TLS ClientHello with more than one server name.
    AmbiguousServerName = 97, Deny, "ambiguous_server_name";
    /// An IP literal or an impossible host name as server name.
    InvalidServerName = 98, Deny, "invalid_server_name";
    /// Bytes that begin like TLS and break its rules.
    MalformedTls = 99, Deny, "malformed_tls";
    /// A ClientHello or a request head larger than the limit.
    HeadTooLarge = 100, Deny, "head_too_large";
    /// No judgeable first bytes came within the limit.
    HeadTimeout = 101, Deny, "head_timeout";
    /// The first bytes are of no protocol that carries a name.
    UnknownProtocol = 102, Deny, "unknown_protocol";
    /// A request that breaks HTTP's rules.
    MalformedHttp = 103, Deny, "malformed_http";
    /// A request whose target host is missing, double or contradicts itself.
    AmbiguousHost = 104, Deny, "ambiguous_host";
    /// CONNECT, or an upgrade to something that could not be judged.
    ForbiddenMethod = 105, Deny, "forbidden_method";
    /// An allowed public name resolved to private addresses only (DNS rebinding).
    PrivateAnswer = 106, Deny, "private_answer";
    /// `dial: strict`, and the dialled address is none of the name's.
    AddressMismatch = 107, Deny, "address_mismatch";
    /// A connection on the listener that no redirected connect explains.
    NoFlow = 108, Deny, "no_flow";
    /// A table or a limit is full.
    Overload = 109, Deny, "overload";
    /// The cgroup's identity did not become known in time.
    UnknownWorkload = 110, Deny, "unknown_workload";
    /// A DNS message that breaks its rules.
    MalformedDns = 112, Deny, "malformed_dns";
    /// A DNS query of a kind that is not forwarded: a zone transfer, ANY, another class than IN.
    UnsupportedQuery = 113, Deny, "unsupported_query";
    /// The access log cannot be written, and the configuration says that nothing may go unlogged then.
    Unlogged = 120, Deny, "unlogged";
    /// Neither the client's first bytes nor this workload's own DNS answers name the destination.
    NoKnownName = 124, Deny, "no_known_name";

    /// What is spoken in a tunnel names another host than the CONNECT that opened it.
    TunnelMismatch = 125, Deny, "tunnel_mismatch";

    // 128..: allowed, and then failed.
    /// The name does not exist, or has no usable address.
    NameNotFound = 128, Fail, "name_not_found";
    /// The resolvers failed or did not answer.
    LookupFailed = 129, Fail, "lookup_failed";
    /// The origin refused the connection.
    OriginRefused = 130, Fail, "origin_refused";
    /// The origin did not answer in time.
    OriginTimeout = 131, Fail, "origin_timeout";
    /// No route to the origin, or the local network refused.
    OriginUnreachable = 132, Fail, "origin_unreachable";
    /// The origin broke its protocol or went away before it answered.
    OriginFailed = 133, Fail, "origin_failed";
    /// The client went away before a name was known.
    ClientGone = 134, Fail, "client_gone";
    /// The parent proxy would not, or could not, reach the origin.
    ParentFailed = 136, Fail, "parent_failed";
    /// Something failed in the agent itself.
    AgentError = 135, Fail, "agent_error";
}

impl Outcome {
    /// The number that the kernel, the golden files and the manual use.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether the bytes may flow.
    #[must_use]
    pub const fn is_allow(self) -> bool {
        matches!(self.class(), Class::Allow)
    }
}
