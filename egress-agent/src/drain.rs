//! Stopping: a trigger that supervise holds, and watchers that tell tasks to stop accepting and, later, to give up.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// Starts the drain.
#[derive(Debug)]
pub struct DrainTrigger {
    state: watch::Sender<Option<Instant>>,
}

/// Learns of the drain.
#[derive(Debug, Clone)]
pub struct DrainWatcher {
    state: watch::Receiver<Option<Instant>>,
}

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (DrainTrigger, DrainWatcher) {
    let (sender, receiver) = watch::channel(None);
    (DrainTrigger { state: sender }, DrainWatcher { state: receiver })
}

impl DrainTrigger {
    /// From now on nothing new begins; what is open may end by itself within `grace`.
    pub fn start(&self, grace: Duration) {
        self.state.send_replace(Some(Instant::now() + grace));
    }
}

impl DrainWatcher {
    /// Waits for the drain to start. A trigger that is dropped counts as a start.
    pub async fn started(&mut self) {
        // The error says that the trigger is gone.
        drop(self.state.wait_for(Option::is_some).await.map(|_| ()));
    }

    /// Waits for the deadline after [`Self::started`].
    pub async fn deadline(&mut self) {
        self.started().await;
        let deadline = *self.state.borrow();
        if let Some(deadline) = deadline {
            tokio::time::sleep_until(deadline).await;
        }
    }
}
