//! Which versions of which policies are in force on a node, in a few bytes: what it says of itself every few seconds.
//!
//! The names and generations of thousands of policies would be too much for that. So the policies are dealt out to 256
//! buckets by their UID, and each bucket has a sum of its policies, their generations and what is in them: after the API
//! server was restored from a backup a generation can be one that had other contents before. Two nodes that have the
//! same in a bucket have the same sum; a policy that is not there yet changes its own bucket alone.
//!
//! What goes into a sum may change from one version of the agent to the next. While both are there, during an update, the
//! leader does not count the nodes of the other version, and a status tells fewer than there are; nothing else follows.

use std::fmt::Write as _;

use crate::policy::{
    InForce, ObjectFact,
    fnv::{BASIS, hash},
};

const BUCKETS: usize = 256;

/// The sums.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    sums: [u32; BUCKETS],
}

impl Fingerprint {
    /// Of the objects whose newest version is in force.
    pub(super) fn of<'a>(facts: impl IntoIterator<Item = &'a ObjectFact>) -> Self {
        let mut sums = [0; BUCKETS];
        for fact in facts {
            if fact.in_force == InForce::Newest
                && let Some(sum) = sums.get_mut(bucket(&fact.uid))
            {
                let object = hash(fact.uid.as_bytes(), BASIS);
                let generation = hash(&fact.generation.to_be_bytes(), object);
                let version = hash(&fact.digest.to_be_bytes(), generation);
                // Whatever their order: nobody has one.
                *sum ^= folded(version);
            }
        }
        Self { sums }
    }

    /// Whether both have the same of the policies among which the one with this UID is.
    pub(super) fn agrees_on(&self, other: &Self, uid: &str) -> bool {
        let bucket = bucket(uid);
        self.sums.get(bucket) == other.sums.get(bucket)
    }

    /// `BUCKET:SUM` in hexadecimal digits, of the buckets that are not empty.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for (bucket, sum) in self.sums.iter().enumerate().filter(|(_, sum)| **sum != 0) {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String does not fail.
            let _infallible = write!(text, "{comma}{bucket:02x}:{sum:08x}");
        }
        text
    }

    /// The reverse; `None` for what no agent of this version wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut sums = [0; BUCKETS];
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (bucket, sum) = pair.split_once(':')?;
            let bucket = usize::from(u8::from_str_radix(bucket, 16).ok()?);
            *sums.get_mut(bucket)? = u32::from_str_radix(sum, 16).ok()?;
        }
        Some(Self { sums })
    }
}

fn bucket(uid: &str) -> usize {
    let [.., last] = hash(uid.as_bytes(), BASIS).to_be_bytes();
    usize::from(last)
}

/// Never 0, which is the sum of nothing.
fn folded(hash: u64) -> u32 {
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h])).max(1)
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{ObjectKey, PolicyKind};

    fn fact(uid: u32, generation: i64) -> ObjectFact {
        ObjectFact {
            key: ObjectKey {
                kind: PolicyKind::EgressPolicy,
                namespace: "a".to_owned(),
                name: format!("p{uid}"),
            },
            uid: format!("00000000-0000-4000-8000-{uid:012}"),
            generation,
            digest: 0,
            in_force: InForce::Newest,
            error: None,
        }
    }

    #[test]
    fn a_broken_policy_and_one_that_a_file_replaces_are_not_in_force() {
        let whole = Fingerprint::of(&[fact(1, 1), fact(2, 5)]);
        for in_force in [InForce::Older(4), InForce::Closed, InForce::FileInstead] {
            let broken = ObjectFact {
                in_force,
                ..fact(2, 5)
            };
            let one = Fingerprint::of(&[fact(1, 1), broken.clone()]);
            assert!(!whole.agrees_on(&one, &broken.uid));
        }
    }

    #[test]
    fn a_generation_with_other_contents_is_another() {
        let one = fact(1, 5);
        let other = ObjectFact {
            digest: 1,
            ..one.clone()
        };
        assert!(!Fingerprint::of([&one]).agrees_on(&Fingerprint::of([&other]), &one.uid));
    }

    #[test]
    fn what_nobody_wrote_is_refused() {
        for text in ["x", "00", "100:00000001", "00:", "00:zz", "00:00000001,"] {
            let read = Fingerprint::parse(text);
            assert_eq!(read.is_some(), text.ends_with(','), "{text}");
        }
        let nothing = Fingerprint::of(&[]);
        assert_eq!(nothing.to_text(), "");
        assert_eq!(Fingerprint::parse(""), Some(nothing));
    }

    proptest! {
        #[test]
        fn the_order_does_not_matter_and_a_changed_generation_shows(
            facts in prop::collection::btree_map(0_u32..10_000, 1_i64..9, 1..200), changed in any::<prop::sample::Index>(),
        ) {
            let mut facts: Vec<_> = facts.into_iter().map(|(uid, generation)| fact(uid, generation)).collect();
            let print = Fingerprint::of(&facts);
            prop_assert_eq!(Fingerprint::parse(&print.to_text()), Some(print.clone()));
            facts.reverse();
            prop_assert_eq!(&Fingerprint::of(&facts), &print);
            let changed = changed.index(facts.len());
            facts[changed].generation += 1;
            let uid = facts[changed].uid.clone();
            let other = Fingerprint::of(&facts);
            prop_assert!(!other.agrees_on(&print, &uid));
            let differing = facts.iter().filter(|fact| !other.agrees_on(&print, &fact.uid));
            prop_assert!(differing.into_iter().all(|fact| bucket(&fact.uid) == bucket(&uid)));
        }
    }
}
