use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> HostPattern {
    text.parse().unwrap()
}

fn error(text: &str) -> String {
    text.parse::<HostPattern>().unwrap_err().to_string()
}

#[test]
fn each_form_matches_what_it_says_and_nothing_else() {
    let names = [
        "nasa.gov",
        "jpl.nasa.gov",
        "ssd.jpl.nasa.gov",
        "xnasa.gov",
        "nasa.gov.evil.test",
        "gov",
    ];
    for (text, expected) in [
        ("nasa.gov", &["nasa.gov"][..]),
        ("NASA.gov.", &["nasa.gov"]),
        ("*.nasa.gov", &["jpl.nasa.gov"]),
        ("**.nasa.gov", &["jpl.nasa.gov", "ssd.jpl.nasa.gov"]),
        (".nasa.gov", &["nasa.gov", "jpl.nasa.gov", "ssd.jpl.nasa.gov"]),
    ] {
        let matched: Vec<_> = names
            .into_iter()
            .filter(|name| pattern(text).matches(&DomainName::parse(name).unwrap()))
            .collect();
        assert_eq!(matched, expected, "{text}");
    }
}

#[test]
fn patterns_are_canonical_and_print_as_written() {
    for (text, canonical) in [
        ("Example.COM.", "example.com"),
        ("*.MÜNCHEN.example.org", "*.xn--mnchen-3ya.example.org"),
        ("**.svc.cluster.local", "**.svc.cluster.local"),
        (".example.com", ".example.com"),
        ("**.internal", "**.internal"),
        ("*.test", "*.test"),
        ("localhost", "localhost"),
        ("co.uk", "co.uk"),
    ] {
        assert_eq!(pattern(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn a_wildcard_over_everything_or_over_a_public_suffix_is_refused() {
    for text in ["*", "**", ".", "*.", "**."] {
        assert!(error(text).contains("would match every name"), "{}", error(text));
    }
    for text in [
        "*.com",
        "**.com",
        ".com",
        "*.COM.",
        "**.co.uk",
        "*.github.io",
        "*.xn--p1ai",
        "*.рф",
        ".xn--55qx5d.cn",
        // A wildcard rule of the list: every name right below `ck` is a public suffix.
        "*.foo.ck",
    ] {
        assert!(error(text).contains("public suffix"), "{text}: {}", error(text));
    }
    // An exception of the list.
    assert_eq!(pattern("*.www.ck").to_string(), "*.www.ck");
}

#[test]
fn errors_say_what_is_wrong_and_what_is_allowed() {
    for (text, what) in [
        ("", "is empty"),
        ("a.*.example.com", "a wildcard inside"),
        ("a*.example.com", "a wildcard inside"),
        ("*a.example.com", "a wildcard inside"),
        ("*.*.example.com", "a wildcard inside"),
        ("***.example.com", "a wildcard inside"),
        ("*.**.example.com", "a wildcard inside"),
        ("example.*", "a wildcard inside"),
        ("a..example.com", "a label is empty"),
        ("*..example.com", "a label is empty"),
        ("..example.com", "a label is empty"),
        ("exa mple.com", "character that host names cannot have"),
        ("https://example.com", "scheme, a port or a path"),
        ("example.com:443", "scheme, a port or a path"),
        ("example.com/path", "scheme, a port or a path"),
        ("*.1.2.3.4", "the last label is a number"),
        ("127.1", "the last label is a number"),
    ] {
        let message = error(text);
        assert!(message.contains(what), "{text}: {message}");
        assert!(message.contains("allowed are `example.com`"), "{text}: {message}");
    }
}

#[test]
fn an_address_is_refused_with_the_cidr_rule_to_write_instead() {
    for (text, cidr) in [
        ("192.0.2.1", "cidr: 192.0.2.1/32}"),
        ("192.0.2.0/24", "cidr: 192.0.2.0/24}"),
        ("192.0.2.1/24", "cidr: 192.0.2.0/24}"),
        ("2001:db8::1", "cidr: 2001:db8::1/128}"),
        ("[2001:db8::1]", "cidr: 2001:db8::1/128}"),
        ("2001:db8::/32", "cidr: 2001:db8::/32}"),
    ] {
        assert!(error(text).contains(cidr), "{}", error(text));
    }
}

proptest! {
    #[test]
    fn any_text_is_a_pattern_that_prints_to_itself_or_an_error(text in "[*.a-z0-9/:é-]{0,24}") {
        if let Ok(parsed) = text.parse::<HostPattern>() {
            prop_assert_eq!(parsed.to_string().parse::<HostPattern>(), Ok(parsed));
        }
    }

    #[test]
    fn wildcards_add_labels_and_never_match_inside_one(
        base in "[a-z]{1,5}\\.test", label in "[a-z]{1,3}", more in "[a-z]{1,3}",
    ) {
        let name = |text: String| DomainName::parse(&text).unwrap();
        let one_label = name(format!("{label}.{base}"));
        let two_labels = name(format!("{more}.{label}.{base}"));
        let inside_a_label = name(format!("{label}{base}"));
        let one = pattern(&format!("*.{base}"));
        let below = pattern(&format!("**.{base}"));
        prop_assert!(one.matches(&one_label) && below.matches(&one_label));
        prop_assert!(!one.matches(&two_labels) && below.matches(&two_labels));
        for pattern in [one, below] {
            prop_assert!(!pattern.matches(&name(base.clone())));
            prop_assert!(!pattern.matches(&inside_a_label));
        }
    }
}
