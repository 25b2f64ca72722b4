//! What the kernel programs report, as records of the access log: what they have refused, and what went past the agent.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use egress_common::{
    event::Event,
    flow::{ClosedFlow, Flow},
    member::Transport,
    outcome::{Class, Outcome},
};
use jiff::Timestamp;

use super::sites::Sites;
use crate::{
    access_log::{AddressRelation, Asked, Carrier, Ending, Protocol, Record},
    identity::{Identities, Process, Workload},
    kernel::OpenSocket,
    policy::{Host, PolicySet, Posture, Target, Verdict},
};

/// Whose attempt or flow it was, and where it led.
struct Entry {
    cgroup: u64,
    /// Cookie of the network namespace; 0 where the kernel does not tell.
    netns: u64,
    peer: SocketAddr,
    protocol: u16,
    process: Process,
    outcome: Outcome,
}

/// Makes records; what they are made of.
pub(super) struct Ledger<'a> {
    pub(super) identities: &'a Identities,
    pub(super) sites: &'a Sites,
    pub(super) set: &'a Arc<PolicySet>,
}

impl Ledger<'_> {
    /// The record of attempts that the kernel has reported; `None` for those that need none.
    pub(super) fn attempts(&self, event: &Event, attempts: u64) -> Option<Record> {
        let entry = Entry {
            cgroup: event.cgroup,
            netns: event.netns,
            peer: event.destination.socket_addr(),
            protocol: event.protocol,
            process: process(event.pid, event.uid, &event.command),
            outcome: known(event.outcome)?,
        };
        self.counted(entry, attempts)
    }

    /// The record of a flow that went past the agent and has ended.
    pub(super) fn closed(&self, closed: &ClosedFlow) -> Option<Record> {
        let flow = &closed.flow;
        let entry = of_flow(flow)?;
        let is_datagram = Carrier(entry.protocol) == Carrier::UDP;
        if is_datagram && closed.sent == 0 && closed.received == 0 {
            // getaddrinfo(3) has looked at an answer.
            return None;
        }
        let mut record = self.record(&entry);
        record.bytes_to_client = closed.received;
        record.bytes_to_origin = closed.sent;
        record.duration = Duration::from_nanos(closed.ended.saturating_sub(flow.time));
        record.started = started_before(record.duration);
        record.upstream = Some(entry.peer);
        record.relation = Some(AddressRelation::Literal);
        record.ending = if closed.established == 0 {
            Ending::Failed
        } else if record.enforced && !record.verdict.is_allow() {
            // It was allowed when it began.
            record.verdict = Verdict::without_rule(Outcome::AllowedByRule);
            Ending::PolicyChanged
        } else {
            Ending::Complete
        };
        if record.ending != Ending::Failed {
            record.status = 200;
        }
        Some(record)
    }

    /// The record of a connection from before the enforcement, which was closed.
    pub(super) fn purged(&self, socket: &OpenSocket) -> Record {
        let mut record = self.record(&Entry {
            cgroup: socket.cgroup,
            netns: 0,
            peer: socket.peer,
            protocol: match socket.transport {
                Transport::Tcp => Carrier::TCP.0,
                Transport::Udp => Carrier::UDP.0,
            },
            process: Process::default(),
            outcome: Outcome::OpenedBefore,
        });
        record.client = socket.local;
        record.verdict = Verdict::without_rule(Outcome::OpenedBefore);
        record
    }

    fn counted(&self, entry: Entry, attempts: u64) -> Option<Record> {
        if attempts == 0 {
            return None;
        }
        let mut record = self.record(&entry);
        record.attempts = attempts;
        if entry.outcome.class() == Class::Allow {
            if record.enforced && !record.verdict.is_allow() {
                // It was allowed when it was sent.
                record.verdict = Verdict::without_rule(entry.outcome);
            }
            record.status = 200;
            record.ending = Ending::Complete;
            record.upstream = Some(entry.peer);
            record.relation = Some(AddressRelation::Literal);
        }
        Some(record)
    }

    fn record(&self, entry: &Entry) -> Record {
        let (workload, verdict, enforced) = self.judge(entry);
        Record {
            started: Timestamp::now(),
            duration: Duration::ZERO,
            client: self.client(entry),
            original: entry.peer,
            workload,
            process: entry.process.clone(),
            carrier: Carrier(entry.protocol),
            protocol: Protocol::Unknown,
            asked: Asked::Tunnel {
                host: Host::Address(entry.peer.ip()),
                port: entry.peer.port(),
            },
            tls: None,
            status: FORBIDDEN,
            bytes_to_client: 0,
            bytes_to_origin: 0,
            referer: None,
            user_agent: None,
            content_type: None,
            upstream: None,
            by_parent: false,
            relation: None,
            verdict,
            enforced,
            ending: Ending::Refused,
            attempts: 1,
        }
    }

    /// The policies' words for what the kernel has decided by its tables, with the rule. It is asked a moment later: where
    /// the policies have changed meanwhile and say something else, the kernel's own word stands.
    fn judge(&self, entry: &Entry) -> (Arc<Workload>, Verdict, bool) {
        let kernel = Verdict::without_rule(entry.outcome);
        let Some(workload) = self.identities.of(entry.cgroup) else {
            // Gone, or not known yet.
            return (Arc::default(), kernel, true);
        };
        let view = self.set.view(&workload);
        let enforced = view.posture() == Posture::Enforce;
        let address = entry.peer.ip();
        let is_datagram = Carrier(entry.protocol).as_str() == "udp";
        let by_policies = || {
            if is_datagram {
                return view.judge_datagram(address, entry.peer.port());
            }
            view.judge(&Target {
                host: &Host::Address(address),
                port: entry.peer.port(),
                address,
                request: None,
            })
        };
        // Everything else is the kernel's to say.
        let verdict = if entry.outcome == Outcome::Refused {
            let verdict = by_policies();
            if verdict.is_allow() { kernel } else { verdict }
        } else if matches!(
            entry.outcome,
            Outcome::Direct | Outcome::OtherTcp | Outcome::OtherUdp
        ) {
            by_policies()
        } else if entry.outcome == Outcome::OtherSocket {
            // No rule can allow what is neither TCP nor UDP.
            Verdict::without_rule(if view.is_selected() {
                Outcome::ForbiddenProtocol
            } else {
                Outcome::Unselected
            })
        } else {
            kernel
        };
        (workload, verdict, enforced)
    }

    /// The workload's own address, as its namespace's route to the world has it; unspecified where that is not known.
    fn client(&self, entry: &Entry) -> SocketAddr {
        let source = self.sites.source_of(entry.netns, entry.peer.is_ipv4());
        let unknown = || match entry.peer {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        SocketAddr::new(source.unwrap_or_else(unknown), 0)
    }
}

/// What the log has as status of a refusal that has no status on the wire: squid's own for a denied CONNECT.
const FORBIDDEN: u16 = 403;

fn of_flow(flow: &Flow) -> Option<Entry> {
    Some(Entry {
        cgroup: flow.cgroup,
        netns: flow.netns,
        peer: flow.destination.socket_addr(),
        protocol: u16::try_from(flow.protocol).ok()?,
        process: process(flow.pid, flow.uid, &flow.command),
        outcome: known(u16::try_from(flow.outcome).ok()?)?,
    })
}

fn known(number: u16) -> Option<Outcome> {
    let outcome = Outcome::from_number(number);
    if outcome.is_none() {
        tracing::error!(number, "an outcome that this agent does not know");
    }
    outcome
}

fn process(pid: u32, uid: u32, command: &[u8; 16]) -> Process {
    let end = command
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(command.len());
    Process {
        pid,
        uid,
        command: String::from_utf8_lossy(command.get(..end).unwrap_or_default()).into_owned(),
    }
}

fn started_before(duration: Duration) -> Timestamp {
    let now = Timestamp::now();
    now.checked_sub(duration).unwrap_or(now)
}
