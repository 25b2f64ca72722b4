//! Sets of ports.

use std::ops::RangeInclusive;

/// A set of ports as sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PortSet {
    ranges: Vec<RangeInclusive<u16>>,
}

impl PortSet {
    /// Every port.
    #[must_use]
    pub fn all() -> Self {
        Self::from_iter([0..=u16::MAX])
    }

    /// Whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        let candidate = self.ranges.partition_point(|range| *range.end() < port);
        self.ranges
            .get(candidate)
            .is_some_and(|range| range.contains(&port))
    }

    /// The ranges, ascending, with at least one port between two of them that is not in the set.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.ranges
    }

    /// Whether no port is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Every port of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.ranges.iter().flat_map(Clone::clone)
    }

    /// The ports of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.ranges.iter().chain(&other.ranges).cloned().collect()
    }

    /// The ports of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let overlaps = self.ranges.iter().flat_map(|mine| {
            other
                .ranges
                .iter()
                .map(move |theirs| *mine.start().max(theirs.start())..=*mine.end().min(theirs.end()))
        });
        overlaps.collect()
    }

    /// The ports of this set that are not in the other one.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.ranges.len() + 1);
        let mut next = Some(0);
        for range in &self.ranges {
            if let Some(start) = next
                && let Some(end) = range.start().checked_sub(1)
            {
                gaps.push(start..=end);
            }
            next = range.end().checked_add(1);
        }
        gaps.extend(next.map(|start| start..=u16::MAX));
        gaps.into_iter().collect()
    }
}

impl FromIterator<RangeInclusive<u16>> for PortSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=(*last.end()).max(*range.end());
                }
                Some(_) | None => merged.push(range),
            }
        }
        Self { ranges: merged }
    }
}

impl std::fmt::Display for PortSet {
    /// `80, 443, 8000-8999`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            if range.start() == range.end() {
                write!(f, "{separator}{}", range.start())?;
            } else {
                write!(f, "{separator}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_merged_and_print_shortly() {
        let set: PortSet = [443..=443, 8000..=8500, 80..=80, 8400..=8999, 81..=82]
            .into_iter()
            .collect();
        assert_eq!(set.to_string(), "80-82, 443, 8000-8999");
        assert_eq!(PortSet::all().ranges(), [0..=u16::MAX]);
    }

    proptest! {
        #[test]
        fn a_set_contains_exactly_the_ports_of_its_ranges(
            pairs in prop::collection::vec((0_u16..60, 0_u16..60), 0..6), probe in 0_u16..64,
        ) {
            let ranges: Vec<_> = pairs.into_iter().map(|(start, end)| start..=end).collect();
            let set: PortSet = ranges.iter().cloned().collect();
            prop_assert_eq!(set.contains(probe), ranges.iter().any(|range| range.contains(&probe)));
            prop_assert_eq!(set.contains(probe), set.iter().any(|port| port == probe));
        }

        #[test]
        fn sets_are_cut_port_by_port(
            left in prop::collection::vec((0_u16..60, 0_u16..60), 0..6),
            right in prop::collection::vec((0_u16..60, 0_u16..60), 0..6),
        ) {
            let set = |pairs: Vec<(u16, u16)>| -> PortSet {
                pairs.into_iter().map(|(start, end)| start..=end).collect()
            };
            let (left, right) = (set(left), set(right));
            for port in (0..64).chain([u16::MAX]) {
                let (in_left, in_right) = (left.contains(port), right.contains(port));
                prop_assert_eq!(left.intersection(&right).contains(port), in_left && in_right);
                prop_assert_eq!(left.without(&right).contains(port), in_left && !in_right);
                prop_assert_eq!(PortSet::all().without(&left).contains(port), !in_left);
            }
        }
    }
}
