//! Domains of `dstdomain`, and the kinds of host that they tell apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::DomainName;

/// A value of `dstdomain`, or of an expression that says the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pattern {
    /// The name without a dot in front.
    pub name: DomainName,
    /// Whether the name itself matches.
    pub itself: bool,
    /// Whether all names below it match.
    pub below: bool,
}

/// A kind of host name, of which every acl that looks at names matches all or none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Names {
    /// This name.
    Exactly(DomainName),
    /// The names below it that are not at or below another name of the tree.
    Below(DomainName),
    /// The names that are at or below none.
    Elsewhere,
}

/// The names that occur, each with the nearest one above it.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    above: BTreeMap<DomainName, Option<DomainName>>,
}

impl Pattern {
    /// Reads a value of `dstdomain`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (below, name) = match text.strip_prefix('.') {
            Some(name) => (true, name),
            None => (false, text),
        };
        // A dot at the end, or a name that is written in Unicode, matches nothing, or what it does in some version only.
        if name.ends_with('.') || !name.is_ascii() {
            return None;
        }
        Some(Self {
            name: DomainName::parse(name).ok()?,
            itself: true,
            below,
        })
    }
}

impl Tree {
    /// The tree of these names.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a DomainName>) -> Self {
        let names: BTreeSet<&DomainName> = names.into_iter().collect();
        let above = names.iter().map(|name| {
            let nearest = parents(name).find_map(|parent| names.get(&parent).map(|found| (*found).clone()));
            ((*name).clone(), nearest)
        });
        Self {
            above: above.collect(),
        }
    }

    /// Every kind of host name.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Names> {
        let named = self
            .above
            .keys()
            .flat_map(|name| [Names::Exactly(name.clone()), Names::Below(name.clone())]);
        named.chain([Names::Elsewhere])
    }

    /// The names of the tree above `name`, the nearest first.
    pub(super) fn ancestors<'a>(&'a self, name: &DomainName) -> impl Iterator<Item = &'a DomainName> {
        let mut next = self.above.get(name).and_then(Option::as_ref);
        std::iter::from_fn(move || {
            let found = next?;
            next = self.above.get(found).and_then(Option::as_ref);
            Some(found)
        })
    }

    /// The names of the tree in their order.
    pub(super) fn names(&self) -> impl Iterator<Item = &DomainName> {
        self.above.keys()
    }

    /// The kinds of name that `patterns` match.
    pub(super) fn matched(&self, patterns: &BTreeSet<Pattern>, kind: &Names) -> bool {
        let has = |name: &DomainName, itself: bool| {
            [true, false].into_iter().any(|other| {
                let pattern = |itself, below| Pattern {
                    name: name.clone(),
                    itself,
                    below,
                };
                if itself {
                    patterns.contains(&pattern(true, other))
                } else {
                    patterns.contains(&pattern(other, true))
                }
            })
        };
        match kind {
            Names::Exactly(name) => has(name, true) || self.ancestors(name).any(|above| has(above, false)),
            Names::Below(name) => has(name, false) || self.ancestors(name).any(|above| has(above, false)),
            Names::Elsewhere => false,
        }
    }
}

/// The names above a name, the nearest first.
fn parents(name: &DomainName) -> impl Iterator<Item = DomainName> {
    let text = name.as_str();
    text.match_indices('.')
        .filter_map(move |(at, _)| DomainName::parse(text.get(at + 1..)?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    #[test]
    fn each_kind_of_name_is_matched_by_the_patterns_above_it() {
        let patterns: BTreeSet<_> = [".a.test", "b.a.test", "c.test"]
            .iter()
            .map(|text| Pattern::parse(text).unwrap())
            .collect();
        let tree = Tree::new(patterns.iter().map(|pattern| &pattern.name));
        let only = |text: &str| BTreeSet::from([Pattern::parse(text).unwrap()]);
        for (pattern, kind, expected) in [
            (".a.test", Names::Exactly(name("a.test")), true),
            (".a.test", Names::Below(name("a.test")), true),
            (".a.test", Names::Exactly(name("b.a.test")), true),
            (".a.test", Names::Below(name("b.a.test")), true),
            ("b.a.test", Names::Exactly(name("b.a.test")), true),
            ("b.a.test", Names::Below(name("b.a.test")), false),
            ("c.test", Names::Exactly(name("c.test")), true),
            ("c.test", Names::Below(name("c.test")), false),
            (".a.test", Names::Elsewhere, false),
        ] {
            assert_eq!(
                tree.matched(&only(pattern), &kind),
                expected,
                "{pattern} {kind:?}"
            );
        }
        assert_eq!(tree.kinds().count(), 7);
    }

    #[test]
    fn what_squid_might_read_otherwise_is_no_pattern() {
        for text in ["a.test.", "b\u{fc}cher.test", "..a.test", "a b", ""] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
    }
}
