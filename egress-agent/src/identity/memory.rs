//! The pods of this node on disk, so that an agent that starts while the API server is away knows those that run.
//!
//! A pod that is not in it stays unknown, and is refused. One that is there no more has no cgroup that could be asked
//! about: UIDs are not used again.

use std::{path::Path, sync::Arc, time::Duration};

use super::{directory::PodDirectory, pods::Remembered};
use crate::cluster::Kept;

/// How often they are saved at most.
const SAVE_PERIOD: Duration = Duration::from_secs(2);

/// Where they are kept.
#[derive(Debug, Clone)]
pub struct PodMemory {
    kept: Kept,
}

impl PodMemory {
    /// In `pods.json` of a directory.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            kept: Kept::in_directory(directory, "pods.json"),
        }
    }

    /// What was saved last, and when.
    pub(super) fn recall(&self) -> Option<(Remembered, jiff::Timestamp)> {
        self.kept.recall()
    }
}

/// Saves what is known whenever it has changed. Not before it is whole: half a list must not replace a good one.
pub(super) async fn keep(directory: Arc<PodDirectory>, memory: PodMemory) {
    let mut changes = directory.changes();
    directory.listed().await;
    loop {
        let (remembered, kept) = (directory.to_keep(), memory.kept.clone());
        // Beside the runtime, because that blocks.
        let saved = tokio::task::spawn_blocking(move || kept.save(remembered)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the pods of this node cannot be kept for the next start");
        }
        tokio::time::sleep(SAVE_PERIOD).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}
