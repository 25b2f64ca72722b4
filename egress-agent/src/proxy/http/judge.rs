//! The verdict on one request.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use egress_common::outcome::Outcome;
use http::Method;

use super::target::{Head, Refusal, Target};
use crate::{
    policy::{Host, PolicyView, Posture, RequestFacts, Verdict},
    proxy::{Connection, Via, dial::Peer},
};

/// A request that may go on, or why it may not.
#[derive(Debug)]
pub(super) enum Judged {
    /// To be forwarded to `target.host`.
    Pass {
        /// Where to.
        target: Target,
        /// By which rule; a denial that is only audited stays a denial here.
        verdict: Verdict,
        /// The policies that said so.
        view: PolicyView,
        /// Whether the verdict is carried out.
        enforced: bool,
    },
    /// To be refused.
    Refuse {
        /// What was asked for, if that could be told.
        target: Option<Target>,
        /// Why.
        verdict: Verdict,
        /// Why the head could not be read.
        refusal: Option<Refusal>,
    },
}

/// As what a request was allowed, so that it can be judged again when the policies change.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    host: Host,
    port: u16,
    method: Method,
    path: String,
    /// The origin's address, once it is known; of all copies.
    dialled: Rc<Cell<Option<SocketAddr>>>,
}

impl Permit {
    pub(super) fn new(head: &Head<'_>, target: &Target) -> Self {
        Self {
            host: target.host.clone(),
            port: target.port,
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            dialled: Rc::default(),
        }
    }

    /// The request goes there.
    pub(super) fn goes_to(&self, peer: &Peer) {
        self.dialled.set(peer.origin());
    }

    /// Whether `view` refuses the request now, or the address that it goes to.
    pub(super) fn is_refused(&self, connection: &Connection, view: &PolicyView) -> bool {
        let facts = RequestFacts {
            method: self.method.as_str(),
            path: &self.path,
        };
        let is_allowed = connection
            .judge(view, &self.host, self.port, Some(facts))
            .is_allow();
        let denied = |dialled| connection.refused_dialled(view, &self.host, dialled).is_some();
        !is_allowed || self.dialled.get().is_some_and(denied)
    }
}

/// Judges a request by its own head, with the policies in force now: a connection that is kept alive may name another
/// host in each request, and meet a new policy set.
///
/// What cannot be read as one request for one host is refused in every posture: there is no telling where to send it.
pub(super) fn judge(connection: &Connection, head: &Head<'_>) -> Judged {
    let target = match read(connection, head) {
        Ok(target) => target,
        Err(refusal) => {
            return Judged::Refuse {
                target: None,
                verdict: Verdict::without_rule(refusal.outcome()),
                refusal: Some(refusal),
            };
        }
    };
    if matches!(&connection.via, Via::Tunnel(host) if target.host != *host) {
        return Judged::Refuse {
            target: Some(target),
            verdict: Verdict::without_rule(Outcome::TunnelMismatch),
            refusal: None,
        };
    }
    let view = connection.view();
    let facts = RequestFacts {
        method: head.method.as_str(),
        // As sent: whether a path can be read in more than one way is the policy's to find.
        path: head.uri.path(),
    };
    // Who opens a tunnel has not said yet what it will ask for in it.
    let facts = (head.method != Method::CONNECT).then_some(facts);
    let mut verdict = connection.judge(&view, &target.host, target.port, facts);
    if verdict.is_allow() && connection.must_be_unlogged() {
        verdict = Verdict::without_rule(Outcome::Unlogged);
    }
    match view.posture() {
        Posture::Enforce if !verdict.is_allow() => Judged::Refuse {
            target: Some(target),
            verdict,
            refusal: None,
        },
        posture @ (Posture::Enforce | Posture::Audit | Posture::Observe) => Judged::Pass {
            target,
            verdict,
            view,
            enforced: posture == Posture::Enforce,
        },
    }
}

fn read(connection: &Connection, head: &Head<'_>) -> Result<Target, Refusal> {
    match connection.via {
        Via::Proxy => Target::read_for_proxy(head),
        Via::Connect | Via::Tunnel(_) => Target::read(head, connection.original),
    }
}
