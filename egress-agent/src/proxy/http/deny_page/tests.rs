use std::sync::Arc;

use egress_common::outcome::Outcome;
use http::StatusCode;

use super::*;
use crate::policy::{PolicyKind, RuleId};

fn verdict(policy: &str) -> Verdict {
    Verdict {
        outcome: Outcome::ClusterDeny,
        rule: Some(Arc::new(RuleId {
            kind: PolicyKind::ClusterEgressPolicy,
            namespace: String::new(),
            policy: policy.to_owned(),
            list: "deny",
            index: Some(2),
        })),
    }
}

fn workload(name: &str) -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ..Workload::default()
    }
}

#[test]
fn nothing_that_others_chose_becomes_markup_or_a_field() {
    let verdict = verdict("<b>\r\nX-Evil: 1\u{e9}");
    let workload = workload("<script>alert('&\"')</script>");
    let host = Host::parse("evil.test").unwrap();
    let refused = Refused {
        verdict: &verdict,
        host: Some(&host),
        port: 80,
        workload: &workload,
        particulars: Particulars {
            detail: Some("<i>"),
            errno: None,
        },
    };
    let page = refused.page(true);
    let text = std::str::from_utf8(page.body()).unwrap();
    for markup in ["<b>", "<script>", "<i>", "'&\""] {
        assert!(!text.contains(markup), "{markup} in {text}");
    }
    assert!(text.contains("&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;"));
    let rule = page.headers()[X_EGRESS_RULE].to_str().unwrap();
    assert_eq!(rule, "ClusterEgressPolicy <b>??X-Evil: 1? deny[2]");
    let grpc = refused.grpc(&HeaderValue::from_static("application/grpc"));
    let message = grpc.headers()["grpc-message"].to_str().unwrap();
    assert!(message.contains("%0A") && message.contains("%C3%A9"), "{message}");
}

#[test]
fn the_rule_and_the_reason_stand_in_the_head() {
    let verdict = verdict("base");
    let workload = workload("cart-1");
    let refused = Refused {
        verdict: &verdict,
        host: None,
        port: 80,
        workload: &workload,
        particulars: Particulars::default(),
    };
    let page = refused.page(false);
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    assert_eq!(page.headers()[X_SQUID_ERROR], "ERR_ACCESS_DENIED 0");
    assert_eq!(page.headers()[X_EGRESS_REASON], "cluster_deny");
    assert_eq!(page.headers()[X_EGRESS_RULE], "ClusterEgressPolicy base deny[2]");
}

#[test]
fn the_kernels_error_stands_where_squid_has_it() {
    let mut refused = Verdict::without_rule(Outcome::OriginUnreachable);
    let workload = workload("cart-1");
    let value = |verdict: &Verdict, errno| {
        let refused = Refused {
            verdict,
            host: None,
            port: 80,
            workload: &workload,
            particulars: Particulars { detail: None, errno },
        };
        refused.page(false).headers()[X_SQUID_ERROR]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(value(&refused, Some(libc::EHOSTUNREACH)), "ERR_CONNECT_FAIL 113");
    assert_eq!(value(&refused, None), "ERR_CONNECT_FAIL 101");
    refused.outcome = Outcome::NameNotFound;
    assert_eq!(value(&refused, Some(libc::EIO)), "ERR_DNS_FAIL 0");
}
