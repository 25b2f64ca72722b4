//! Denials as the people are told of them who own the pods. Losing one is nothing: the access log has them all.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use egress_common::outcome::Class;
use tokio::sync::mpsc;

use super::Verdict;
use crate::identity::Workload;

/// How many may wait to be told.
const QUEUE: usize = 1024;

/// A pod was refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// What it asked for: a name or an address.
    pub host: String,
    /// The port that it dialled; none where a name was looked up.
    pub port: Option<u16>,
    /// Whether it asked by UDP.
    pub is_udp: bool,
    /// Why not.
    pub verdict: Verdict,
    /// False where it was only audited: it has passed.
    pub enforced: bool,
}

/// Takes denials from the data path, and never waits: what finds no place is counted. The default takes none.
#[derive(Debug, Clone, Default)]
pub struct DenialFeed {
    queue: Option<mpsc::Sender<Denial>>,
    lost: Arc<AtomicU64>,
}

impl DenialFeed {
    /// A feed, and where it leads to.
    #[must_use]
    pub fn open() -> (Self, mpsc::Receiver<Denial>) {
        let (queue, denials) = mpsc::channel(QUEUE);
        let feed = Self {
            queue: Some(queue),
            lost: Arc::default(),
        };
        (feed, denials)
    }

    /// Whether denials go anywhere.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// Tells of a verdict, if it is a denial, and of a pod. What was `asked` for, by which port, and whether by UDP, is looked at only then.
    pub fn tell(
        &self,
        workload: &Workload,
        verdict: &Verdict,
        enforced: bool,
        asked: impl FnOnce() -> Option<(String, Option<u16>, bool)>,
    ) {
        let Some(queue) = &self.queue else {
            return;
        };
        if verdict.outcome.class() != Class::Deny {
            return;
        }
        let Some(pod) = &workload.pod else {
            return;
        };
        let Some((host, port, is_udp)) = asked() else {
            return;
        };
        let denial = Denial {
            namespace: workload.namespace.clone(),
            pod: workload.name.clone(),
            uid: pod.uid.to_string(),
            host,
            port,
            is_udp,
            verdict: verdict.clone(),
            enforced,
        };
        if queue.try_send(denial).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many found no place.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
