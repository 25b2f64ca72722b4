//! Why a dial failed, told from the kernel's errors.

use std::{io, net::SocketAddr};

use egress_common::outcome::Outcome;

use super::Peer;
use crate::access_log::{AddressRelation, Record};

/// Why there is no upstream socket.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", outcome.as_str(), address.map_or_else(String::new, |address| format!(" ({address})")))]
pub struct DialError {
    /// The outcome for the record.
    pub outcome: Outcome,
    /// The last address tried, if one was.
    pub address: Option<SocketAddr>,
    /// What was learned of the dialled address before it failed.
    pub relation: Option<AddressRelation>,
    /// Whether it was the parent proxy that was tried.
    pub by_parent: bool,
    /// What the resolver, the kernel or the parent proxy said.
    pub source: Option<io::Error>,
}

impl DialError {
    /// An error without particulars.
    #[must_use]
    pub const fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            address: None,
            relation: None,
            by_parent: false,
            source: None,
        }
    }

    /// What failed on a connection to `peer`.
    #[must_use]
    pub const fn at(peer: &Peer, outcome: Outcome) -> Self {
        Self {
            outcome,
            address: Some(peer.address()),
            relation: peer.relation(),
            by_parent: peer.is_parent(),
            source: None,
        }
    }

    /// The same of the parent proxy, about whose addresses the workload has said nothing.
    #[must_use]
    pub(super) fn of_parent(self) -> Self {
        Self {
            relation: None,
            by_parent: true,
            ..self
        }
    }

    /// Tells a record what was tried.
    pub const fn note(&self, record: &mut Record) {
        record.upstream = self.address;
        record.relation = self.relation;
        record.by_parent = self.by_parent;
    }

    /// An attempt at `address` failed with `error`.
    pub(super) fn from_connect(error: io::Error, address: SocketAddr, relation: AddressRelation) -> Self {
        Self {
            outcome: outcome_of(&error),
            address: Some(address),
            relation: Some(relation),
            by_parent: false,
            source: Some(error),
        }
    }
}

/// connect(2), ERRORS, and what ICMP errors become in net/ipv4/icmp.c (`icmp_err_convert`).
fn outcome_of(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        // ECONNRESET: in answer to the handshake's last ACK. Something is there and refuses.
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Outcome::OriginRefused,
        Some(libc::ETIMEDOUT) => Outcome::OriginTimeout,
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::ENONET
            // A netfilter rule, an eBPF hook, a `prohibit` route.
            | libc::EPERM
            | libc::EACCES
            // A `blackhole` route.
            | libc::EINVAL
            // ICMP protocol unreachable.
            | libc::ENOPROTOOPT
            // The workload's source address or device has gone, or the family is switched off in its namespace.
            | libc::EADDRNOTAVAIL
            | libc::ENODEV
            | libc::EAFNOSUPPORT,
        ) => Outcome::OriginUnreachable,
        _ => Outcome::AgentError,
    }
}
