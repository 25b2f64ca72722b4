//! One request and its answer, as the access log will tell it. Recorded exactly once, whatever happens.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use egress_common::outcome::Outcome;
use http::{HeaderMap, Method, header};

use super::target::{Head, Target};

use crate::{
    access_log::{Asked, Ending, Pending, Protocol, Record},
    policy::{Host, Verdict},
    proxy::{
        Connection,
        dial::{DialError, Peer},
    },
};

/// The facts of one request, gathered while it runs. Handed to the log by [`Exchange::finish`], or when dropped: a
/// cancelled task leaves a record as well.
#[derive(Debug)]
pub(super) struct Exchange {
    connection: Arc<Connection>,
    begun: Instant,
    /// Taken out when it is handed over.
    record: Option<Record>,
}

impl Exchange {
    /// A request whose head has arrived, or ought to have.
    pub(super) fn begin(connection: &Arc<Connection>, protocol: Protocol) -> Self {
        let mut record = connection.record(Verdict::without_rule(Outcome::ClientGone));
        record.started = jiff::Timestamp::now();
        record.protocol = protocol;
        record.ending = Ending::Drained;
        Self {
            connection: Arc::clone(connection),
            begun: Instant::now(),
            record: Some(record),
        }
    }

    /// Counts from an earlier moment: a head that never became complete.
    pub(super) fn began(&mut self, ago: Duration) {
        let now = Instant::now();
        self.begun = now.checked_sub(ago).unwrap_or(now);
        let started = jiff::Timestamp::now();
        let started = jiff::SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| started.checked_sub(ago).ok())
            .unwrap_or(started);
        self.with(|record| record.started = started);
    }

    pub(super) fn fields(&mut self, fields: &HeaderMap) {
        self.with(|record| {
            record.referer = fields.get(header::REFERER).cloned();
            record.user_agent = fields.get(header::USER_AGENT).cloned();
        });
    }

    /// What was asked for, as far as it can be told: a request whose host is in doubt is logged with the dialled address
    /// in its place.
    pub(super) fn asked(&mut self, head: &Head<'_>, target: Option<&Target>) {
        let original = self.connection.original;
        let url = match target {
            _ if head.method == Method::CONNECT => None,
            Some(target) => Some(target.url.clone()),
            None => Target::url_of_dialled(head.uri, original),
        };
        let asked = match url {
            Some(url) => Asked::Request {
                method: head.method.clone(),
                url,
                version: head.version,
            },
            None => match head.uri.host().map(Host::parse) {
                Some(Ok(host)) => Asked::Connect {
                    host,
                    port: head.uri.port_u16().unwrap_or_else(|| original.port()),
                    version: head.version,
                },
                Some(Err(_)) | None => Asked::Nothing,
            },
        };
        self.with(|record| record.asked = asked);
    }

    pub(super) fn verdict(&mut self, verdict: Verdict, enforced: bool) {
        self.with(|record| {
            record.verdict = verdict;
            record.enforced = enforced;
        });
    }

    /// The request was allowed and then failed: the rule stays, the outcome says how.
    pub(super) fn failed(&mut self, outcome: Outcome) {
        self.with(|record| record.verdict.outcome = outcome);
    }

    /// Who the request goes to.
    pub(super) fn reached(&mut self, peer: &Peer) {
        self.with(|record| peer.note(record));
    }

    /// Whom it was to go to.
    pub(super) fn not_reached(&mut self, error: &DialError) {
        self.with(|record| error.note(record));
    }

    /// The head of the answer that the client gets.
    pub(super) fn answer(&mut self, status: http::StatusCode, fields: &HeaderMap) {
        self.with(|record| {
            record.status = status.as_u16();
            record.content_type = fields.get(header::CONTENT_TYPE).cloned();
        });
    }

    pub(super) fn moved(&mut self, to_client: u64, to_origin: u64) {
        self.with(|record| {
            record.bytes_to_client = to_client;
            record.bytes_to_origin = to_origin;
        });
    }

    /// Leaves the rest to the tunnel that the request has opened: its verdict, and what has been sent to the client.
    pub(super) fn into_pending(mut self) -> Option<Pending> {
        let record = self.record.take()?;
        Some(Pending::new(
            self.connection.services.log.clone(),
            self.begun,
            record,
        ))
    }

    /// The request has become a tunnel.
    pub(super) fn opened(&mut self) {
        if let Some(record) = &mut self.record {
            record.duration = self.begun.elapsed();
            self.connection.services.log.opened(record);
        }
    }

    /// How it ends if nothing else is heard of it.
    pub(super) fn will_end(&mut self, ending: Ending) {
        self.with(|record| record.ending = ending);
    }

    pub(super) fn finish(mut self, ending: Ending) {
        self.will_end(ending);
    }

    fn with(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.duration = self.begun.elapsed();
            #[cfg(test)]
            tap::push(&record);
            self.connection.services.log.record(record);
        }
    }
}

/// The records of a test, which runs in one thread: typed, and without a log in between.
#[cfg(test)]
pub(super) mod tap {
    use std::cell::RefCell;

    use crate::access_log::Record;

    thread_local! {
        static RECORDS: RefCell<Vec<Record>> = const { RefCell::new(Vec::new()) };
    }

    pub(in crate::proxy::http) fn push(record: &Record) {
        RECORDS.with_borrow_mut(|records| records.push(record.clone()));
    }

    pub(in crate::proxy::http) fn records() -> Vec<Record> {
        RECORDS.with_borrow(Vec::clone)
    }

    pub(in crate::proxy::http) fn clear() {
        RECORDS.with_borrow_mut(Vec::clear);
    }
}
