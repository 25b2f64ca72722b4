//! What an Event says: what was refused, by what, and what would allow it.

use std::net::IpAddr;

use egress_common::outcome::Outcome;
use ipnet::IpNet;

use super::super::aggregate::Series;
use crate::policy::Denial;

/// Longest message; the API server takes 1024 bytes.
const MOST_BYTES: usize = 1000;

/// What makes an Event another one.
pub(super) fn subject(series: &Series) -> String {
    let denial = &series.denial;
    let target = if series.is_rest {
        "others".to_owned()
    } else {
        target(denial)
    };
    let rule = denial
        .verdict
        .rule
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    format!(
        "{target}|{}|{rule}|{}",
        denial.verdict.outcome.as_str(),
        denial.enforced
    )
}

/// One or two sentences.
pub(super) fn message(series: &Series) -> String {
    let denial = &series.denial;
    let text = if series.is_rest {
        format!(
            "Egress to further destinations was denied as well ({}): the access log has them all",
            target(denial)
        )
    } else {
        let what = target(denial);
        let fate = if denial.enforced {
            "denied"
        } else {
            "passed, but would be denied"
        };
        format!("{what} {fate}: {}", reason(denial))
    };
    let end = (0..=MOST_BYTES.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}

fn target(denial: &Denial) -> String {
    match denial.port {
        Some(port) => match denial.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("Egress to [{address}]:{port}"),
            Ok(IpAddr::V4(_)) | Err(_) => format!("Egress to {}:{port}", denial.host),
        },
        None => format!("Looking up {}", denial.host),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is no verdict of a policy has its word, and its place in the manual"
)]
fn reason(denial: &Denial) -> String {
    let rule = || {
        denial
            .verdict
            .rule
            .as_ref()
            .map_or_else(|| "a cluster policy".to_owned(), ToString::to_string)
    };
    match denial.verdict.outcome {
        Outcome::NoRule => format!(
            "no rule of the policies that select the pod allows it. To allow it, add to an EgressPolicy in namespace \
             {} under `egress`: {}",
            denial.namespace,
            allowing(denial)
        ),
        Outcome::UnselectedDenied => format!(
            "no policy selects the pod, and such pods may reach nothing. To allow it, make an EgressPolicy in \
             namespace {} with `egress`: {}",
            denial.namespace,
            allowing(denial)
        ),
        Outcome::ClusterDeny => format!(
            "by {}, which no EgressPolicy can overrule; ask whoever keeps that policy",
            rule()
        ),
        Outcome::OutsideCeiling => format!(
            "it is outside {}, which no EgressPolicy can exceed; ask whoever keeps that policy",
            rule()
        ),
        Outcome::PrivateAnswer => format!(
            "the name has private addresses only. To allow that, add it to `privateAnswers` of an EgressPolicy in \
             namespace {}",
            denial.namespace
        ),
        other => format!("{} (what that means is in docs/denials.md)", other.as_str()),
    }
}

/// The rule that would allow it, as it stands in a policy.
fn allowing(denial: &Denial) -> String {
    let peer = match denial.host.parse::<IpAddr>() {
        Ok(address) => format!("cidr: {}", IpNet::from(address)),
        Err(_) => format!("domain: {}", denial.host),
    };
    match denial.port {
        Some(port) => {
            let protocol = if denial.is_udp { ", protocol: UDP" } else { "" };
            format!("- {{to: [{{{peer}}}], ports: [{{port: {port}{protocol}}}]}}")
        }
        None => format!("- {{to: [{{{peer}}}]}}"),
    }
}
