//! What becomes of an accepted connection: by how its workload is treated, then by what its first bytes are.

mod explicit;
mod observe;
mod tls;
mod unnamed;

use std::sync::Arc;

use egress_common::{dns, outcome::Outcome};
use tokio::net::TcpStream;

use super::{
    connection::{Connection, Via},
    http, name_service,
    read_head::{Head, Opening, Unreadable, read_head},
    refuse,
};
use crate::{
    access_log::{Ending, Pending},
    drain::DrainWatcher,
    policy::{Posture, Verdict},
};

/// Serves a connection to its end. Every way out of here logs at least one record, but for DNS, whose queries have a log
/// of their own.
pub(super) async fn serve(connection: Arc<Connection>, stream: TcpStream, drain: DrainWatcher) {
    if connection.foreign {
        return deny_unread(&connection, stream, Outcome::ForeignSocket);
    }
    match connection.view().posture() {
        Posture::Enforce if connection.must_be_unlogged() => {
            deny_unread(&connection, stream, Outcome::Unlogged);
        }
        // Nobody else can serve these, however the workload is treated.
        _ if connection.via == Via::Proxy => explicit::serve(connection, stream, drain).await,
        Posture::Enforce if connection.original.port() == dns::PORT => {
            name_service::converse(&connection, stream, drain).await;
        }
        Posture::Enforce => enforce(connection, stream, drain).await,
        Posture::Audit | Posture::Observe => observe::serve(&connection, stream).await,
    }
}

/// Refuses a connection for which there is no room.
pub(super) fn overload(connection: &Connection, stream: TcpStream) {
    deny_unread(connection, stream, Outcome::Overload);
}

/// Refuses a connection of somebody who has not become known in time.
pub(super) fn unknown_workload(connection: &Connection, stream: TcpStream) {
    deny_unread(connection, stream, Outcome::UnknownWorkload);
}

async fn enforce(connection: Arc<Connection>, mut stream: TcpStream, drain: DrainWatcher) {
    // What the record says if the task is dropped while it waits for the first bytes.
    let mut pending = begin(&connection, Outcome::ClientGone);
    let services = &connection.services;
    let server_may_begin = !services.client_first.contains(&connection.original.port());
    let silence = server_may_begin.then_some(services.limits.silence);
    let Head { opening, received } =
        read_head(&mut stream, &services.limits, connection.accepted, silence).await;
    pending.protocol = opening.protocol();
    match opening {
        Opening::Tls(hello) if server_may_begin && hello.server_name.is_none() => {
            pending.tls = Some(hello.facts);
            unnamed::serve(&connection, stream, received, pending).await;
        }
        Opening::Unreadable(Unreadable::Silent | Unreadable::Unknown) if server_may_begin => {
            unnamed::serve(&connection, stream, received, pending).await;
        }
        Opening::Tls(hello) => tls::serve(&connection, stream, hello, received, pending).await,
        Opening::Http1 | Opening::Http2 => {
            let protocol = opening.protocol();
            // The HTTP lane writes a record for each request, and one of its own if no request comes.
            pending.discard();
            let opened = http::serve(connection, stream, received, protocol, drain).await;
            debug_assert!(opened.is_none(), "CONNECT is for the proxy alone");
        }
        Opening::Unreadable(why) => unreadable(stream, why, pending).await,
    }
}

/// A client whose first bytes cannot be judged: TLS gets an alert, everything else a reset.
async fn unreadable(stream: TcpStream, why: Unreadable, mut pending: Pending) {
    let outcome = why.outcome();
    pending.verdict = Verdict::without_rule(outcome);
    match why {
        Unreadable::Gone(_) => {
            drop(stream);
            pending.finish(Ending::ClientAborted);
        }
        Unreadable::TooSlow(_) | Unreadable::Tls(_) | Unreadable::Unknown | Unreadable::Silent => {
            pending.status = FORBIDDEN;
            pending.bytes_to_client = tls::answer(stream, why.alert()).await;
            pending.finish(Ending::Refused);
        }
    }
}

/// What the log has as status of a refusal that has no status on the wire: squid's own for a denied CONNECT.
const FORBIDDEN: u16 = 403;

/// Refuses before anything was read.
fn deny_unread(connection: &Connection, stream: TcpStream, outcome: Outcome) {
    let mut pending = begin(connection, outcome);
    pending.status = FORBIDDEN;
    refuse::reset(stream);
    pending.finish(Ending::Refused);
}

fn begin(connection: &Connection, outcome: Outcome) -> Pending {
    let record = connection.record(Verdict::without_rule(outcome));
    Pending::new(connection.services.log.clone(), connection.accepted, record)
}
