//! The status of a policy, from what the nodes say: a pure function.

use jiff::Timestamp;

use super::{fingerprint::Fingerprint, node::NodeReport};
use crate::policy::{
    InForce, ObjectFact,
    object_status::{ACCEPTED, Condition, ObjectStatus},
    shortened,
};

/// Most of an error that a condition tells; its whole message may have 32768 bytes.
const MOST_BYTES: usize = 4096;

/// The status of the policy that `fact` is about. `own` is what the writer itself has in force: a node that has the same
/// has this policy in force.
pub(super) fn status_of<'a>(
    fact: &ObjectFact,
    own: &Fingerprint,
    nodes: impl Iterator<Item = &'a NodeReport>,
    before: Option<&ObjectStatus>,
    now: Timestamp,
) -> ObjectStatus {
    let (mut total, mut in_force, mut pods) = (0, 0, 0);
    for node in nodes {
        total += 1;
        pods += node.pods(&fact.uid);
        let has_it = fact.in_force == InForce::Newest && node.print.agrees_on(own, &fact.uid);
        in_force += u64::from(has_it);
    }
    ObjectStatus {
        observed_generation: fact.generation,
        pods,
        nodes: format!("{in_force}/{total}"),
        nodes_in_force: in_force,
        nodes_total: total,
        conditions: vec![accepted(fact, before, now)],
    }
}

fn accepted(fact: &ObjectFact, before: Option<&ObjectStatus>, now: Timestamp) -> Condition {
    let (status, reason, message) = match &fact.error {
        Some(error) => (
            "False",
            "Invalid",
            format!("{}; {}", shortened(error, MOST_BYTES), fact.in_force),
        ),
        None => {
            let reason = match fact.in_force {
                InForce::FileInstead => "FileInstead",
                InForce::Newest | InForce::Older(_) | InForce::Closed => "Valid",
            };
            ("True", reason, fact.in_force.to_string())
        }
    };
    let earlier = before
        .and_then(|before| before.condition(ACCEPTED))
        .filter(|condition| condition.status == status);
    Condition {
        kind: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: earlier.map_or_else(
            || format!("{now:.0}"),
            |condition| condition.last_transition_time.clone(),
        ),
        observed_generation: fact.generation,
    }
}

#[cfg(test)]
mod tests;
