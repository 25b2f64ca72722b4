//! Every map of the enforcer. What they hold is defined in egress-common; their names are what `bpftool map` shows.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use egress_common::{
    address::Endpoint,
    counter::COUNTERS,
    dns::{Asker, HeldQuery},
    event::{Event, ListenerWanted, Observed, ObservedKey},
    fence::{Arrival, Fence, FragmentKey, SentKey, Vetted, Way},
    flow::{ClosedFlow, Flow, FlowKey},
    listener::Listeners,
    member::{Allowance, BlockKey, Inbound, InboundKey, Member, PortChunk, Ports},
};

use crate::fence::Scratch;

/// Cgroup id -> 1. Written by the agent (its own cgroup, and those of exempt pods), read by connect. 4096: some four a
/// pod, for three times the pods that a kubelet runs by default and more. The agent puts in no more than fit; the others
/// pass through the proxy.
#[btf_map]
pub static EXEMPT: HashMap<u64, u32, 4096> = HashMap::new();

/// Prefix in 16-byte form -> 1. Written by the agent from `internal`, read by connect and sendmsg. Full: the agent does
/// not start.
#[btf_map]
pub static INTERNAL: LpmTrie<[u8; 16], u32, 4096> = LpmTrie::new();

/// Address and port of the explicit proxy -> 1; an unspecified address stands for all of its family. Written by the agent
/// from `explicitProxy`, read by connect. Full: the agent does not start.
#[btf_map]
pub static PROXIES: HashMap<Endpoint, u32, 64> = HashMap::new();

/// Cgroup id -> what is enforced there. Written by the agent for every cgroup below the enforced one, read by every hook
/// that decides. Full: cgroups beyond are unknown, so their connects go to the proxy, and the rest is refused.
#[btf_map]
pub static MEMBERS: HashMap<u64, Member, 32768> = HashMap::new();

/// Policy and block -> the ports that are allowed there. Written by the agent, each policy under a number of its own, read
/// where no name has to be asked. Full: the policies are refused and the last good ones stay.
#[btf_map]
pub static BLOCKS: LpmTrie<BlockKey, Allowance, 131072> = LpmTrie::new();

/// Set and 512 ports -> a bit for each. Written by the agent, read with every TCP connect. 65,536 are 512 sets of all kinds
/// of ports, or one for each of as many sets of a few neighbouring ones. Full: as BLOCKS.
#[btf_map]
pub static PORTS: HashMap<PortChunk, Ports, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Workload and peer -> when the peer last sent a datagram. Written as it arrives, read when one is sent. Full: the least
/// recently used leave, and are not answered.
#[btf_map]
pub static INBOUND: LruHashMap<InboundKey, Inbound, 65536> = LruHashMap::new();

/// Socket cookie -> an open connect that went where it wanted to. Written at connect, removed at its end, read by the
/// agent when policies change. Full: the connect is refused.
#[btf_map]
pub static DIRECT: HashMap<u64, Flow, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Such flows at their end, for the log. The agent drains it by timer. 1 MiB is 5,700 of them. Full: counted.
#[btf_map]
pub static CLOSED: RingBuf<ClosedFlow, { 1 << 20 }> = RingBuf::new();

/// Network namespace cookie -> the agent's listeners in it. Written by the agent when it has bound them, read by
/// connect, bind and getsockname. One per pod: 16,384 is 64 times the kubelet's default of pods per node. Full: no
/// listener is published and connects stay held, then time out.
#[btf_map]
pub static LISTENERS: HashMap<u64, Listeners, 16384> = HashMap::new();

/// Loopback leg -> what was asked. Written before the SYN leaves, taken by the agent on accept, deleted when the
/// connect fails. Full: the connection is accepted, found unexplained, closed and counted.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 65536> = HashMap::new();

/// Whose share (`flow::share`) -> how many of FLOWS are its. Counted here as they come and as they are withdrawn; those that the
/// agent takes are taken off by it now and then. Read by connect, which refuses more than a workload's share. Full: the
/// least recently used leave, and begin anew.
#[btf_map]
pub static UNDER_WAY: LruHashMap<u64, u32, 16384> = LruHashMap::new();

/// Socket -> its birth and last redirected connect. Freed with the socket. No memory: the connect is refused.
#[btf_map]
pub static SOCKETS: SkStorage<Flow> = SkStorage::new();

/// Socket -> the resolvers that it asked. Made by the first query, freed with the socket. No memory: the call is refused.
#[btf_map]
pub static ASKERS: SkStorage<Asker> = SkStorage::new();

/// A socket's local address -> the socket's asker. Written with each query before it is delivered, read by the agent.
/// Least recently used leave first: with 16,384 sockets asking within the time that the agent takes to read one query,
/// queries are dropped and asked again.
#[btf_map]
pub static QUERIES: LruHashMap<FlowKey, Asker, 16384> = LruHashMap::new();

/// Queries of namespaces without a name service; these wake the agent. 256 KiB is 370 of them. Full: counted, and asked
/// again.
#[btf_map]
pub static HELD: RingBuf<HeldQuery, { 1 << 18 }> = RingBuf::new();

/// Id of the enforced cgroup -> 1. Written by the agent, read at each execve. 4: one, and room for another while agents
/// change.
#[btf_map]
pub static ENFORCED: HashMap<u64, u32, 4> = HashMap::new();

/// Cgroup id -> when its last execve was announced. Full: the least recently used leave, and are announced again.
#[btf_map]
pub static ANNOUNCED: LruHashMap<u64, u64, 4096> = LruHashMap::new();

/// Index of a veth's host end -> the fence there. Written by the agent before it attaches the programs, read by them. As
/// many as there can be listeners. Full: the namespace is told as not fenced.
#[btf_map]
pub static FENCES: HashMap<u32, Fence, 16384> = HashMap::new();

/// What has come into fenced namespaces from elsewhere than internal addresses -> when. Written and read by the fence.
/// Least recently used leave first: an accepted connection that is pushed out comes back with its next packet.
#[btf_map]
pub static ARRIVALS: LruHashMap<Way, Arrival, 65536> = LruHashMap::new();

/// Packets whose first fragment has left a fenced namespace -> 1. Fragments follow each other, so few are under way.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32, 1024> = LruHashMap::new();

/// One of the agent's own sockets -> where it may connect to. Written by the agent, read by the fence. Freed with the
/// socket. No memory: the dial fails.
#[btf_map]
pub static VETTED: SkStorage<Vetted> = SkStorage::new();

/// Socket and destination of a datagram without a connect -> 1. Written before it leaves, read by the fence. Least
/// recently used leave first, between the two only under more senders than entries.
#[btf_map]
pub static SENT: LruHashMap<SentKey, u32, 16384> = LruHashMap::new();

/// What the fence works on. Not pinned: it holds nothing between two packets.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Attempts to report later -> their count. The agent fetches what has been counted, and removes what has fallen silent.
/// Full: each attempt beyond is reported by itself.
#[btf_map]
pub static OBSERVED: HashMap<ObservedKey, Observed, 16384> = HashMap::new();

/// Reports for the agent, which drains them by timer: a wake-up would cost 11 us per connect. 1 MiB is 10,900 events.
/// Full: counted.
#[btf_map]
pub static EVENTS: RingBuf<Event, { 1 << 20 }> = RingBuf::new();

/// Requests for a listener; these wake the agent. Apart from EVENTS, so that a flood of reports cannot delay them.
#[btf_map]
pub static WANTED: RingBuf<ListenerWanted, { 1 << 16 }> = RingBuf::new();

/// Per-CPU counts: outcomes by number, losses from 48 on.
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();
