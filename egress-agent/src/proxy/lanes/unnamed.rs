//! Connections that name nobody: the server speaks first (SMTP, MySQL, SSH), or the client speaks a protocol without
//! names (PostgreSQL). They are judged by the names under which this workload was told the address by DNS, and never by
//! what another workload was told.

use std::time::Instant;

use bytes::Bytes;
use egress_common::outcome::Outcome;
use tokio::net::TcpStream;

use super::{FORBIDDEN, tls};
use crate::{
    access_log::{Asked, Ending, Pending},
    policy::{Host, PolicyView, Target, Verdict},
    proxy::{
        connection::Connection,
        refuse::{self, Alert},
    },
};

pub(super) async fn serve(connection: &Connection, stream: TcpStream, received: Bytes, mut pending: Pending) {
    let address = connection.original.ip();
    let port = connection.original.port();
    let now = Instant::now();
    let services = &connection.services;
    let names = services.names.names_of(&connection.workload, address, now);
    let view = connection.view();
    let (host, verdict) = judge(connection, &view, names);
    let _held = match &host {
        Host::Name(name) => services.names.hold(&connection.workload, address, name, now),
        Host::Address(_) => None,
    };
    let allowed = verdict.is_allow();
    let outcome = verdict.outcome;
    pending.verdict = verdict;
    pending.asked = Asked::Tunnel {
        host: host.clone(),
        port,
    };
    if allowed {
        return tls::forward(connection, &host, &view, stream, received, pending).await;
    }
    pending.status = FORBIDDEN;
    // Only a TLS client has words for a refusal; to the others it is as if nobody listened.
    if pending.tls.is_some() {
        pending.bytes_to_client = tls::answer(stream, Alert::for_outcome(outcome)).await;
    } else {
        refuse::reset(stream);
    }
    pending.finish(Ending::Refused);
}

/// Whether `view` refuses a connection that names nobody, and that has passed unjudged.
pub(super) fn is_refused(connection: &Connection, view: &PolicyView) -> bool {
    let original = connection.original;
    let names = &connection.services.names;
    let names = names.names_of(&connection.workload, original.ip(), Instant::now());
    let (host, verdict) = judge(connection, view, names);
    !verdict.is_allow() || connection.refused_dialled(view, &host, original).is_some()
}

/// The first name that is allowed, the one told last first; then the address itself, which `cidr` rules allow; else the
/// refusal of the name that was told last.
fn judge(
    connection: &Connection,
    view: &PolicyView,
    names: Vec<crate::policy::DomainName>,
) -> (Host, Verdict) {
    let is_unknown = names.is_empty();
    let address = connection.original.ip();
    let mut refusal = None;
    for host in names.into_iter().map(Host::Name).chain([Host::Address(address)]) {
        let mut verdict = view.judge(&Target {
            host: &host,
            port: connection.original.port(),
            address,
            request: None,
        });
        if verdict.is_allow() {
            return (host, verdict);
        }
        if is_unknown && verdict.outcome == Outcome::NoRule {
            verdict.outcome = Outcome::NoKnownName;
        }
        refusal.get_or_insert((host, verdict));
    }
    // The address is always judged, so there is always one.
    refusal.unwrap_or_else(|| {
        let host = Host::Address(address);
        (host, Verdict::without_rule(Outcome::NoKnownName))
    })
}
