//! The explicit proxy: HTTP/1 requests that name their own destinations, and tunnels by CONNECT. What is spoken in a tunnel
//! is judged as it would be without a proxy, and may name nobody but the host that the tunnel was opened to.

use std::{sync::Arc, time::Instant};

use egress_common::outcome::Outcome;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{FORBIDDEN, begin, observe, tls, unreadable};
use crate::{
    access_log::Ending,
    drain::DrainWatcher,
    policy::{DomainName, Host, Verdict},
    proxy::{
        connection::Connection,
        http::{self, Opened, Promised},
        read_head::{Head, Opening, Unreadable, read_head},
        refuse::Alert,
    },
};

pub(super) async fn serve(connection: Arc<Connection>, mut stream: TcpStream, drain: DrainWatcher) {
    let mut pending = begin(&connection, Outcome::ClientGone);
    let limits = &connection.services.limits;
    let Head { opening, received } = read_head(&mut stream, limits, connection.accepted, None).await;
    pending.protocol = opening.protocol();
    match opening {
        Opening::Http1 => {
            // The HTTP lane writes a record for each request, and one of its own if no request comes.
            pending.discard();
            let protocol = opening.protocol();
            let opened = http::serve(connection, stream, received, protocol, drain.clone()).await;
            if let Some(opened) = opened {
                tunnel(opened, drain).await;
            }
        }
        Opening::Unreadable(why) => unreadable(stream, why, pending).await,
        Opening::Tls(_) | Opening::Http2 => {
            pending.verdict = Verdict::without_rule(Outcome::UnknownProtocol);
            pending.status = FORBIDDEN;
            let alert = Alert::for_outcome(Outcome::UnknownProtocol);
            let alert = alert.filter(|_| matches!(opening, Opening::Tls(_)));
            pending.bytes_to_client = tls::answer(stream, alert).await;
            pending.finish(Ending::Refused);
        }
    }
}

async fn tunnel(opened: Opened, drain: DrainWatcher) {
    let Opened {
        connection,
        mut stream,
        unread,
        promised,
        mut pending,
    } = opened;
    let Promised {
        host,
        port,
        dialled,
        enforced,
    } = promised;
    let within = Arc::new(connection.within(host.clone(), port, &dialled.peer));
    drop(connection);
    if !enforced {
        return observe::pass(&within, stream, unread, dialled.stream, pending).await;
    }
    let services = &within.services;
    let server_may_begin = !services.client_first.contains(&within.original.port());
    let silence = server_may_begin.then_some(services.limits.silence);
    let mut reader = (&unread[..]).chain(&mut stream);
    let Head { opening, received } = read_head(&mut reader, &services.limits, Instant::now(), silence).await;
    pending.protocol = opening.protocol();
    match opening {
        Opening::Tls(hello) => {
            let refused = contradiction(&within, &host, hello.server_name.as_ref());
            pending.tls = Some(hello.facts);
            if let Some(outcome) = refused {
                pending.verdict.outcome = outcome;
                pending.bytes_to_client += tls::answer(stream, Alert::for_outcome(outcome)).await;
                return pending.finish(Ending::Refused);
            }
            tls::carry(&within, &host, stream, received, dialled, pending).await;
        }
        Opening::Http1 | Opening::Http2 => {
            // Each request has a verdict, a record and a connection to the origin of its own; the one that was dialled
            // told the client in time whether there is an origin at all.
            let protocol = opening.protocol();
            pending.discard();
            drop(dialled);
            let further = http::serve(Arc::clone(&within), stream, received, protocol, drain).await;
            debug_assert!(further.is_none(), "no tunnel in a tunnel");
        }
        // The name is the one that the tunnel was opened to, and it was judged.
        Opening::Unreadable(Unreadable::Silent | Unreadable::Unknown) if server_may_begin => {
            tls::carry(&within, &host, stream, received, dialled, pending).await;
        }
        // It came to nothing, as tunnels may.
        Opening::Unreadable(Unreadable::Gone(_)) => pending.finish(Ending::ClientAborted),
        Opening::Unreadable(why) => unreadable(stream, why, pending).await,
    }
}

/// Why a ClientHello with `name` may not pass through a tunnel to `host`.
pub(super) fn contradiction(within: &Connection, host: &Host, name: Option<&DomainName>) -> Option<Outcome> {
    match (host, name) {
        (Host::Name(host), Some(name)) if host == name => None,
        (Host::Name(_), Some(_)) => Some(Outcome::TunnelMismatch),
        // As without a proxy: where clients speak first they say whom they mean.
        (Host::Name(_), None) => {
            let port = within.original.port();
            let must_be_named = within.services.client_first.contains(&port);
            must_be_named.then_some(Outcome::NoServerName)
        }
        (Host::Address(_), None) => None,
        // The address was judged, and so is the name behind it: either may be what is not allowed.
        (Host::Address(_), Some(name)) => {
            let host = Host::Name(name.clone());
            let verdict = within.judge(&within.view(), &host, within.original.port(), None);
            (!verdict.is_allow()).then_some(verdict.outcome)
        }
    }
}
