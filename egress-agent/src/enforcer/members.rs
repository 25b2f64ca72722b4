//! Who is in the enforced cgroup, followed as it changes: which cgroups the kernel leaves alone, and what is judged again.

use std::{io, sync::Arc};

use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

use super::Enforcer;
use crate::identity::{Changes, Identities};

/// How often what is open is judged again at most because workloads have changed, which anybody may bring about who may
/// label pods: it means a look at every socket and every tunnel.
const JUDGE_PERIOD: Duration = Duration::from_secs(1);

/// What there is to follow.
#[derive(Debug)]
pub(super) struct IdentityChanges {
    cgroups: watch::Receiver<u64>,
    pods: Option<watch::Receiver<u64>>,
    judged: Option<watch::Receiver<u64>>,
    /// Before this the next change of the latter is not told.
    judged_next: Instant,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// A cgroup has become known.
    Cgroup,
    /// A pod has become known, or more of it.
    Pod,
    /// A workload is not what it was, in a way that verdicts depend on.
    Judged,
}

impl IdentityChanges {
    pub(super) fn of(identities: &Arc<Identities>) -> Self {
        let directory = identities.directory();
        Self {
            cgroups: identities.changes(),
            pods: directory.map(|directory| directory.changes()),
            judged: directory.map(|directory| directory.judged_changes()),
            judged_next: Instant::now(),
        }
    }

    /// Waits for a change. Several that come together are one, as are all of the same second that concern verdicts but for
    /// the first one. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Changed {
        let judged = async {
            sleep_until(self.judged_next).await;
            changed(self.judged.as_mut()).await;
        };
        tokio::select! {
            biased;
            () = judged => {
                self.judged_next = Instant::now() + JUDGE_PERIOD;
                Changed::Judged
            }
            () = changed(self.pods.as_mut()) => Changed::Pod,
            () = changed(Some(&mut self.cgroups)) => Changed::Cgroup,
        }
    }
}

/// For ever if there is nothing to follow, or nobody left who could change it.
async fn changed(what: Option<&mut watch::Receiver<u64>>) {
    let is_alive = match what {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => false,
    };
    if !is_alive {
        std::future::pending().await
    }
}

impl Enforcer {
    pub(super) fn follow_identities(&mut self, what: Changed) {
        match (what, self.identities.news()) {
            (Changed::Judged, _) => {
                self.follow_exempt();
                self.enrol();
                match self.sites.census() {
                    Ok(census) => self.purge(census.open_namespaces()),
                    Err(error) => {
                        tracing::error!(%error, "cannot look at connections that are no longer allowed")
                    }
                }
                self.services.policy.judge_again();
            }
            (Changed::Cgroup | Changed::Pod, Changes::All) => {
                self.follow_exempt();
                self.enrol();
            }
            (Changed::Cgroup | Changed::Pod, Changes::Of(cgroups)) => {
                let is_exempt = |cgroup| self.identities.of(cgroup).is_some_and(|of| of.is_exempt());
                let mut each = cgroups.iter().copied();
                if each.any(|cgroup| is_exempt(cgroup) != self.exempted.contains(&cgroup)) {
                    self.follow_exempt();
                }
                self.enrol_those(cgroups);
            }
        }
    }

    /// Tells the kernel of the cgroups that are left alone, if they are others than before.
    pub(super) fn follow_exempt(&mut self) {
        let before = std::mem::take(&mut self.exempted);
        let predecessor = self.predecessor.as_ref().map(|predecessor| predecessor.pid);
        let result = super::parts::exempt_cgroups(&self.mount, &self.cgroup, predecessor, &self.identities);
        let told = result.and_then(|now| {
            if now != before {
                self.settings.exempt(&now)?;
            }
            self.exempted = now;
            Ok(())
        });
        if let Err(error) = told {
            // Emptied above, so the next sweep tries again. Until then they are judged as observed ones by the proxy.
            tracing::error!(
                error = format!("{error:#}"),
                "exempt cgroups cannot be told to the kernel"
            );
        }
    }

    /// Takes in cgroups that have come or gone, or whose workloads are others now.
    pub(super) fn enrol(&mut self) {
        let set = self.services.policy.load();
        told(self.roster.enrol(&set).map(drop));
        self.meet_strangers();
    }

    /// Takes in these cgroups.
    pub(super) fn enrol_those(&mut self, cgroups: impl IntoIterator<Item = u64>) {
        let set = self.services.policy.load();
        told(self.roster.enrol_those(&set, cgroups));
        self.meet_strangers();
    }
}

fn told(enrolled: io::Result<()>) {
    if let Err(error) = enrolled {
        tracing::error!(%error, "the kernel cannot be told of all cgroups: unknown ones are held and refused");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_change_of_verdicts_is_told_at_once_and_the_rest_once_a_second() {
        let (cgroups, pods, judged) = (
            watch::Sender::new(0),
            watch::Sender::new(0),
            watch::Sender::new(0),
        );
        let mut changes = IdentityChanges {
            cgroups: cgroups.subscribe(),
            pods: Some(pods.subscribe()),
            judged: Some(judged.subscribe()),
            judged_next: Instant::now(),
        };
        let begun = Instant::now();
        judged.send_modify(|number| *number += 1);
        assert_eq!(changes.next().await, Changed::Judged);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            judged.send_modify(|number| *number += 1);
            // As serving does when something else is ready.
            let early = timeout(JUDGE_PERIOD / 1000, changes.next()).await;
            assert!(early.is_err(), "{early:?}");
        }
        // What else there is does not wait.
        pods.send_modify(|number| *number += 1);
        assert_eq!(changes.next().await, Changed::Pod);
        assert!(begun.elapsed() < JUDGE_PERIOD);
        assert_eq!(changes.next().await, Changed::Judged);
        assert_eq!(begun.elapsed(), JUDGE_PERIOD);
        let more = timeout(JUDGE_PERIOD * 2, changes.next()).await;
        assert!(more.is_err(), "all of them were one: {more:?}");
        judged.send_modify(|number| *number += 1);
        let begun = Instant::now();
        assert_eq!(changes.next().await, Changed::Judged);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
