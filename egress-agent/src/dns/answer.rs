//! What of a name server's answer reaches the workload, and what it teaches.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library has dozens of record types and codes, of which few concern us"
)]

use std::{collections::HashSet, net::IpAddr, time::Duration};

use hickory_proto::{
    op::Message,
    rr::{
        Name, RData, Record, RecordType,
        rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue},
    },
};

use super::message::Question;

/// Longer chains of aliases are not followed; resolvers follow 8 to 16.
const MOST_ALIASES: usize = 16;

/// What becomes of Encrypted ClientHello keys in HTTPS and SVCB records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ech {
    /// Taken out, so that clients send the server name in clear.
    #[default]
    Strip,
    /// Left in: names behind the keys cannot be judged then, only the public name in front of them.
    Allow,
}

/// What was done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Altered {
    /// Addresses that the name has no business to have were taken out.
    pub(super) private: bool,
    /// ECH keys were taken out.
    pub(super) ech: bool,
}

impl Altered {
    /// Whether anything was.
    #[must_use]
    pub(super) const fn any(self) -> bool {
        self.private || self.ech
    }
}

/// Takes out of `answer` what must not reach the workload. Signatures over what was altered go with it, and so does the
/// promise that the answer was verified.
pub(super) fn clean(answer: &mut Message, ech: Ech, is_refused: impl Fn(IpAddr) -> bool) -> Altered {
    let mut altered = Altered::default();
    let mut touched = HashSet::new();
    for section in [
        &mut answer.answers,
        &mut answer.authorities,
        &mut answer.additionals,
    ] {
        section.retain_mut(|record| {
            let (name, kind) = (record.name.clone(), record.record_type());
            if record.data.ip_addr().is_some_and(&is_refused) {
                altered.private = true;
                touched.insert((name, kind));
                return false;
            }
            if let Some(service) = service(&mut record.data) {
                let change = clean_service(service, ech, &is_refused);
                if change.any() {
                    touched.insert((name, kind));
                }
                altered.private |= change.private;
                altered.ech |= change.ech;
            }
            true
        });
    }
    if altered.any() {
        answer.metadata.authentic_data = false;
        for section in [
            &mut answer.answers,
            &mut answer.authorities,
            &mut answer.additionals,
        ] {
            section.retain(|record| !is_signature_of(record, &touched));
        }
    }
    altered
}

/// The addresses that `answer` gives the name asked for, over its aliases, each with the shortest time to live on the
/// way. Records of other names teach nothing.
#[must_use]
pub(super) fn addresses(question: &Question, answer: &Message) -> Vec<(IpAddr, Duration)> {
    let mut name: &Name = question.name();
    let mut lifetime = u32::MAX;
    for _ in 0..MOST_ALIASES {
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        name = target;
        lifetime = lifetime.min(ttl);
    }
    answer
        .answers
        .iter()
        .filter(|record| record.name == *name)
        .filter_map(|record| Some((record.data.ip_addr()?, record.ttl)))
        .map(|(address, ttl)| (address, Duration::from_secs(lifetime.min(ttl).into())))
        .collect()
}

fn service(data: &mut RData) -> Option<&mut SVCB> {
    match data {
        RData::HTTPS(https) => Some(&mut https.0),
        RData::SVCB(service) => Some(service),
        _ => None,
    }
}

fn clean_service(service: &mut SVCB, ech: Ech, is_refused: &impl Fn(IpAddr) -> bool) -> Altered {
    let mut altered = Altered::default();
    service.svc_params.retain_mut(|(_, value)| match value {
        SvcParamValue::EchConfigList(_) => {
            altered.ech |= ech == Ech::Strip;
            ech == Ech::Allow
        }
        SvcParamValue::Ipv4Hint(IpHint(hints)) => {
            let before = hints.len();
            hints.retain(|hint| !is_refused(hint.0.into()));
            altered.private |= hints.len() < before;
            !hints.is_empty()
        }
        SvcParamValue::Ipv6Hint(IpHint(hints)) => {
            let before = hints.len();
            hints.retain(|hint| !is_refused(hint.0.into()));
            altered.private |= hints.len() < before;
            !hints.is_empty()
        }
        _ => true,
    });
    let present: Vec<SvcParamKey> = service.svc_params.iter().map(|(key, _)| *key).collect();
    // A key that is said to be needed and is not there makes the whole record void (RFC 9460 section 8).
    service.svc_params.retain_mut(|(_, value)| match value {
        SvcParamValue::Mandatory(mandatory) => {
            mandatory.0.retain(|key| present.contains(key));
            !mandatory.0.is_empty()
        }
        _ => true,
    });
    altered
}

/// Whether a record is an RRSIG (RFC 4034 section 3: its first two bytes are the type that it covers) over one of
/// `touched`.
fn is_signature_of(record: &Record, touched: &HashSet<(Name, RecordType)>) -> bool {
    if record.record_type() != RecordType::RRSIG {
        return false;
    }
    let covered = match &record.data {
        RData::Unknown { rdata, .. } => match rdata.anything.as_slice() {
            [high, low, ..] => Some(RecordType::from(u16::from_be_bytes([*high, *low]))),
            _ => None,
        },
        _ => None,
    };
    // One that cannot be read is not worth keeping.
    covered.is_none_or(|kind| touched.contains(&(record.name.clone(), kind)))
}

#[cfg(test)]
mod tests;
