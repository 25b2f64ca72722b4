//! What a verdict costs with 10,000 rules, and what it costs to load them.
//!
//! `cargo bench -p egress-agent --bench policy`. Each shape of 10,000 rules is asked for names that a rule allows and for
//! names that none does; `view` is the selection of a workload's policies, which every verdict needs first.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails has no result")]

use std::{fmt::Write as _, hint::black_box, path::Path, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use egress_agent::{
    identity::Workload,
    policy::{Host, PolicySet, PolicyView, PortSet, Settings, Target, read_text},
};

const RULES: usize = 10_000;

/// One policy with all the rules: half of them names, half of them wildcards.
fn one_policy() -> String {
    let mut text = head(0, "{}");
    for index in 0..RULES {
        let pattern = if index % 2 == 0 { "" } else { "**." };
        writeln!(text, "  - to: [{{domain: '{pattern}host-{index}.example.com'}}]").unwrap();
    }
    text
}

/// As many policies with one rule each, which select each another app.
fn policies_of_many_apps() -> String {
    policies(|index| format!("{{matchLabels: {{app: app-{index}}}}}"))
}

/// As many policies with one rule each, which all select the workload.
fn policies_of_one_app() -> String {
    policies(|_| "{matchLabels: {app: app-0}}".to_owned())
}

fn policies(selector: impl Fn(usize) -> String) -> String {
    (0..RULES).fold(String::new(), |mut text, index| {
        text += &head(index, &selector(index));
        writeln!(text, "  - to: [{{domain: host-{index}.example.com}}]").unwrap();
        text
    })
}

/// One policy with all the rules being address blocks of many lengths.
fn blocks() -> String {
    let mut text = head(0, "{}");
    for (index, length) in (0..10_000_u32).zip((24..32).cycle()) {
        let net = ipnet::Ipv4Net::new((0x0a00_0000 + index * 256).into(), length).unwrap();
        writeln!(text, "  - to: [{{cidr: {net}}}]").unwrap();
    }
    text
}

fn head(index: usize, selector: &str) -> String {
    format!(
        "---\napiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: p-{index}, namespace: a}}\n\
         spec:\n  podSelector: {selector}\n  egress:\n"
    )
}

fn load(text: &str) -> Arc<PolicySet> {
    let policies = read_text(Path::new("bench.yaml"), text).unwrap();
    Arc::new(PolicySet::build(policies, Settings::default()).unwrap())
}

/// A pod with the labels that a Helm chart gives.
fn workload() -> Workload {
    let labels = [
        ("app", "app-0"),
        ("app.kubernetes.io/name", "web"),
        ("app.kubernetes.io/instance", "shop"),
        ("app.kubernetes.io/managed-by", "Helm"),
        ("helm.sh/chart", "web-1.2.3"),
        ("pod-template-hash", "5d9f7c8b6"),
    ];
    Workload {
        namespace: "a".into(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Workload::default()
    }
}

fn judge(view: &PolicyView, host: &Host) -> bool {
    let address = match host {
        Host::Address(address) => *address,
        Host::Name(_) => [198, 51, 100, 1].into(),
    };
    view.judge(black_box(&Target {
        host,
        port: 443,
        address,
        request: None,
    }))
    .is_allow()
}

/// Title, policies, and questions: what it is, host, whether it is allowed.
type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str, bool)]);

fn verdicts(criterion: &mut Criterion) {
    let deep = format!("{}example.com", "a.".repeat(120));
    let cases: [Case<'_>; 4] = [
        (
            "one policy",
            one_policy(),
            &[
                ("hit exact", "host-9998.example.com", true),
                ("hit wildcard", "a.b.host-9999.example.com", true),
                ("miss", "host-x.example.com", false),
                ("miss of 122 labels", &deep, false),
            ],
        ),
        (
            "10,000 policies of as many apps",
            policies_of_many_apps(),
            &[
                ("hit", "host-0.example.com", true),
                ("miss (another app's)", "host-9999.example.com", false),
            ],
        ),
        (
            "10,000 policies of one app",
            policies_of_one_app(),
            &[
                ("hit", "host-9999.example.com", true),
                ("miss", "host-x.example.com", false),
            ],
        ),
        (
            "address blocks",
            blocks(),
            &[("hit", "10.39.15.0", true), ("miss", "192.0.2.1", false)],
        ),
    ];
    let workload = workload();
    for (title, text, questions) in cases {
        let set = load(&text);
        let mut group = criterion.benchmark_group(title);
        group.bench_function("view", |bench| bench.iter(|| set.view(black_box(&workload))));
        let view = set.view(&workload);
        for (name, host, allowed) in questions {
            let host = Host::parse(host).unwrap();
            assert_eq!(judge(&view, &host), *allowed, "{title}: {name}");
            group.bench_function(*name, |bench| bench.iter(|| judge(&view, black_box(&host))));
        }
        group.finish();
    }
}

fn loading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (name, text) in [
        ("one policy", one_policy()),
        ("10,000 policies", policies_of_many_apps()),
    ] {
        group.bench_function(name, |bench| bench.iter(|| load(black_box(&text))));
    }
    group.finish();
}

/// What the kernel is told of 10,000 blocks: computed when policies change, once for workloads that are alike.
fn fences(criterion: &mut Criterion) {
    let view = load(&blocks()).view(&workload());
    let web: PortSet = [80..=80, 443..=443].into_iter().collect();
    criterion.bench_function("fence of 10,000 blocks", |bencher| {
        bencher.iter(|| black_box(&view).fence(&web));
    });
}

criterion_group!(benches, verdicts, fences, loading);
criterion_main!(benches);
