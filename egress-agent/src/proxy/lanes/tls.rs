//! TLS: judged by the server name, then tunnelled byte for byte. Never terminated.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use egress_common::outcome::Outcome;
use tokio::net::TcpStream;

use super::FORBIDDEN;
use crate::{
    access_log::{Asked, Ending, Pending},
    policy::{Host, PolicyView, Verdict},
    proxy::{
        client_hello::ClientHello,
        connection::Connection,
        dial::{DialError, Dialled, Payload},
        refuse::{self, Alert},
        tunnel::{self, Counters},
    },
};

/// squid's status of a tunnel that was established.
const ESTABLISHED: u16 = 200;
/// squid's status of one that could not be: "Service Unavailable".
const UNAVAILABLE: u16 = 503;

pub(super) async fn serve(
    connection: &Connection,
    stream: TcpStream,
    hello: ClientHello,
    received: Bytes,
    mut pending: Pending,
) {
    pending.tls = Some(hello.facts);
    // Without a name only the address is left to be judged, by `cidr` rules.
    let is_named = hello.server_name.is_some();
    let host = hello
        .server_name
        .map_or_else(|| Host::Address(connection.original.ip()), Host::Name);
    let port = connection.original.port();
    let view = connection.view();
    let mut verdict = connection.judge(&view, &host, port, None);
    if !is_named && verdict.outcome == Outcome::NoRule {
        verdict.outcome = Outcome::NoServerName;
    }
    let outcome = verdict.outcome;
    let allowed = verdict.is_allow();
    pending.asked = Asked::Tunnel {
        host: host.clone(),
        port,
    };
    pending.verdict = verdict;
    if !allowed {
        pending.status = FORBIDDEN;
        pending.bytes_to_client = answer(stream, Alert::for_outcome(outcome)).await;
        return pending.finish(Ending::Refused);
    }
    forward(connection, &host, &view, stream, received, pending).await;
}

/// Dials an allowed host and tunnels to the end; what was read already goes first.
pub(super) async fn forward(
    connection: &Connection,
    host: &Host,
    view: &PolicyView,
    stream: TcpStream,
    received: Bytes,
    mut pending: Pending,
) {
    let port = connection.original.port();
    match connection.dial(host, port, view, Payload::Bytes).await {
        Ok(dialled) => {
            pending.status = ESTABLISHED;
            dialled.peer.note(&mut pending);
            carry(connection, host, stream, received, dialled, pending).await;
        }
        Err(error) => fail(stream, error, pending).await,
    }
}

/// Tunnels between a client and what was dialled for it, to the end or until a new policy refuses it.
pub(super) async fn carry(
    connection: &Connection,
    host: &Host,
    stream: TcpStream,
    received: Bytes,
    dialled: Dialled,
    mut pending: Pending,
) {
    pending.opened();
    let counters = Arc::new(Counters::default());
    pending.count(Arc::clone(&counters) as _);
    let limits = &connection.services.limits;
    let origin = dialled.peer.origin();
    let revoked = connection.revoked(|view| is_refused(connection, view, host, origin));
    let ending = tokio::select! {
        ending = tunnel::tunnel(stream, dialled.stream, received, limits, &counters) => ending,
        // The tunnel is dropped before its end: both legs are reset.
        () = revoked => Ending::PolicyChanged,
    };
    pending.finish(ending);
}

/// Whether the policies no longer allow the tunnel to `host`, or the address that it was dialled at, where that is known.
pub(super) fn is_refused(
    connection: &Connection,
    view: &PolicyView,
    host: &Host,
    dialled: Option<SocketAddr>,
) -> bool {
    let port = connection.original.port();
    !connection.judge(view, host, port, None).is_allow()
        || dialled.is_some_and(|dialled| connection.refused_dialled(view, host, dialled).is_some())
}

/// Ends a connection whose origin cannot be reached: refused by policy after all with an alert, else with the reset that
/// a refused connect would have been.
async fn fail(stream: TcpStream, error: DialError, mut pending: Pending) {
    let rule = pending.verdict.rule.take();
    pending.verdict = Verdict {
        outcome: error.outcome,
        rule,
    };
    error.note(&mut pending);
    if error.outcome.class() == egress_common::outcome::Class::Deny {
        pending.status = FORBIDDEN;
        pending.bytes_to_client = answer(stream, Alert::for_outcome(error.outcome)).await;
        return pending.finish(Ending::Refused);
    }
    pending.status = UNAVAILABLE;
    refuse::reset(stream);
    pending.finish(Ending::Failed);
}

/// Sends the alert, or resets the connection where there is none; returns the number of bytes sent.
pub(super) async fn answer(stream: TcpStream, alert: Option<Alert>) -> u64 {
    match alert {
        Some(alert) => refuse::send_alert(stream, alert).await as u64,
        None => {
            refuse::reset(stream);
            0
        }
    }
}
