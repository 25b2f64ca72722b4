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
    use super::*;

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
