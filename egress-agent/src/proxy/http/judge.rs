//! The verdict on one request.

use super::target::{Head, Refusal, Target};
use crate::{
    policy::{self, PolicyView, Posture, RequestFacts, Verdict},
    proxy::Connection,
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

/// Judges a request by its own head, with the policies in force now: a connection that is kept alive may name another
/// host in each request, and meet a new policy set.
///
/// What cannot be read as one request for one host is refused in every posture: there is no telling where to send it.
pub(super) fn judge(connection: &Connection, head: &Head<'_>) -> Judged {
    let target = match Target::read(head, connection.original) {
        Ok(target) => target,
        Err(refusal) => {
            return Judged::Refuse {
                target: None,
                verdict: Verdict::without_rule(refusal.outcome()),
                refusal: Some(refusal),
            };
        }
    };
    let view = connection.view();
    let verdict = view.judge(&policy::Target {
        host: &target.host,
        port: connection.original.port(),
        address: connection.original.ip(),
        request: Some(RequestFacts {
            method: head.method.as_str(),
            // As sent: whether a path can be read in more than one way is the policy's to find.
            path: head.uri.path(),
        }),
    });
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
