//! Who is in the enforced cgroup, followed as it changes: which cgroups the kernel leaves alone, and what is judged again.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Enforcer, census::Census};
use crate::identity::Identities;

/// What there is to follow.
#[derive(Debug)]
pub(super) struct IdentityChanges {
    cgroups: Option<watch::Receiver<u64>>,
    pods: Option<watch::Receiver<u64>>,
    judged: Option<watch::Receiver<u64>>,
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
            // Without pods nothing depends on who is there.
            cgroups: directory.map(|_| identities.changes()),
            pods: directory.map(|directory| directory.changes()),
            judged: directory.map(|directory| directory.judged_changes()),
        }
    }

    /// Waits for a change. Several that come together are one.
    pub(super) async fn next(&mut self) -> Changed {
        tokio::select! {
            biased;
            () = changed(self.judged.as_mut()) => Changed::Judged,
            () = changed(self.pods.as_mut()) => Changed::Pod,
            () = changed(self.cgroups.as_mut()) => Changed::Cgroup,
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
            // Emptied above, so the next change tries again. Until then they are judged as observed ones by the proxy.
            tracing::error!(
                error = format!("{error:#}"),
                "exempt cgroups cannot be told to the kernel"
            );
        }
        match what {
            Changed::Cgroup if self.is_enrolled() => {}
            Changed::Cgroup | Changed::Pod => self.enrol(),
            Changed::Judged => {
                self.enrol();
                self.purge(&Census::of(&self.cgroup));
                self.services.policy.judge_again();
            }
        }
    }

    /// Whether the kernel knows every cgroup that is somebody's: at the first program of each it has been told.
    fn is_enrolled(&self) -> bool {
        let all = self.identities.all();
        all.iter().all(|(cgroup, _)| self.roster.knows(*cgroup))
    }
}
