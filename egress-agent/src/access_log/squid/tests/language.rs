//! The `logformat` language beyond what the recordings show.

use super::*;

#[test]
fn an_unknown_code_is_an_error_that_names_what_is_allowed() {
    let error = LogFormat::parse("%>a %nosuch x").unwrap_err();
    assert_eq!(error.column, 5);
    let message = error.to_string();
    assert!(
        message.starts_with("column 5: unknown code `%nosuch`; allowed are %err_code "),
        "{message}"
    );
    for code in ["%>a", "%ru", "%Ss", "%note"] {
        assert!(message.contains(code), "{message}");
    }
}

#[test]
fn what_squid_would_accept_in_silence_is_refused() {
    let kind = |format: &str| LogFormat::parse(format).unwrap_err().kind;
    let argument = |format: &str, code: &str, argument: &str, allowed: &str| {
        let (code, argument, allowed) = (code.to_owned(), argument.to_owned(), allowed.to_owned());
        assert_eq!(
            kind(format),
            FormatErrorKind::Argument {
                code,
                argument,
                allowed
            }
        );
    };
    argument("%rm{x}", "rm", "x", "no argument");
    argument("%{x}ru", "ru", "x", "no argument");
    argument("%{Cookie}>h", ">h", "Cookie", "Referer, User-Agent");
    argument("%{Server}<h", "<h", "Server", "Content-Type");
    argument("%{%!}tl", "tl", "%!", "a strftime format");
    argument("%{%n}tg", "tg", "%n", "a strftime format");
    assert!(matches!(
        kind("%{nonsense}note"),
        FormatErrorKind::Argument { .. }
    ));
    assert!(matches!(kind("%>h"), FormatErrorKind::MissingArgument { .. }));
    assert!(matches!(kind("%note"), FormatErrorKind::MissingArgument { .. }));
    assert_eq!(kind("%{Referer>h"), FormatErrorKind::OpenBrace);
    assert_eq!(kind("%4097ru"), FormatErrorKind::Width);
    assert_eq!(kind("%.99999999999999999999ru"), FormatErrorKind::Width);
    assert_eq!(kind("%ru\n%ru"), FormatErrorKind::Control);
    assert_eq!(kind("  "), FormatErrorKind::Empty);
    assert!(matches!(kind("100%"), FormatErrorKind::UnknownCode(_)));
}

#[test]
fn every_code_that_is_offered_can_be_rendered() {
    let record = get(b"http://good.test/x?y", Outcome::AllowedByRule);
    for code in super::super::code::NAMES {
        let format = match *code {
            ">h" => "%{Referer}>h".to_owned(),
            "<h" => "%{Content-Type}<h".to_owned(),
            "note" => "%{rule}note".to_owned(),
            code => format!("%{code}"),
        };
        assert!(!render(&format, &record).is_empty(), "{format}");
    }
}

#[test]
fn the_longer_name_wins() {
    let record = get(b"http://good.test/x?y", Outcome::AllowedByRule);
    assert_eq!(text("%>rP", &record), "80");
    assert_eq!(text("%>Hs", &record), "200");
    assert_eq!(text("%>la %>lp %>p %>a", &record), "192.0.2.7 80 39870 10.42.0.7");
    assert_eq!(text("%tSx", &record), "1795413157.405x");
}

#[test]
fn the_query_is_left_out_on_demand_and_its_question_mark_kept() {
    let format = LogFormat::parse("%ru %>ru").unwrap();
    let record = get(b"http://good.test/x?a=1?b", Outcome::AllowedByRule);
    let mut line = Vec::new();
    Renderer::new(&format, zone(), true).render(&Facts::of(&record), &mut line);
    assert_eq!(line, b"http://good.test/x? http://good.test/x?a=1?b\n");
}

#[test]
fn the_url_is_cut_where_squid_cuts_it() {
    let url = [b"http://good.test/", vec![b'a'; 9000].as_slice()].concat();
    assert_eq!(render("%ru", &get(&url, Outcome::AllowedByRule)).len(), 8191);
}

#[test]
fn lines_are_numbered() {
    let format = LogFormat::parse("%03sn").unwrap();
    let mut renderer = Renderer::new(&format, zone(), false);
    let mut out = Vec::new();
    let record = nothing(Outcome::ClientGone);
    for _ in 0..2 {
        renderer.render(&Facts::of(&record), &mut out);
    }
    assert_eq!(out, b"000\n001\n");
}

#[test]
fn the_time_of_day_follows_the_record_and_not_the_last_line() {
    let format = LogFormat::parse("%tl|%tg").unwrap();
    let mut renderer = Renderer::new(&format, zone(), false);
    let mut out = Vec::new();
    let mut record = nothing(Outcome::ClientGone);
    for offset in [0, 0, 1] {
        record.duration = Duration::from_secs(offset);
        renderer.render(&Facts::of(&record), &mut out);
    }
    let first = "23/Nov/2026:11:37:37 +0545|23/Nov/2026:05:52:37\n";
    let last = "23/Nov/2026:11:37:38 +0545|23/Nov/2026:05:52:38\n";
    assert_eq!(String::from_utf8(out).unwrap(), format!("{first}{first}{last}"));
}

#[test]
fn identity_and_verdict_are_annotations() {
    let record = tunnel(name("good.test"), 443, Outcome::AllowedByRule);
    assert_eq!(
        text(
            "%{namespace}note %{workload}note %{command}note %{outcome}note %\"{rule}note %{ending}note",
            &record
        ),
        "shop cart-7d4b9c-x2x curl allowed_by_rule EgressPolicy shop/cart egress[1] complete"
    );
    assert_eq!(
        text("%{rule}note %{address}note", &nothing(Outcome::NoFlow)),
        "- -"
    );
    // Spaces would make two fields of one.
    assert_eq!(
        text("%{rule}note", &record),
        "EgressPolicy%20shop/cart%20egress%5B1%5D"
    );
}

#[test]
fn a_gap_is_a_line_that_readers_of_the_format_understand() {
    let format = LogFormat::parse(COMBINED).unwrap();
    let mut out = Vec::new();
    let at = "2026-11-23T05:52:37Z".parse().unwrap();
    Renderer::new(&format, zone(), false).render(&Facts::lost(17, at), &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "- - - [23/Nov/2026:11:37:37 +0545] \"- error:17-records-lost HTTP/0.0\" 0 0 \"-\" \"-\" NONE_NONE:HIER_NONE\n"
    );
}

#[test]
fn no_name_being_known_the_dialled_address_stands_in() {
    assert_eq!(
        text("%rm %ru %Ss %>Hs", &nothing(Outcome::UnknownProtocol)),
        "CONNECT 192.0.2.7:443 TCP_DENIED 403"
    );
    let mut mapped = nothing(Outcome::NoServerName);
    mapped.original = socket("[::ffff:192.0.2.7]:443");
    assert_eq!(text("%ru", &mapped), "192.0.2.7:443");
}
