//! Entries for fuzzing: each panics if a promise is broken.

use std::{path::Path, sync::Arc};

use super::{
    DomainName, Host, HostPattern, PolicySet, RequestFacts, Settings, Target, normal_path, read_text,
};
use crate::identity::Workload;

/// Host patterns, names and paths of any text: parsing never panics, what is parsed prints to itself, and an exact
/// pattern matches its own name and nothing above it.
///
/// # Panics
/// A promise is broken.
pub fn fuzz_host_pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(
            pattern.to_string().parse::<HostPattern>().as_ref(),
            Ok(&pattern),
            "a pattern prints to itself"
        );
        let exact = HostPattern::exact(pattern.name().clone());
        assert!(exact.matches(pattern.name()), "a name matches itself");
    }
    if let Ok(name) = DomainName::parse(text) {
        assert_eq!(
            DomainName::parse(name.as_str()).as_ref(),
            Ok(&name),
            "one canonical form"
        );
    }
    if let Ok(host) = Host::parse(text) {
        assert_eq!(
            Host::parse(&host.to_string()).as_ref(),
            Ok(&host),
            "a host prints to itself"
        );
    }
    if let Ok(path) = normal_path(text) {
        assert_eq!(normal_path(&path).as_ref(), Ok(&path), "one normal form");
    }
}

/// Documents of any text: reading never panics, every error has a place within the text, and what is read gives verdicts.
///
/// # Panics
/// A promise is broken.
pub fn fuzz_policy_document(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match read_text(Path::new("fuzz.yaml"), text) {
        Err(errors) => {
            assert!(!errors.is_empty(), "a refusal has a reason");
            for error in errors {
                assert!(!error.message.is_empty(), "an error says something");
            }
        }
        Ok(policies) => {
            let namespace = policies.first().map(|policy| policy.namespace.clone());
            let Ok(set) = PolicySet::build(policies, Settings::default()) else {
                return;
            };
            let workload = Workload {
                namespace: namespace.unwrap_or_default(),
                ..Workload::default()
            };
            let view = Arc::new(set).view(&workload);
            for host in ["example.com", "a.b.example.com", "192.0.2.1"] {
                let Ok(host) = Host::parse(host) else {
                    continue;
                };
                let target = Target {
                    host: &host,
                    port: 80,
                    address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
                    request: Some(RequestFacts {
                        method: "GET",
                        path: "/v1/x",
                    }),
                };
                assert_eq!(
                    view.judge(&target),
                    view.judge(&target),
                    "a verdict is a function of its target"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    /// A good document, to be cut and sewn.
    const GOOD: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {name: a}\n\
        spec:\n  mode: Audit\n  podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}\n  deny:\n\
        \x20 - to: [{domain: '**.example.com'}, {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]\n\
        \x20   ports: [{port: 80, endPort: 90}]\n    http: [{methods: [GET], path: /v1/*}]\n  ceiling: []\n";

    proptest! {
        #[test]
        fn mangled_documents_are_read_or_refused(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
            token in select(&["", "&a ", "*a", "<<: *a", "!!binary ", "{", "]", "- ", ": ", "|\n", "\t", "\u{feff}",
                "---\n", "'", "~", "0x1F", ".nan", "99999999999999999999", "\r", "*", "%41"][..]),
        ) {
            let mut text = GOOD.to_owned();
            for (start, end) in cuts {
                let (start, end) = (start.index(text.len() + 1), end.index(text.len() + 1));
                let range = start.min(end)..start.max(end).min(start.min(end) + 12);
                if text.is_char_boundary(range.start) && text.is_char_boundary(range.end) {
                    text.replace_range(range, token);
                }
            }
            fuzz_policy_document(text.as_bytes());
        }

        #[test]
        fn text_of_any_kind_is_a_pattern_or_refused(text in "\\PC{0,40}") {
            fuzz_host_pattern(text.as_bytes());
        }
    }

    #[test]
    fn the_entries_take_good_and_bad_input() {
        for text in [
            "",
            "*.example.com",
            "EXAMPLE.com.",
            "[::1]",
            "/a/%7e",
            "\u{ff0e}",
            "xn--a",
        ] {
            fuzz_host_pattern(text.as_bytes());
            fuzz_policy_document(text.as_bytes());
        }
        fuzz_host_pattern(b"\xff");
        fuzz_policy_document(
            b"apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: a}\n\
              spec: {egress: [{to: [{domain: example.com}], http: [{path: /v1/*}]}]}",
        );
    }
}
