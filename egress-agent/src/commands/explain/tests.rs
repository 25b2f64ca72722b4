use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command};

const POLICIES: &str = "\
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  egress:
  - to: [{domain: '*.example.com'}]
  - to: [{domain: api.example.org}]
    http: [{methods: [GET], path: /v1/**}]
---
apiVersion: egress-enforcer.io/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: base}
spec:
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
  deny:
  - to: [{domain: bad.example.com}]
  - to: [{cidr: 203.0.113.0/24}]
";

/// The output, the policies' path left out, and whether it ended with 0.
fn run(arguments: &[&str]) -> (String, bool) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.yaml");
    std::fs::write(&file, POLICIES).unwrap();
    let fixed = ["egress-agent", "explain", "--policy", file.to_str().unwrap()];
    let cli = Cli::try_parse_from(fixed.iter().chain(arguments)).unwrap();
    let Command::Explain(args) = cli.command else {
        panic!("another verb was parsed");
    };
    let mut out = Vec::new();
    let status = explain(&args, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let prefix = format!("{}/", directory.path().display());
    (out.replace(&prefix, ""), status == ExitCode::SUCCESS)
}

#[test]
fn an_allowed_target_names_the_rule_and_its_line() {
    let (out, allowed) = run(&[
        "--namespace",
        "shop",
        "--labels",
        "app=web",
        "https://www.example.com/",
    ]);
    assert!(allowed);
    assert_eq!(
        out,
        "\
allow https://www.example.com/
  outcome:  allowed_by_rule
  rule:     EgressPolicy shop/web egress[0] (p.yaml:7)
  reason:   the rule allows www.example.com on port 443
  workload: enforced, in namespace shop
  selected: EgressPolicy shop/web (p.yaml:1), 2 rules
  selected: ClusterEgressPolicy base (p.yaml:11), 2 rules
"
    );
}

#[test]
fn a_denied_target_names_the_denial_or_the_rules_that_came_close() {
    let shop = ["--namespace", "shop", "--labels", "app=web"];
    let ask = |more: &[&str]| {
        let (out, allowed) = run(&[&shop, more].concat());
        assert!(!allowed, "{out}");
        out
    };
    let out = ask(&["bad.example.com:443"]);
    assert!(
        out.contains("rule:     ClusterEgressPolicy base deny[0] (p.yaml:17)"),
        "{out}"
    );
    let out = ask(&["www.example.com:8443"]);
    assert!(out.contains("outcome:  no_rule\n  rule:     none\n"), "{out}");
    assert!(
        out.contains("shop/web egress[0] (p.yaml:7) is close, but it allows the ports 80, 443 only"),
        "{out}"
    );
    let out = ask(&["https://api.example.org/v1/x"]);
    assert!(out.contains("some plain HTTP requests only"), "{out}");
    let out = ask(&["--method", "POST", "http://api.example.org/v1/x"]);
    assert!(out.contains("none of its `http` entries"), "{out}");
    let out = ask(&["http://api.example.org/v1/../x"]);
    assert!(out.contains("a dot segment"), "{out}");
    let out = ask(&["--address", "203.0.113.9", "www.example.com:443"]);
    assert!(out.contains("base deny[1]"), "{out}");
    let (out, allowed) = run(&[&shop[..], &["http://api.example.org/v1/x"]].concat());
    assert!(allowed, "{out}");
}

#[test]
fn an_unselected_workload_is_told_apart_from_an_allowed_one() {
    let (out, allowed) = run(&["--namespace", "other", "https://x.test/"]);
    assert!(allowed && out.contains("outcome:  unselected\n"), "{out}");
    assert!(out.contains("workload: observed"), "{out}");
    let (out, allowed) = run(&["--namespace", "other", "--deny-unselected", "https://x.test/"]);
    assert!(!allowed && out.contains("outcome:  unselected_denied\n"), "{out}");
}

#[test]
fn what_cannot_be_answered_is_an_error() {
    let parse = |arguments: &[&str]| {
        let cli = Cli::try_parse_from(["egress-agent", "explain"].iter().chain(arguments)).unwrap();
        let Command::Explain(args) = cli.command else {
            panic!("another verb was parsed");
        };
        explain(&args, &mut Vec::new()).unwrap_err().to_string()
    };
    assert!(parse(&["--policy", "/nonexistent", "x.test:443"]).starts_with("/nonexistent: cannot be read"));
    assert!(parse(&["--policy", "/nonexistent", "x.test"]).contains("has no port"));
}
