use std::collections::BTreeSet;

use egress_common::outcome::Class;

use super::*;
use crate::proxy::refuse::Alert;

const MANUAL: &str = include_str!("../../../../../docs/denials.md");

/// The outcomes that the proxy itself tells; the kernel's have no client to talk to.
const FIRST_OF_THE_PROXY: u16 = 64;

fn alert_name(alert: Alert) -> String {
    // `AccessDenied` is RFC 8446's `access_denied`.
    let mut name = String::new();
    for letter in format!("{alert:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    format!("{name} ({})", alert as u8)
}

/// The first five cells of a row of the manual.
fn row(outcome: Outcome) -> String {
    let answer = Answer::to(outcome);
    let alert = Alert::for_outcome(outcome).map_or_else(|| "reset".to_owned(), alert_name);
    format!(
        "| `{}` | {} | `{}` | {} | {alert} |",
        outcome.as_str(),
        answer.status.as_u16(),
        answer.squid_error(),
        answer.grpc_status(),
    )
}

#[test]
fn the_manual_has_every_outcome_as_it_is_answered() {
    let expected: BTreeSet<String> = Outcome::ALL
        .iter()
        .filter(|outcome| outcome.number() >= FIRST_OF_THE_PROXY)
        .filter(|outcome| !matches!(outcome.class(), Class::Allow) && **outcome != Outcome::ClientGone)
        .map(|outcome| row(*outcome))
        .collect();
    let table = MANUAL.split("## Outcomes").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let written: BTreeSet<String> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split_inclusive('|').take(6).collect::<String>())
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn a_denial_is_never_answered_as_a_success_or_a_failure_of_the_origin() {
    for outcome in Outcome::ALL {
        let status = Answer::to(*outcome).status;
        match outcome.class() {
            Class::Deny if matches!(outcome, Outcome::Overload | Outcome::Unlogged) => {
                assert_eq!(status, 503)
            }
            Class::Deny => assert!(status.is_client_error(), "{outcome:?}: {status}"),
            Class::Fail | Class::Allow => assert!(status.is_server_error(), "{outcome:?}: {status}"),
        }
    }
}
