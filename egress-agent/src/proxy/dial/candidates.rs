//! Which addresses may be dialled, and in which order.

use std::{collections::VecDeque, net::IpAddr};

use egress_common::outcome::Outcome;

use super::{DialError, Sought};
use crate::access_log::AddressRelation;

/// The addresses to be dialled in their order, and what they say of the one that the workload dialled. Never empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidates {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) relation: AddressRelation,
}

impl Candidates {
    /// One address and no other.
    pub(super) fn one(address: IpAddr, relation: AddressRelation) -> Self {
        Self {
            addresses: vec![address],
            relation,
        }
    }

    /// Those of a name that the workload has not asked for.
    pub(super) fn in_order(addresses: impl IntoIterator<Item = IpAddr>, sought: Sought) -> Self {
        let addresses = addresses.into_iter().map(|address| address.to_canonical());
        Self {
            addresses: interleave(addresses.collect(), sought.hint()),
            relation: AddressRelation::Named,
        }
    }

    /// A literal address is dialled only if it is the one that the workload dialled anyway, or dialled none: the policy
    /// judged that one.
    pub(super) fn literal(address: IpAddr, sought: Sought) -> Result<Self, DialError> {
        let address = address.to_canonical();
        match sought {
            Sought::Dialled(original) if original.ip().to_canonical() != address => {
                Err(refusal(Outcome::AddressMismatch, AddressRelation::Mismatch))
            }
            Sought::Dialled(_) | Sought::Named { .. } => Ok(Self::one(address, AddressRelation::Literal)),
        }
    }

    /// All of a name's addresses, before anything is dropped.
    pub(super) fn of_name(addresses: impl IntoIterator<Item = IpAddr>, sought: Sought) -> Self {
        let addresses: Vec<IpAddr> = addresses
            .into_iter()
            .map(|address| address.to_canonical())
            .collect();
        Self {
            relation: relation(&addresses, sought),
            addresses,
        }
    }

    /// Those for which `why_not` has no outcome; the first outcome if none is left.
    pub(super) fn without(mut self, why_not: impl Fn(IpAddr) -> Option<Outcome>) -> Result<Self, DialError> {
        let mut why = None;
        self.addresses.retain(|address| {
            let outcome = why_not(*address);
            why = why.or(outcome);
            outcome.is_none()
        });
        match why {
            Some(outcome) if self.addresses.is_empty() => Err(refusal(outcome, self.relation)),
            _ => Ok(self),
        }
    }

    /// The workload's own address alone if it is still among them; else, unless `strict`, all in their order.
    pub(super) fn pinned(self, sought: Sought, strict: bool) -> Result<Self, DialError> {
        // Anew: a dialled address that was dropped is not the one that will be reached.
        let relation = relation(&self.addresses, sought);
        match relation {
            AddressRelation::Match => Ok(Self::one(sought.hint(), relation)),
            AddressRelation::Mismatch if strict => Err(refusal(Outcome::AddressMismatch, relation)),
            AddressRelation::Mismatch | AddressRelation::Literal | AddressRelation::Named => Ok(Self {
                addresses: interleave(self.addresses, sought.hint()),
                relation,
            }),
        }
    }
}

fn relation(addresses: &[IpAddr], sought: Sought) -> AddressRelation {
    match sought {
        Sought::Named { .. } => AddressRelation::Named,
        Sought::Dialled(original) if addresses.contains(&original.ip().to_canonical()) => {
            AddressRelation::Match
        }
        Sought::Dialled(_) => AddressRelation::Mismatch,
    }
}

fn refusal(outcome: Outcome, relation: AddressRelation) -> DialError {
    DialError {
        relation: Some(relation),
        ..DialError::new(outcome)
    }
}

/// The families in turn, as RFC 8305 section 4 has it. It begins with the family that the workload dialled rather than
/// with IPv6: the workload has made that choice with its own knowledge of the network (its own race, an IPv4-only
/// runtime), and a black hole of the other family would cost each connection the head start.
fn interleave(addresses: Vec<IpAddr>, original: IpAddr) -> Vec<IpAddr> {
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == original.is_ipv4());
    if first.is_empty() {
        std::mem::swap(&mut first, &mut second);
    }
    let mut order = Vec::with_capacity(first.len() + second.len());
    while let Some(address) = first.pop_front() {
        order.push(address);
        if !second.is_empty() {
            std::mem::swap(&mut first, &mut second);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_beginning_with_the_one_the_workload_dialled() {
        let list = |text: &[&str]| {
            text.iter()
                .map(|address| address.parse().unwrap())
                .collect::<Vec<IpAddr>>()
        };
        let answers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"];
        assert_eq!(
            interleave(list(&answers), "2001:db8::9".parse().unwrap()),
            list(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]),
        );
        assert_eq!(
            interleave(list(&answers), "192.0.2.9".parse().unwrap()),
            list(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]),
        );
        assert_eq!(
            interleave(list(&["192.0.2.1", "192.0.2.2"]), "2001:db8::9".parse().unwrap()),
            list(&["192.0.2.1", "192.0.2.2"]),
            "no address of the dialled family",
        );
    }
}
