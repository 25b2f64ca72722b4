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
    /// From now on nothing new begins; what is open may end by itself within `grace`. Started again, it has another deadline.
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

    /// Waits for the deadline after [`Self::started`], which may be changed meanwhile.
    pub async fn deadline(&mut self) {
        self.started().await;
        loop {
            let deadline = *self.state.borrow_and_update();
            let Some(deadline) = deadline else { return };
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                changed = self.state.changed() => if changed.is_err() {
                    // Nobody can change it any more.
                    return tokio::time::sleep_until(deadline).await;
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_follows_its_trigger() {
        let (trigger, mut watcher) = channel();
        trigger.start(LONG);
        let begun = Instant::now();
        let sooner = async {
            tokio::time::sleep(LONG / 10).await;
            trigger.start(Duration::ZERO);
        };
        tokio::join!(watcher.deadline(), sooner);
        assert!(begun.elapsed() < LONG / 5, "{:?}", begun.elapsed());

        trigger.start(LONG / 10);
        let begun = Instant::now();
        let later = async {
            tokio::time::sleep(LONG / 20).await;
            trigger.start(LONG);
            drop(trigger);
        };
        tokio::join!(watcher.deadline(), later);
        assert!(begun.elapsed() >= LONG, "{:?}", begun.elapsed());
    }
}
