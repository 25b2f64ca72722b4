//! 1xx heads of an origin. hyper's server can answer with a final status only, so they go around it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::{sync::Notify, time};

/// An origin that sends more than this before its answer is not taken seriously: the rest of its 1xx heads is dropped.
const MOST_BYTES: usize = 64 * 1024;
/// How long a body that its client announced with `Expect: 100-continue` is held back for the origin's word. Clients
/// themselves do not wait for ever (RFC 9110 section 10.1.1; curl waits 1 s), and an old origin never says 100.
const PATIENCE: Duration = Duration::from_secs(1);

/// 1xx heads waiting to be sent to the client. `Send`, because hyper's callback has to be, although all of it runs in one
/// thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Interim {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    heads: Bytes,
    waker: Option<Waker>,
}

/// Holds the body of one request back until its origin asks for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    word: Arc<Notify>,
}

impl Interim {
    /// Wakes the client's task when there is something to send.
    pub(super) fn register(&self, waker: &Waker) {
        let mut queue = self.lock();
        if !queue.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            queue.waker = Some(waker.clone());
        }
    }

    /// What is to be sent next.
    pub(super) fn take(&self) -> Option<Bytes> {
        let heads = std::mem::take(&mut self.lock().heads);
        (!heads.is_empty()).then_some(heads)
    }

    /// What could not be sent yet; nothing was queued in the meantime, as all runs in one thread.
    pub(super) fn put_back(&self, heads: Bytes) {
        if !heads.is_empty() {
            self.lock().heads = heads;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().heads.is_empty()
    }

    /// Queues a head for the client. Names are in lower case: hyper does not tell how they were written.
    pub(super) fn push(&self, status: StatusCode, fields: &HeaderMap) {
        let reason = status.canonical_reason().unwrap_or_default();
        let mut queue = self.lock();
        let mut heads = BytesMut::from(queue.heads.as_ref());
        heads.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
        for (name, value) in fields {
            heads.put_slice(name.as_str().as_bytes());
            heads.put_slice(b": ");
            heads.put_slice(value.as_bytes());
            heads.put_slice(b"\r\n");
        }
        heads.put_slice(b"\r\n");
        if heads.len() <= MOST_BYTES {
            queue.heads = heads.freeze();
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// The origin said 100.
    pub(super) fn open(&self) {
        self.word.notify_one();
    }

    /// Waits for the origin's word, or until waiting makes no sense any more.
    pub(super) fn opened(&self) -> impl Future<Output = ()> + 'static {
        let word = Arc::clone(&self.word);
        async move {
            // Both ends mean the same: go on.
            drop(time::timeout(PATIENCE, word.notified()).await);
        }
    }
}
