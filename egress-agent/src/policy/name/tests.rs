use proptest::prelude::*;

use super::*;

fn name(text: &str) -> String {
    DomainName::parse(text).unwrap().to_string()
}

#[test]
fn names_have_one_canonical_form() {
    for (text, canonical) in [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("localhost", "localhost"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("r3---sn-4g5e6nsz.example.com", "r3---sn-4g5e6nsz.example.com"),
        ("-a-.example.com", "-a-.example.com"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example", "xn--mnchen-3ya.example"),
        ("XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("ｅｘａｍｐｌｅ．com", "example.com"),
        ("1.example.com", "1.example.com"),
        ("1.2.3.4a", "1.2.3.4a"),
    ] {
        assert_eq!(name(text), canonical, "{text}");
    }
}

#[test]
fn what_is_no_name_is_refused_with_the_reason() {
    let label63 = "a".repeat(63);
    let long = |last: usize| format!("{label63}.{label63}.{label63}.{}", "b".repeat(last));
    for (text, error) in [
        (String::new(), NameError::Empty),
        (".".into(), NameError::Empty),
        ("..".into(), NameError::Label),
        (".example.com".into(), NameError::Label),
        ("a..b".into(), NameError::Label),
        ("example.com..".into(), NameError::Label),
        (format!("{label63}a.com"), NameError::Label),
        (long(62), NameError::TooLong),
        ("a".repeat(100_000), NameError::TooLong),
        ("exa mple.com".into(), NameError::Character),
        ("*.example.com".into(), NameError::Character),
        ("user@example.com".into(), NameError::Character),
        ("example.com:443".into(), NameError::Character),
        ("exam\0ple.com".into(), NameError::Character),
        ("example.com/".into(), NameError::Character),
        ("ex%61mple.com".into(), NameError::Character),
        ("xn--a.example".into(), NameError::Character),
        ("xn--.example".into(), NameError::Character),
        // A well-formed A-label that the mapping would never give: it would be a second form of `bücher`.
        ("xn--bcher-2pa.example".into(), NameError::Character),
        ("::1".into(), NameError::Character),
        ("1.2.3.4".into(), NameError::Numeric),
        ("127.1".into(), NameError::Numeric),
        ("0x7f.1".into(), NameError::Numeric),
        ("foo.0x7F".into(), NameError::Numeric),
        ("017700000001".into(), NameError::Numeric),
        ("example.123.".into(), NameError::Numeric),
        ("１２７．１".into(), NameError::Numeric),
    ] {
        assert_eq!(DomainName::parse(&text), Err(error), "{text:.80}");
    }
    assert_eq!(DomainName::parse(&long(61)).unwrap().as_str().len(), 253);
    assert_eq!(
        DomainName::parse(&format!("{}.", long(61)))
            .unwrap()
            .as_str()
            .len(),
        253
    );
}

#[test]
fn authority_hosts_are_names_or_plainly_written_addresses() {
    for (text, canonical) in [
        ("Example.COM", "example.com"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("[::ffff:192.0.2.1]", "192.0.2.1"),
    ] {
        assert_eq!(Host::parse(text).unwrap().to_string(), canonical, "{text}");
    }
    for (text, error) in [
        ("", NameError::Empty),
        ("[", NameError::Brackets),
        ("[]", NameError::Brackets),
        ("[192.0.2.1]", NameError::Brackets),
        ("[fe80::1%25eth0]", NameError::Brackets),
        ("[fe80::1%eth0]", NameError::Brackets),
        ("[::1]x", NameError::Brackets),
        ("[v1.fe80]", NameError::Brackets),
        ("2001:db8::1", NameError::Character),
        ("127.1", NameError::Numeric),
        ("0x7f.1", NameError::Numeric),
        ("0177.0.0.1", NameError::Numeric),
        ("1.2.3.4.", NameError::Numeric),
        ("256.0.0.1", NameError::Numeric),
        ("1.2.3.4.5", NameError::Numeric),
        ("2130706433", NameError::Numeric),
    ] {
        assert_eq!(Host::parse(text), Err(error), "{text}");
    }
}

proptest! {
    #[test]
    fn the_canonical_form_is_a_fixed_point(text in "\\PC{0,80}") {
        if let Ok(parsed) = DomainName::parse(&text) {
            prop_assert_eq!(DomainName::parse(parsed.as_str()), Ok(parsed.clone()));
            prop_assert!(parsed.as_str().len() <= 253);
            prop_assert!(parsed.as_str().bytes().all(is_host_byte));
        }
    }

    #[test]
    fn case_and_a_trailing_dot_never_matter(text in "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,3}\\.[a-z]{2,8}") {
        prop_assume!(!text.split('.').any(|label| label.starts_with("xn--")));
        let plain = DomainName::parse(&text);
        prop_assert!(plain.is_ok());
        prop_assert_eq!(&DomainName::parse(&text.to_uppercase()), &plain);
        prop_assert_eq!(&DomainName::parse(&format!("{text}.")), &plain);
    }

    #[test]
    fn no_host_that_is_a_name_parses_as_an_address(text in "[0-9a-fx.]{1,20}") {
        if let Ok(Host::Name(name)) = Host::parse(&text) {
            prop_assert!(name.as_str().parse::<IpAddr>().is_err());
        }
    }
}
