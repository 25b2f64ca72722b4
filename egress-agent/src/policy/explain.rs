//! A verdict in words.

use egress_common::outcome::Outcome;

use super::{
    Posture, Target,
    rule::Miss,
    verdict::{RuleId, Verdict},
    view::PolicyView,
};
use crate::policy::Host;

/// The answer to "may this workload reach that target, and why".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict itself.
    pub verdict: Verdict,
    /// The rule that decided, with the file and line where it stands.
    pub rule: Option<String>,
    /// Why, and what comes of it in the workload's posture: sentences.
    pub reasons: Vec<String>,
}

/// Asks for the verdict on `target` and puts it in words. `dialled` tells whether the target's address is known.
#[must_use]
pub fn explain(view: &PolicyView, target: &Target<'_>, dialled: bool) -> Explanation {
    let verdict = if dialled {
        view.judge(target)
    } else {
        view.judge_undialled(target)
    };
    let mut reasons = vec![reason(view, target, &verdict)];
    if verdict.outcome == Outcome::NoRule {
        reasons.extend(
            view.near_misses(target).into_iter().map(|(id, miss)| {
                format!("{} is close, but {}", with_place(view, &id), miss_in_words(&miss))
            }),
        );
    }
    if !verdict.is_allow() && view.posture() != Posture::Enforce {
        reasons.push("the workload is only audited: what it asks for passes, and is logged as denied".into());
    }
    Explanation {
        rule: verdict.rule.as_deref().map(|id| with_place(view, id)),
        verdict,
        reasons,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "no other outcome is a verdict of the policy"
)]
fn reason(view: &PolicyView, target: &Target<'_>, verdict: &Verdict) -> String {
    let subject = match target.host {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => format!("the address {address}"),
    };
    let what = format!("{subject} on port {}", target.port);
    match verdict.outcome {
        Outcome::AllowedByRule => format!("the rule allows {what}"),
        Outcome::ClusterDeny => {
            format!("the rule denies {what}, and no policy can allow what a cluster policy denies")
        }
        Outcome::OutsideCeiling => {
            format!("{what} is not below this ceiling, and no policy can allow what a ceiling leaves out")
        }
        Outcome::NoRule => format!("no rule of the policies that select the workload allows {what}"),
        Outcome::Unselected => {
            "no policy selects the workload: it may reach everything, and is logged".into()
        }
        Outcome::UnselectedDenied => {
            "no policy selects the workload, and such workloads may reach nothing".into()
        }
        other => format!("{} ({:?})", other.as_str(), view.posture()),
    }
}

fn miss_in_words(miss: &Miss) -> String {
    match miss {
        Miss::Port(ports) if ports.is_empty() => "it allows no TCP port".into(),
        Miss::Port(ports) => format!("it allows the ports {ports} only"),
        Miss::NotHttp => "it allows some plain HTTP requests only, and this is not known to be one".into(),
        Miss::Request => "none of its `http` entries has this method and path".into(),
        Miss::Path(doubt) => format!("servers could read the path in different ways: {doubt}"),
    }
}

fn with_place(view: &PolicyView, id: &RuleId) -> String {
    view.set()
        .place(id)
        .map_or_else(|| id.to_string(), |place| format!("{id} ({place})"))
}
