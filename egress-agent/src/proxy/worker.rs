//! Workers: threads with a single-threaded runtime each. A connection is accepted, judged and tunnelled by one of them
//! from beginning to end, so that its bytes never cross threads and nothing of it needs a lock.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdpSocket},
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use egress_common::dns::HeldQuery;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{mpsc, watch},
    task::LocalSet,
};

use super::{
    connection::Services,
    lanes,
    name_service::{NameService, answer_held},
    reserve::{self, Reserve},
    site::{Explained, Site, Unexplained},
};
use crate::{
    drain::DrainWatcher,
    identity::{Identities, Shares, Tally},
    kernel::{FlowTable, QueryTable},
    socket,
};

/// What the workers did, for `status`.
#[derive(Debug, Default)]
pub struct WorkerCounts {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Closed because no redirected connect explains them.
    pub no_flow: AtomicU64,
    /// Closed because their cgroup has no identity.
    pub unknown_workload: AtomicU64,
    /// Refused because their workload has too many, or no file descriptor was left.
    pub overloaded: AtomicU64,
}

/// The threads. Dropping it does not stop them: drain does.
#[derive(Debug)]
pub struct Workers {
    jobs: Vec<mpsc::Sender<Job>>,
    threads: Vec<thread::JoinHandle<()>>,
    counts: Arc<WorkerCounts>,
}

/// What all workers share.
#[derive(Debug, Clone)]
pub struct WorkerContext {
    /// Policies, dialer, log, limits.
    pub services: Arc<Services>,
    /// Cgroups to workloads.
    pub identities: Arc<Identities>,
    /// Tells when to stop accepting and when to give up.
    pub drain: DrainWatcher,
    /// Counters.
    pub counts: Arc<WorkerCounts>,
}

/// How long a namespace's sockets are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// They are.
    NotYet,
    /// They are not any more. What waits in them is for whoever has them next.
    Now,
    /// What waits in them is served still: nothing more comes, and nobody has them next.
    WhenEmpty,
}

/// A listener, or a socket of the name service, to serve until `stop` changes.
struct Job {
    socket: Serve,
    site: Arc<Site>,
    stop: watch::Receiver<Stop>,
}

enum Serve {
    Connections(StdListener),
    /// With the place of the resolver that it stands for.
    Queries(usize, StdUdpSocket),
    /// A query that came before there was a socket for it.
    Held(Box<HeldQuery>),
}

/// What a worker has room for.
#[derive(Clone)]
struct Room {
    /// Of connections. One for all workers: the first connects of a new namespace are held, and all of them then come to the
    /// same worker.
    tally: Arc<Tally>,
    reserve: Rc<Reserve>,
    /// Of queries.
    queries: Rc<Shares>,
}

/// Listeners that may be queued for a worker: one per namespace at a time is the rule.
const QUEUE: usize = 1024;

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// A thread, its runtime or its handle of the flow table cannot be made.
    pub fn start(count: usize, pins: &Path, context: &WorkerContext) -> io::Result<Self> {
        let mut jobs = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        let tally = Tally::new(context.services.limits.connections_per_workload);
        for index in 0..count {
            let flows = FlowTable::open(pins)?;
            let queries = QueryTable::open(pins)?;
            let (sender, receiver) = mpsc::channel(QUEUE);
            let context = context.clone();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let tally = Arc::clone(&tally);
            let run = move || {
                let tables = Tables {
                    flows: RefCell::new(flows),
                    queries,
                };
                let room = Room {
                    tally,
                    reserve: Reserve::new(),
                    queries: Rc::new(Shares::new(QUERIES)),
                };
                LocalSet::new().block_on(&runtime, work(receiver, Rc::new(tables), context, room));
            };
            threads.push(
                thread::Builder::new()
                    .name(format!("egress-{index}"))
                    .spawn(run)?,
            );
            jobs.push(sender);
        }
        Ok(Self {
            jobs,
            threads,
            counts: Arc::clone(&context.counts),
        })
    }

    /// Serves a namespace's listeners until `stop` changes: the n-th by the n-th worker, as the kernel spreads connects
    /// evenly over them.
    ///
    /// # Errors
    /// A worker has ended or is far behind.
    pub fn serve(
        &self,
        listeners: Vec<StdListener>,
        datagrams: Vec<(usize, StdUdpSocket)>,
        site: &Arc<Site>,
        stop: &watch::Receiver<Stop>,
    ) -> io::Result<()> {
        let connections = listeners
            .into_iter()
            .map(Serve::Connections)
            .zip(self.jobs.iter().cycle());
        // All of a namespace by one worker, which bounds what may be under way there.
        let turn = usize::try_from(site.netns().cookie()).unwrap_or_default();
        let queries = datagrams
            .into_iter()
            .map(|(slot, socket)| Serve::Queries(slot, socket))
            .zip(
                self.jobs
                    .iter()
                    .cycle()
                    .skip(turn % self.jobs.len().max(1))
                    .step_by(self.jobs.len().max(1)),
            );
        for (socket, jobs) in connections.chain(queries) {
            let job = Job {
                socket,
                site: Arc::clone(site),
                stop: stop.clone(),
            };
            jobs.try_send(job)
                .map_err(|_full| io::Error::other("a worker does not take new listeners"))?;
        }
        Ok(())
    }

    /// Answers a query that the kernel handed over. With every worker far behind it is lost, and its asker asks again.
    pub fn answer(&self, query: HeldQuery, site: &Arc<Site>, stop: watch::Receiver<Stop>) {
        let turn = usize::try_from(query.asker.netns).unwrap_or_default();
        let Some(jobs) = self.jobs.get(turn % self.jobs.len().max(1)) else {
            return;
        };
        let job = Job {
            socket: Serve::Held(Box::new(query)),
            site: Arc::clone(site),
            stop,
        };
        if jobs.try_send(job).is_err() {
            tracing::debug!("a worker is too far behind for a held query");
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.jobs.len()
    }

    /// Their counters.
    #[must_use]
    pub fn counts(&self) -> &Arc<WorkerCounts> {
        &self.counts
    }

    /// Waits for the threads; they end once drain says so.
    pub fn join(self) {
        drop(self.jobs);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// A worker's handles of the kernel's tables.
#[derive(Debug)]
struct Tables {
    flows: RefCell<FlowTable>,
    queries: QueryTable,
}

/// A worker's life: take listeners, serve them; after drain wait for the open connections until the deadline.
async fn work(mut jobs: mpsc::Receiver<Job>, tables: Rc<Tables>, context: WorkerContext, room: Room) {
    let mut drain = context.drain.clone();
    let connections = tokio_util::task::TaskTracker::new();
    let mut accepting = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = drain.started() => break,
            job = jobs.recv() => match job {
                Some(job) => {
                    let tables = Rc::clone(&tables);
                    let (context, connections) = (context.clone(), connections.clone());
                    let room = room.clone();
                    match job.socket {
                        Serve::Connections(listener) => {
                            accepting.spawn_local(accept(listener, job.site, job.stop, tables, context, room, connections));
                        }
                        Serve::Queries(slot, socket) => {
                            let service = NameService {
                                slot,
                                site: job.site,
                                context,
                                room: Rc::clone(&room.queries),
                                answering: connections,
                            };
                            accepting.spawn_local(async move { service.serve(socket, job.stop, &tables.queries).await });
                        }
                        Serve::Held(query) => {
                            connections.spawn_local(async move { answer_held(&query, &job.site, &context, &room.queries).await });
                        }
                    }
                }
                None => break,
            },
            Some(_ended) = accepting.join_next(), if !accepting.is_empty() => {}
        }
    }
    drain.started().await;
    accepting.shutdown().await;
    connections.close();
    // Queries too. What is still open at the deadline is dropped with the LocalSet; each connection's guard writes its record.
    tokio::select! {
        () = connections.wait() => {}
        () = drain.deadline() => context.services.log.mark_drained(),
    }
}

async fn accept(
    listener: StdListener,
    site: Arc<Site>,
    mut stop: watch::Receiver<Stop>,
    tables: Rc<Tables>,
    context: WorkerContext,
    room: Room,
    connections: tokio_util::task::TaskTracker,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a listener cannot be served");
            return;
        }
    };
    let begin = |stream, peer| {
        connections.spawn_local(converse(
            stream,
            peer,
            Rc::clone(&tables),
            Arc::clone(&site),
            context.clone(),
            Some(Arc::clone(&room.tally)),
        ));
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _changed = stop.changed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // Polled here for the first time without a hop: a hello that came with the handshake is read at once.
            Ok((stream, peer)) => begin(stream, peer),
            Err(error) if reserve::is_exhaustion(&error) => {
                if let Some((stream, peer)) = room.reserve.accept(&listener).await {
                    let (tables, site) = (Rc::clone(&tables), Arc::clone(&site));
                    // In place: it ends at once, and its descriptor is the reserve.
                    converse(stream, peer, tables, site, context.clone(), None).await;
                    room.reserve.restore();
                }
            }
            Err(error) => {
                // ECONNABORTED concerns one connection; whatever else it is, trying again at once would spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    if *stop.borrow() != Stop::WhenEmpty {
        return;
    }
    // Asked itself: the runtime may not know yet that something waits.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, peer)) = listener.accept() {
        match stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream))
        {
            Ok(stream) => begin(stream, peer),
            Err(error) => tracing::warn!(%error, "a connection was lost at the end"),
        }
    }
}

/// Serves a connection to its end. Without a tally there is no room for it, and it is refused at once, whoever it is of: its
/// listener accepts nothing meanwhile.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    tables: Rc<Tables>,
    site: Arc<Site>,
    context: WorkerContext,
    tally: Option<Arc<Tally>>,
) {
    let counts = Arc::clone(&context.counts);
    counts.accepted.fetch_add(1, Ordering::Relaxed);
    let explained = match stream.local_addr() {
        Ok(listener) => {
            let (flows, identities) = (&tables.flows, &context.identities);
            site.explain(
                peer,
                listener,
                flows,
                identities,
                &context.services,
                tally.is_some(),
            )
            .await
        }
        // Reset already: there is nothing left to explain.
        Err(_) => Err(Unexplained::NoFlow),
    };
    let drain = context.drain.clone();
    // A tunnel may live for hours: it keeps neither the table nor the listener's context.
    drop((tables, site, context));
    let connection = match explained {
        Ok(Explained { connection, is_known }) if is_known || tally.is_none() => connection,
        Ok(Explained { connection, .. }) => {
            counts.unknown_workload.fetch_add(1, Ordering::Relaxed);
            return lanes::unknown_workload(&connection, stream);
        }
        Err(why) => {
            // `probe` asks whether anybody is at home.
            if peer.ip() != PROBE {
                counts.no_flow.fetch_add(1, Ordering::Relaxed);
            }
            tracing::debug!(%peer, ?why, "closed an unexplained connection");
            socket::reset(stream);
            return;
        }
    };
    let Some(_place) = tally.and_then(|tally| tally.enter(&connection.workload)) else {
        counts.overloaded.fetch_add(1, Ordering::Relaxed);
        return lanes::overload(&connection, stream);
    };
    counts.open.fetch_add(1, Ordering::Relaxed);
    let _closed = OpenGuard(counts);
    lanes::serve(Arc::new(connection), stream, drain).await;
}

/// Whence `probe` connects to the listeners. Anybody may: it is closed like the others, and only not counted as strange.
pub const PROBE: Ipv4Addr = Ipv4Addr::new(127, 69, 71, 254);

/// Queries that may be under way at a worker, a quarter of them of one workload: further ones are dropped and asked again.
const QUERIES: usize = 1024;

/// Counts a connection as open for as long as it lives.
struct OpenGuard(Arc<WorkerCounts>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
