//! Sets of addresses as squid's `src` and `dst` have them. IPv4 addresses are mapped ones, as in squid itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// ::ffff:0.0.0.0.
const FIRST_V4: u128 = 0xffff << 32;
/// ::ffff:255.255.255.255.
const LAST_V4: u128 = FIRST_V4 | 0xffff_ffff;

/// Addresses as sorted intervals (both ends included) that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AddressSet {
    intervals: Vec<(u128, u128)>,
}

impl AddressSet {
    /// Every address.
    pub(super) fn all() -> Self {
        Self {
            intervals: vec![(0, u128::MAX)],
        }
    }

    /// A network.
    pub(super) fn of(net: IpNet) -> Self {
        Self::between(net.network(), net.broadcast())
    }

    /// From `first` to `last`.
    pub(super) fn between(first: IpAddr, last: IpAddr) -> Self {
        [(number(first), number(last))].into_iter().collect()
    }

    /// The intervals, ascending.
    pub(super) fn intervals(&self) -> &[(u128, u128)] {
        &self.intervals
    }

    /// Whether there is none.
    pub(super) const fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The addresses of either set.
    pub(super) fn union(&self, other: &Self) -> Self {
        self.intervals.iter().chain(&other.intervals).copied().collect()
    }

    /// Whether all of `other`, some of it, or nothing is in the set. Nothing is all of nothing.
    pub(super) fn covers(&self, other: &Self) -> Option<bool> {
        let is_in = |(first, last): &(u128, u128)| {
            self.intervals
                .iter()
                .any(|(start, end)| start <= first && last <= end)
        };
        let touches = |(first, last): &(u128, u128)| {
            self.intervals
                .iter()
                .any(|(start, end)| start <= last && first <= end)
        };
        if other.intervals.iter().all(is_in) {
            Some(true)
        } else if other.intervals.iter().any(touches) {
            None
        } else {
            Some(false)
        }
    }

    /// Whether `address` is in the set.
    pub(super) fn contains(&self, address: u128) -> bool {
        let candidate = self.intervals.partition_point(|(_, end)| *end < address);
        self.intervals
            .get(candidate)
            .is_some_and(|(start, _)| *start <= address)
    }

    /// The set as blocks of policies. Addresses that IPv6 has for IPv4 ones are left out: a policy names those as IPv4.
    pub(super) fn blocks(&self) -> Vec<IpNet> {
        let mut blocks = Vec::new();
        for (first, last) in &self.intervals {
            let (first, last) = (*first, *last);
            if let Some((first, last)) = within((first, last), (FIRST_V4, LAST_V4)) {
                let subnets = Ipv4Subnets::new(low_v4(first), low_v4(last), 0);
                blocks.extend(subnets.map(IpNet::V4));
            }
            for outside in [(0, FIRST_V4 - 1), (LAST_V4 + 1, u128::MAX)] {
                if let Some((first, last)) = within((first, last), outside) {
                    let subnets = Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0);
                    blocks.extend(subnets.map(IpNet::V6));
                }
            }
        }
        blocks
    }
}

impl FromIterator<(u128, u128)> for AddressSet {
    fn from_iter<I: IntoIterator<Item = (u128, u128)>>(intervals: I) -> Self {
        let mut sorted: Vec<_> = intervals
            .into_iter()
            .filter(|(first, last)| first <= last)
            .collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                Some(_) | None => merged.push((first, last)),
            }
        }
        Self { intervals: merged }
    }
}

/// A value of squid's `src` or `dst`. `None`: a host name, which squid looks up, or another form that is not understood.
pub(super) fn parse(text: &str) -> Option<AddressSet> {
    // The first ones squid takes for `all`, whatever they seem to say of IPv6.
    let everything = [
        "all",
        "0/0",
        "0.0.0.0/0",
        "0.0.0.0/0.0.0.0",
        "0.0.0.0-255.255.255.255",
    ];
    if everything.contains(&text) {
        return Some(AddressSet::all());
    }
    if text == "ipv4" {
        return Some([(FIRST_V4, LAST_V4)].into_iter().collect());
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        return (first.is_ipv4() == last.is_ipv4() && first <= last)
            .then(|| AddressSet::between(first, last));
    }
    let Some((address, mask)) = text.split_once('/') else {
        return text
            .parse()
            .ok()
            .map(|address: IpAddr| AddressSet::of(IpNet::from(address)));
    };
    let address: IpAddr = address.parse().ok()?;
    let length = match mask.parse::<Ipv4Addr>() {
        Ok(mask) => prefix_of(mask, address)?,
        Err(_) if mask.bytes().all(|byte| byte.is_ascii_digit()) => mask.parse().ok()?,
        Err(_) => return None,
    };
    // ::/0 has the mapped addresses in it or not, depending on squid's version.
    if length == 0 {
        return None;
    }
    IpNet::new(address, length)
        .ok()
        .map(|net| AddressSet::of(net.trunc()))
}

/// The length of a mask of ones before zeros.
fn prefix_of(mask: Ipv4Addr, address: IpAddr) -> Option<u8> {
    let bits = u32::from(mask);
    let length = bits.leading_ones();
    let is_prefix = address.is_ipv4() && bits.count_ones() == length;
    is_prefix.then(|| u8::try_from(length).ok()).flatten()
}

/// The number of an address, IPv4 ones mapped.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn within((first, last): (u128, u128), (start, end): (u128, u128)) -> Option<(u128, u128)> {
    let (first, last) = (first.max(start), last.min(end));
    (first <= last).then_some((first, last))
}

fn low_v4(number: u128) -> Ipv4Addr {
    let [.., a, b, c, d] = number.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> AddressSet {
        texts
            .iter()
            .map(|text| parse(text).unwrap())
            .fold(AddressSet::default(), |set, more| set.union(&more))
    }

    #[test]
    fn squids_forms_are_read() {
        for (text, blocks) in [
            ("192.0.2.1", vec!["192.0.2.1/32"]),
            ("10.1.2.3/8", vec!["10.0.0.0/8"]),
            ("10.0.0.0/255.255.0.0", vec!["10.0.0.0/16"]),
            ("192.0.2.1-192.0.2.2", vec!["192.0.2.1/32", "192.0.2.2/32"]),
            ("2001:db8::/32", vec!["2001:db8::/32"]),
            ("ipv4", vec!["0.0.0.0/0"]),
        ] {
            let found: Vec<_> = parse(text)
                .unwrap()
                .blocks()
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, blocks, "{text}");
        }
        assert_eq!(parse("0.0.0.0/0.0.0.0"), Some(AddressSet::all()));
        for text in [
            "host.test",
            "10.0.0.0/255.0.255.0",
            "::/0",
            "10.0.0.0/33",
            "1.2",
            "10-20",
            "",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_set_tells_all_from_some_from_none() {
        let nets = set(&["10.0.0.0/8", "11.0.0.0/8", "192.0.2.7"]);
        assert_eq!(nets.covers(&set(&["10.128.0.0-11.1.0.0"])), Some(true));
        assert_eq!(nets.covers(&set(&["192.0.2.0/24"])), None);
        assert_eq!(nets.covers(&set(&["203.0.113.0/24"])), Some(false));
        assert!(nets.contains(number("192.0.2.7".parse().unwrap())));
        assert!(!nets.contains(number("192.0.2.8".parse().unwrap())));
    }
}
