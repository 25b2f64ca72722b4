use egress_common::outcome::{Class, Outcome};

use super::*;
use crate::access_log::samples::{get, name, nothing, socket, tunnel};

fn words(record: &Record) -> String {
    let code = ResultCode::of(record);
    format!("{code} {}", code.status)
}

/// By eye: one line per outcome, for a request, a tunnel, and a connection that said nothing of use.
#[test]
fn every_outcome_has_its_words() {
    let mut table = String::new();
    for &outcome in Outcome::ALL {
        let request = words(&get(b"http://good.test/", outcome));
        let tunnel = words(&tunnel(name("good.test"), 443, outcome));
        let nothing = words(&nothing(outcome));
        table += &format!("{:24}{request:28}{tunnel:28}{nothing}\n", outcome.as_str());
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_denial_never_reads_like_a_success() {
    for &outcome in Outcome::ALL
        .iter()
        .filter(|outcome| outcome.class() == Class::Deny)
    {
        for record in [
            get(b"http://good.test/", outcome),
            tunnel(name("good.test"), 443, outcome),
            nothing(outcome),
        ] {
            let code = ResultCode::of(&record);
            assert_eq!(code.hierarchy, Hierarchy::None, "{outcome:?}");
            assert!(!(200..400).contains(&code.status), "{outcome:?}");
            assert!(!matches!(code.tag, Tag::Tunnel), "{outcome:?}");
        }
    }
}

#[test]
fn a_denial_that_was_not_enforced_reads_like_what_happened() {
    let mut record = tunnel(name("evil.test"), 443, Outcome::NoRule);
    record.enforced = false;
    record.upstream = Some(socket("192.0.2.7:443"));
    record.ending = Ending::Complete;
    assert_eq!(words(&record), "TCP_TUNNEL:HIER_DIRECT 200");
    let mut record = nothing(Outcome::UnknownProtocol);
    record.enforced = false;
    record.upstream = Some(socket("192.0.2.7:443"));
    record.ending = Ending::ClientAborted;
    assert_eq!(words(&record), "TCP_TUNNEL:HIER_DIRECT 200");
    record.upstream = None;
    record.ending = Ending::Failed;
    assert_eq!(words(&record), "NONE_NONE:HIER_DIRECT 503");
}

#[test]
fn an_allowed_request_says_how_it_ended() {
    let mut record = get(b"http://good.test/", Outcome::AllowedByRule);
    let mut ended = |ending, status| {
        record.ending = ending;
        record.status = status;
        words(&record)
    };
    assert_eq!(ended(Ending::Complete, 404), "TCP_MISS:HIER_DIRECT 404");
    assert_eq!(ended(Ending::OriginAborted, 200), "TCP_MISS:HIER_DIRECT 200");
    assert_eq!(
        ended(Ending::ClientAborted, 200),
        "TCP_MISS_ABORTED:HIER_DIRECT 200"
    );
    assert_eq!(
        ended(Ending::IdleTimeout, 200),
        "TCP_MISS_TIMEDOUT:HIER_DIRECT 200"
    );
    assert_eq!(ended(Ending::Drained, 200), "TCP_MISS_ABORTED:HIER_DIRECT 200");
    assert_eq!(ended(Ending::Complete, 101), "TCP_TUNNEL:HIER_DIRECT 101");
}

#[test]
fn a_client_that_leaves_while_we_dial_was_not_served() {
    let mut record = tunnel(name("good.test"), 443, Outcome::AllowedByRule);
    record.upstream = None;
    record.ending = Ending::ClientAborted;
    assert_eq!(words(&record), "NONE_NONE:HIER_NONE 0");
    let mut record = get(b"http://good.test/", Outcome::AllowedByRule);
    record.upstream = None;
    record.status = 0;
    record.ending = Ending::ClientAborted;
    assert_eq!(words(&record), "TCP_MISS_ABORTED:HIER_NONE 0");
}

#[test]
fn what_was_really_sent_wins_over_what_squid_would_have_sent() {
    let mut record = get(b"http://good.test/", Outcome::OriginTimeout);
    record.status = 504;
    assert_eq!(words(&record), "TCP_MISS:HIER_DIRECT 504");
    let mut record = nothing(Outcome::HeadTimeout);
    record.status = 408;
    assert_eq!(words(&record), "NONE_NONE:HIER_NONE 408");
}
