//! Watches that never give up.

use futures_util::{Stream, StreamExt};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};

use super::wait::Waits;

/// Seconds after which a watch is begun anew from where it was. A connection that died in silence is noticed 5 seconds
/// later; five minutes (kube's own value) would be long for a policy.
const WATCH_SECONDS: u32 = 55;

/// How everything is watched: a list, then a watch from there, which servers before 1.27 know too.
#[must_use]
pub fn watching() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// The events of a watch, without its errors: it is tried again for ever, at most every few seconds, and
/// [`super::Contact`] says that it fails. After a failure it goes on where it was, or with a new `Init`.
pub fn follow<K: Send>(
    what: &'static str,
    watch: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = Event<K>> + Send {
    watch.backoff(Waits::default()).filter_map(move |event| {
        let event = event
            .inspect_err(|error| tracing::debug!(%error, what, "a watch has failed and is begun again"))
            .ok();
        std::future::ready(event)
    })
}
