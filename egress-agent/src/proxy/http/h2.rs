//! HTTP/2 in clear with prior knowledge (gRPC): each stream judged by its own `:authority`. A refused stream is answered
//! on its own, the others go on.
//!
//! What is passed on is HTTP/2 as well, with bodies, trailers, resets and their reasons; an origin that only speaks
//! HTTP/1 would not have understood the client either. 1xx heads are not passed on: neither hyper's server nor its client
//! knows them in HTTP/2.

mod body;
mod pool;
mod stream;

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use egress_common::outcome::Outcome;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::LocalSet,
    time::{Instant, sleep_until, timeout},
};

use self::{pool::Pool, stream::handle};
use super::{
    client::{Client, ClientIo},
    clock::poll_deadline,
    exchange::Exchange,
};
use crate::{
    access_log::{Ending, Protocol},
    drain::DrainWatcher,
    policy::Verdict,
    proxy::{Connection, limits::Limits},
};

/// Flow-control windows (RFC 9113 section 5.2), towards either side: what a sender may have under way to a reader that
/// does not read. One stream of 1 MiB fills a path of 100 Mbit/s and 80 ms.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What one stream may have waiting for its reader's window.
const STREAM_BACKLOG: usize = 64 * 1024;
/// Streams reset by their client before they could be looked at (CVE-2023-44487); one more ends the connection. h2's own
/// default.
const MOST_RESETS_UNSEEN: usize = 20;
/// Streams that we had to reset for errors of the peer (CVE-2025-8671).
const MOST_RESETS_CAUSED: usize = 128;
/// How long a client may take over its goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// What the streams of one client connection share.
struct Shared {
    connection: Arc<Connection>,
    client: Rc<Client>,
    pool: Pool,
    /// Streams that have not been answered in full.
    active: Cell<usize>,
    /// Whether any stream came.
    was_used: Cell<bool>,
    idle_since: Cell<Instant>,
    /// How a stream ends that is dropped before its end.
    ending: Cell<Ending>,
}

/// Runs hyper's tasks in the thread, and within the life, of the connection.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        // Its owner is the LocalSet of the connection.
        drop(tokio::task::spawn_local(task));
    }
}

/// Serves one client connection to its end. `prefix` was read from it before.
pub(super) async fn serve(
    connection: Arc<Connection>,
    stream: TcpStream,
    prefix: Bytes,
    drain: DrainWatcher,
) {
    let client = Client::new(stream, prefix);
    client.unmute();
    let shared = Rc::new(Shared {
        connection,
        client,
        pool: Pool::default(),
        active: Cell::new(0),
        was_used: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        ending: Cell::new(Ending::ClientAborted),
    });
    let tasks = LocalSet::new();
    // Dropped before the tasks are, so that they know why they end.
    let outside = EndedFromOutside(RefCell::new(Some(Rc::clone(&shared))));
    tasks.run_until(converse(&shared, drain)).await;
    outside.0.take();
    if !shared.was_used.get() {
        unused(&shared);
    }
    drop(tasks);
    shared.client.linger().await;
}

async fn converse(shared: &Rc<Shared>, mut drain: DrainWatcher) {
    let limits = &shared.connection.services.limits;
    let service = service_fn({
        let shared = Rc::clone(shared);
        move |request| handle(Rc::clone(&shared), request)
    });
    let io = TokioIo::new(ClientIo(Rc::clone(&shared.client)));
    let mut wire = pin!(builder(limits).serve_connection(io, service));
    let mut timer = pin!(sleep_until(shared.deadline(limits)));
    let mut draining = pin!(drain.started());
    let mut is_draining = false;
    let is_over = std::future::poll_fn(|cx| {
        if !is_draining && draining.as_mut().poll(cx).is_ready() {
            is_draining = true;
            // GOAWAY: the streams that are open go on, new ones are for another connection.
            wire.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = wire.as_mut().poll(cx) {
            if let Err(error) = result {
                tracing::debug!(%error, client = %shared.connection.client, "client connection");
            }
            return Poll::Ready(true);
        }
        poll_deadline(timer.as_mut(), shared.deadline(limits), cx).map(|()| false)
    })
    .await;
    if is_over {
        return;
    }
    shared.ending.set(Ending::IdleTimeout);
    if shared.active.get() > 0 {
        shared.client.reset_on_close();
    } else {
        wire.as_mut().graceful_shutdown();
        // If it is not over by then, it is ended without a goodbye.
        drop(timeout(GOODBYE, wire).await);
    }
}

fn builder(limits: &Limits) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .auto_date_header(false)
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_BACKLOG)
        .max_pending_accept_reset_streams(MOST_RESETS_UNSEEN)
        .max_local_error_reset_streams(MOST_RESETS_CAUSED);
    builder
}

/// A connection that ends before its first stream has a record of its own.
fn unused(shared: &Shared) {
    let mut exchange = Exchange::begin(&shared.connection, Protocol::Http2);
    exchange.began(shared.connection.age());
    exchange.moved(shared.client.written(), 0);
    let ending = shared.ending.get();
    if ending == Ending::IdleTimeout {
        exchange.verdict(Verdict::without_rule(Outcome::HeadTimeout), true);
    }
    exchange.finish(ending);
}

impl Shared {
    fn deadline(&self, limits: &Limits) -> Instant {
        if self.active.get() == 0 {
            self.idle_since.get() + limits.keep_alive_timeout
        } else {
            self.client.moved_at() + limits.idle_timeout
        }
    }
}

/// Tells the streams, if it is dropped in place, that neither side ended them.
struct EndedFromOutside(RefCell<Option<Rc<Shared>>>);

impl Drop for EndedFromOutside {
    fn drop(&mut self) {
        if let Some(shared) = self.0.get_mut().take() {
            shared.ending.set(Ending::Drained);
            if shared.active.get() > 0 {
                shared.client.reset_on_close();
            }
            if !shared.was_used.get() {
                unused(&shared);
            }
        }
    }
}
