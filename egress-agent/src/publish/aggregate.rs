//! Denials, gathered: what was refused a thousand times is told now and then, with its count.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::policy::Denial;

/// Most denials that are told apart.
const MOST: usize = 2048;
/// Most of a pod; further ones are told as one.
const MOST_OF_POD: usize = 16;
/// How soon what was told is told again, with its new count. Doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// At most so late.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// What did not happen again for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(1800);

/// A series of equal denials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Series {
    /// The last of them. Where a pod's are too many to be told apart, the first that found no place.
    pub(super) denial: Denial,
    /// Whether it stands for several that differ.
    pub(super) is_rest: bool,
    /// How many there were.
    pub(super) count: u32,
    /// When the first was.
    pub(super) first: Timestamp,
    /// When the last was.
    pub(super) last: Timestamp,
    /// How often it was told.
    told: u32,
    untold: u32,
    due: Instant,
    heard: Instant,
}

/// All that is remembered.
#[derive(Debug, Default)]
pub(super) struct Aggregate {
    series: BTreeMap<Key, Series>,
    /// How many series each pod has, by its UID.
    pods: HashMap<String, usize>,
    /// Denials that found no place.
    pub(super) lost: u64,
}

/// What makes denials equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    uid: String,
    /// What was asked for and why not; none for the rest of a pod.
    what: Option<What>,
}

/// Host, port, outcome, rule, and whether it was enforced.
type What = (String, Option<u16>, &'static str, Option<String>, bool);

impl Aggregate {
    /// Takes one in.
    pub(super) fn add(&mut self, denial: Denial, now: Instant, time: Timestamp) {
        let key = self.key(&denial);
        let is_rest = key.what.is_none();
        if let Some(series) = self.series.get_mut(&key) {
            series.count = series.count.saturating_add(1);
            series.untold = series.untold.saturating_add(1);
            series.last = time;
            series.heard = now;
            return;
        }
        if self.series.len() >= MOST {
            self.lost += 1;
            return;
        }
        *self.pods.entry(denial.uid.clone()).or_default() += 1;
        let series = Series {
            denial,
            is_rest,
            count: 1,
            first: time,
            last: time,
            told: 0,
            untold: 1,
            due: now,
            heard: now,
        };
        self.series.insert(key, series);
    }

    /// The next series that is to be told now, if there is one; it counts as told.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Series> {
        let series = self
            .series
            .values_mut()
            .filter(|series| series.untold > 0 && series.due <= now)
            .min_by_key(|series| series.due)?;
        let pause = FIRST_PAUSE
            .saturating_mul(1 << series.told.min(8))
            .min(LONGEST_PAUSE);
        series.told = series.told.saturating_add(1);
        series.untold = 0;
        series.due = now + pause;
        Some(series.clone())
    }

    /// Forgets what has not happened again.
    pub(super) fn sweep(&mut self, now: Instant) {
        let pods = &mut self.pods;
        self.series.retain(|key, series| {
            let stays = now.saturating_duration_since(series.heard) < FORGOTTEN;
            if !stays && let Some(number) = pods.get_mut(&key.uid) {
                *number -= 1;
            }
            stays
        });
        pods.retain(|_, number| *number > 0);
    }

    fn key(&self, denial: &Denial) -> Key {
        let what = (
            denial.host.clone(),
            denial.port,
            denial.verdict.outcome.as_str(),
            denial.verdict.rule.as_ref().map(ToString::to_string),
            denial.enforced,
        );
        let own = Key {
            uid: denial.uid.clone(),
            what: Some(what),
        };
        let has_room = self
            .pods
            .get(&denial.uid)
            .is_none_or(|number| *number < MOST_OF_POD);
        if has_room || self.series.contains_key(&own) {
            return own;
        }
        Key { what: None, ..own }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use egress_common::outcome::Outcome;

    use super::*;
    use crate::policy::Verdict;

    fn denial(uid: &str, host: &str) -> Denial {
        Denial {
            namespace: "a".to_owned(),
            pod: "p".to_owned(),
            uid: uid.to_owned(),
            host: host.to_owned(),
            port: Some(443),
            is_udp: false,
            verdict: Verdict::without_rule(Outcome::NoRule),
            enforced: true,
        }
    }

    fn told(aggregate: &mut Aggregate, now: Instant) -> Vec<(String, u32)> {
        std::iter::from_fn(|| aggregate.next_due(now))
            .map(|series| (series.denial.host, series.count))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_again_is_told_with_its_count_ever_less_often() {
        let (mut aggregate, begun, time) = (Aggregate::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        aggregate.add(denial("u", "x.test"), begun, time);
        assert_eq!(told(&mut aggregate, begun), [("x.test".to_owned(), 1)]);
        for _ in 0..1000 {
            aggregate.add(denial("u", "x.test"), begun, time);
        }
        assert!(told(&mut aggregate, begun + FIRST_PAUSE - Duration::from_millis(1)).is_empty());
        assert_eq!(
            told(&mut aggregate, begun + FIRST_PAUSE),
            [("x.test".to_owned(), 1001)]
        );
        assert!(
            told(&mut aggregate, begun + FIRST_PAUSE * 100).is_empty(),
            "nothing has happened since"
        );
        aggregate.add(denial("u", "x.test"), begun + FIRST_PAUSE, time);
        assert!(told(&mut aggregate, begun + FIRST_PAUSE * 2).is_empty());
        assert_eq!(told(&mut aggregate, begun + FIRST_PAUSE * 3).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_pod_nor_all_of_them_fill_the_memory() {
        let (mut aggregate, begun, time) = (Aggregate::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        for number in 0..1000 {
            aggregate.add(denial("u", &format!("{number}.test")), begun, time);
        }
        let series: Vec<_> = std::iter::from_fn(|| aggregate.next_due(begun)).collect();
        assert_eq!(series.len(), MOST_OF_POD + 1);
        let rest = series.iter().find(|series| series.is_rest).unwrap();
        assert_eq!(usize::try_from(rest.count).unwrap(), 1000 - MOST_OF_POD);
        for number in 0..10_000 {
            aggregate.add(denial(&format!("u{number}"), "x.test"), begun, time);
        }
        assert_eq!(aggregate.series.len(), MOST);
        assert_eq!(
            usize::try_from(aggregate.lost).unwrap(),
            10_000 - (MOST - MOST_OF_POD - 1)
        );
        aggregate.sweep(begun + FORGOTTEN);
        assert!(aggregate.series.is_empty() && aggregate.pods.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_name_by_another_rule_is_another_denial() {
        let (mut aggregate, begun, time) = (Aggregate::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        let mut other = denial("u", "x.test");
        other.verdict.rule = Some(Arc::new(crate::policy::RuleId {
            kind: crate::policy::PolicyKind::ClusterEgressPolicy,
            namespace: String::new(),
            policy: "base".to_owned(),
            list: "deny",
            index: Some(0),
        }));
        aggregate.add(denial("u", "x.test"), begun, time);
        aggregate.add(other, begun, time);
        assert_eq!(told(&mut aggregate, begun).len(), 2);
    }
}
