//! What workloads ask of name servers, as it comes in: datagrams at the places of the name service, and messages on
//! redirected connections to port 53.

use std::{
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use egress_common::dns::{Asker, HeldQuery};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, watch},
    time,
};
use tokio_util::task::TaskTracker;

use super::{
    connection::{Connection, Services},
    site::{Asked, Site},
    worker::{Stop, WorkerContext},
};
use crate::{
    dns::{Asking, Transport, relay},
    drain::DrainWatcher,
    identity::{Identities, Seat, Shares},
    kernel::QueryTable,
    policy::Posture,
};

/// No query is longer: a name has 255 bytes, and options some more.
const LONGEST_QUERY: usize = 4096;
/// Queries of one namespace that may be under way at one of its places.
const UNDER_WAY: usize = 256;
/// A connection on which nothing is asked for so long is closed (RFC 7766 section 6.2.3 has a few seconds in mind).
const IDLE: Duration = Duration::from_secs(30);
/// Queries of one connection that are answered at a time; RFC 7766 section 6.2.1.1 lets clients send several.
const PIPELINE: usize = 16;

/// One place of the name service in one network namespace.
#[derive(Debug)]
pub(super) struct NameService {
    /// The place, that is which of a socket's resolvers it stands for.
    pub(super) slot: usize,
    pub(super) site: Arc<Site>,
    pub(super) context: WorkerContext,
    /// For the queries that the worker may have under way.
    pub(super) room: Rc<Shares>,
    /// What the worker finishes before it ends, as far as the drain leaves it time.
    pub(super) answering: TaskTracker,
}

impl NameService {
    /// Takes queries until `stop` changes. Those that were taken are answered also after that: their askers would wait for
    /// five seconds (glibc) before they ask again.
    pub(super) async fn serve(
        self,
        socket: StdUdpSocket,
        mut stop: watch::Receiver<Stop>,
        queries: &QueryTable,
    ) {
        let socket = match UdpSocket::from_std(socket) {
            Ok(socket) => Rc::new(socket),
            Err(error) => {
                tracing::error!(%error, "a socket of the name service cannot be served");
                return;
            }
        };
        let places = Arc::new(Semaphore::new(UNDER_WAY));
        let mut buffer = vec![0; LONGEST_QUERY];
        loop {
            let received = tokio::select! {
                biased;
                _changed = stop.changed() => break,
                received = socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, peer)) => {
                    let query = buffer.get(..length).unwrap_or_default().to_vec();
                    self.take(&places, &socket, queries, query, peer);
                }
                // ECONNREFUSED tells of an asker that has gone.
                Err(error) => tracing::debug!(%error, "the name service received an error"),
            }
        }
        if *stop.borrow() != Stop::WhenEmpty {
            return;
        }
        while let Ok((length, peer)) = socket.try_recv_from(&mut buffer) {
            let query = buffer.get(..length).unwrap_or_default().to_vec();
            self.take(&places, &socket, queries, query, peer);
        }
        // Each is bounded by the time that its servers have.
        drop(
            places
                .acquire_many(u32::try_from(UNDER_WAY).unwrap_or(u32::MAX))
                .await,
        );
    }

    fn take(
        &self,
        places: &Arc<Semaphore>,
        socket: &Rc<UdpSocket>,
        queries: &QueryTable,
        query: Vec<u8>,
        peer: SocketAddr,
    ) {
        let dns = &self.context.services.dns;
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return dns.drop_one();
        };
        // At once: the kernel's table is one of the queries that were asked last.
        let asker = match self.site.asker(peer, queries) {
            Ok(asker) => asker,
            Err(why) => {
                tracing::debug!(%peer, ?why, "dropped an unexplained query");
                return dns.drop_one();
            }
        };
        let Some(seat) = seat(&self.room, &asker, &self.context.identities) else {
            return dns.drop_one();
        };
        let (socket, site) = (Rc::clone(socket), Arc::clone(&self.site));
        let (services, identities) = (
            Arc::clone(&self.context.services),
            Arc::clone(&self.context.identities),
        );
        let slot = self.slot;
        self.answering.spawn_local(async move {
            let _room = (seat, place);
            let asked = match Site::identify(&asker, slot, &identities).await {
                Ok(asked) => asked,
                Err(why) => {
                    tracing::debug!(%peer, ?why, "dropped an unexplained query");
                    return services.dns.drop_one();
                }
            };
            if let Some(reply) = answer(&query, &asked, peer, &site, &services).await
                && let Err(error) = socket.send_to(&reply, peer).await
            {
                tracing::debug!(%error, "an answer could not be sent");
            }
        });
    }
}

/// Room for a query of whom it is by what is known now: it may wait for its pod to be known.
fn seat(room: &Shares, asker: &Asker, identities: &Identities) -> Option<Seat> {
    room.enter(&identities.of_or_stranger(asker.cgroup))
}

/// Answers a query that the kernel handed over because its namespace had no name service yet.
pub(super) async fn answer_held(held: &HeldQuery, site: &Site, context: &WorkerContext, room: &Shares) {
    let Some(_seat) = seat(room, &held.asker, &context.identities) else {
        return context.services.dns.drop_one();
    };
    let slot = usize::try_from(held.slot).unwrap_or(usize::MAX);
    let length = usize::try_from(held.length).unwrap_or(usize::MAX);
    let asked = Site::identify(&held.asker, slot, &context.identities).await;
    let (Ok(asked), Some(query)) = (asked, held.query.get(..length)) else {
        return context.services.dns.drop_one();
    };
    let peer = held.source.socket_addr();
    if let Some(reply) = answer(query, &asked, peer, site, &context.services).await
        && let Err(error) = site.reply(slot, peer, &reply)
    {
        tracing::debug!(%error, "an answer could not be sent");
    }
}

/// Serves a redirected connection to a name server: messages with lengths (RFC 1035 section 4.2.2), answered in the order
/// in which their answers come (RFC 7766 section 7). Each query is in the `dns` log, the connection in none.
pub(super) async fn converse(connection: &Connection, stream: TcpStream, mut drain: DrainWatcher) {
    let ended = tokio::select! {
        ended = messages(connection, stream) => ended,
        () = drain.started() => return,
    };
    match ended {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => tracing::debug!(%error, "a connection to the name service ended"),
    }
}

async fn messages(connection: &Connection, stream: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let mut answers = FuturesUnordered::new();
    let mut is_open = true;
    // Reading a message is not to be given up when an answer is ready: the reader lives over the turns of the loop.
    let mut reading = Box::pin(read_message(&mut from));
    loop {
        if !is_open && answers.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(answered) = answers.next(), if !answers.is_empty() => write_message(&mut to, answered).await?,
            read = &mut reading, if is_open && answers.len() < PIPELINE => match read {
                Ok((query, from)) => {
                    answers.push(answer_stream(connection, query));
                    reading.set(read_message(from));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => is_open = false,
                Err(error) => return Err(error),
            },
        }
    }
}

/// Reads one message and hands the reader back.
async fn read_message(from: &mut OwnedReadHalf) -> io::Result<(Vec<u8>, &mut OwnedReadHalf)> {
    let whole = async {
        let length = usize::from(from.read_u16().await?);
        if length > LONGEST_QUERY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a query"));
        }
        let mut query = vec![0; length];
        from.read_exact(&mut query).await?;
        Ok(query)
    };
    match time::timeout(IDLE, whole).await {
        Ok(query) => Ok((query?, from)),
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn write_message(to: &mut OwnedWriteHalf, reply: Option<Vec<u8>>) -> io::Result<()> {
    // What is no query has no answer.
    let Some(reply) = reply else { return Ok(()) };
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], &reply].concat();
    time::timeout(IDLE, to.write_all(&framed))
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn answer_stream(connection: &Connection, query: Vec<u8>) -> Option<Vec<u8>> {
    let asking = Asking {
        workload: &connection.workload,
        process: &connection.process,
        view: &connection.view(),
        client: connection.client,
        resolver: connection.original,
        transport: Transport::Tcp,
    };
    connection.services.dns.answer(&query, &asking).await
}

async fn answer(
    query: &[u8],
    asked: &Asked,
    peer: SocketAddr,
    site: &Site,
    services: &Services,
) -> Option<Vec<u8>> {
    let view = services.policy.load().view(&asked.workload);
    let asking = Asking {
        workload: &asked.workload,
        process: &asked.process,
        view: &view,
        client: peer,
        resolver: asked.resolver,
        transport: Transport::Udp,
    };
    match view.posture() {
        Posture::Enforce => services.dns.answer(query, &asking).await,
        Posture::Audit | Posture::Observe => {
            let begun = Instant::now();
            let reply = relay(site.netns(), asked.resolver, query)
                .await
                .inspect_err(|error| tracing::debug!(%error, "a name server did not answer"))
                .ok();
            services.dns.observe(query, reply.as_deref(), &asking, begun);
            reply
        }
    }
}
