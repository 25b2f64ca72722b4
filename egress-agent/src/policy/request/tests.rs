use proptest::prelude::*;

use super::*;

#[test]
fn paths_have_one_normal_form() {
    for (path, normal) in [
        ("/", "/"),
        ("/v1/items", "/v1/items"),
        ("/%76%31/%7euser", "/v1/~user"),
        ("/a%2bb%3a", "/a%2Bb%3A"),
        ("/a+b:c@d;e=f,g", "/a+b:c@d;e=f,g"),
        ("/caf%c3%a9/", "/caf%C3%A9/"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/..a/b..", "/..a/b.."),
        ("/100%25", "/100%25"),
        ("/100%25x", "/100%25x"),
    ] {
        assert_eq!(normal_path(path).unwrap(), normal, "{path}");
        assert_eq!(normal_path(normal).unwrap(), normal, "{path}");
    }
}

#[test]
fn a_path_that_servers_read_differently_is_in_doubt() {
    for (path, doubt) in [
        ("", PathDoubt::NotAbsolute),
        ("*", PathDoubt::NotAbsolute),
        ("v1", PathDoubt::NotAbsolute),
        ("//", PathDoubt::EmptySegment),
        ("//admin", PathDoubt::EmptySegment),
        ("/v1//admin", PathDoubt::EmptySegment),
        ("/v1//", PathDoubt::EmptySegment),
        ("/.", PathDoubt::DotSegment),
        ("/v1/../admin", PathDoubt::DotSegment),
        ("/v1/%2e%2E/admin", PathDoubt::DotSegment),
        ("/v1/.%2e", PathDoubt::DotSegment),
        ("/v1/..;/admin", PathDoubt::DotSegment),
        ("/v1/.;x=y/admin", PathDoubt::DotSegment),
        ("/v1/..\\admin", PathDoubt::HiddenDelimiter),
        ("/v1/..%5cadmin", PathDoubt::HiddenDelimiter),
        ("/v1%2fadmin", PathDoubt::HiddenDelimiter),
        ("/v1%00", PathDoubt::HiddenDelimiter),
        ("/v1%0d%0a", PathDoubt::HiddenDelimiter),
        ("/v1%252fadmin", PathDoubt::HiddenDelimiter),
        ("/v1%", PathDoubt::Malformed),
        ("/v1%4", PathDoubt::Malformed),
        ("/v1%+1", PathDoubt::Malformed),
        ("/v1%é", PathDoubt::Malformed),
        ("/v1 x", PathDoubt::Malformed),
        ("/v1?x", PathDoubt::Malformed),
        ("/é", PathDoubt::Malformed),
    ] {
        assert_eq!(normal_path(path), Err(doubt), "{path}");
    }
    assert_eq!(
        normal_path(&format!("/{}", "a".repeat(MAX_PATH))),
        Err(PathDoubt::TooLong)
    );
}

#[test]
fn globs_match_within_and_across_segments() {
    for (glob, matching, other) in [
        ("/v1", &["/v1", "/%761"][..], &["/v1/", "/v10", "/", "/V1"][..]),
        (
            "/v1/*",
            &["/v1/", "/v1/a", "/v1/a.b"],
            &["/v1", "/v1/a/b", "/v2/a"],
        ),
        ("/v1/**", &["/v1/", "/v1/a", "/v1/a/b/"], &["/v1", "/v10/a"]),
        ("/**", &["/", "/a", "/a/b"], &[]),
        ("/*/b", &["/a/b", "/%2Bx/b"], &["/a/c/b", "/b", "/a/b/"]),
        ("/**/b", &["/a/b", "/a/c/b"], &["/b", "/a/bb"]),
        ("/a*b*c", &["/abc", "/axbxc", "/abbcbc"], &["/ab/c", "/ab"]),
        ("/a**b/*.js", &["/ab/x.js", "/a/x/b/.js"], &["/ab/x/y.js"]),
        ("/%7e*", &["/~a", "/%7Ea"], &["/a"]),
        ("/.*", &["/.env"], &["/env"]),
    ] {
        let compiled = PathGlob::parse(glob).unwrap();
        let pattern = RequestPattern {
            methods: None,
            path: Some(compiled),
        };
        let matches = |path: &str| {
            let normal = normal_path(path).unwrap();
            pattern.matches("GET", Ok(&normal), false)
        };
        for path in matching {
            assert!(matches(path), "{glob} {path}");
        }
        for path in other {
            assert!(!matches(path), "{glob} {path}");
        }
    }
}

#[test]
fn a_doubtful_path_is_neither_allowed_by_a_glob_nor_saved_from_a_denial() {
    let pattern = RequestPattern {
        methods: Some(vec!["GET".into()]),
        path: Some(PathGlob::parse("/v1/**").unwrap()),
    };
    let doubtful = Err(PathDoubt::DotSegment);
    assert!(!pattern.matches("GET", doubtful, false));
    assert!(pattern.matches("GET", doubtful, true));
    assert!(!pattern.matches("POST", doubtful, true));
    let any_path = RequestPattern {
        path: None,
        ..pattern
    };
    assert!(any_path.matches("GET", doubtful, false));
    assert!(!any_path.matches("get", doubtful, false));
}

#[test]
fn a_glob_that_could_never_match_is_refused() {
    for (glob, what) in [
        ("", "does not begin with `/`"),
        ("v1/**", "does not begin with `/`"),
        ("**", "does not begin with `/`"),
        ("/v1/***", "three stars"),
        ("/v1/../x", "dot segment"),
        ("/v1//x", "empty segment"),
        ("/v1?x=*", "well-formed"),
        ("/é", "well-formed"),
        ("/v1%2f*", "encoded delimiter"),
    ] {
        let message = PathGlob::parse(glob).unwrap_err();
        assert!(message.contains(what), "{glob}: {message}");
    }
    PathGlob::parse(&format!("/{}", "a".repeat(MAX_GLOB))).unwrap_err();
}

/// The definition, by trying every length for every wildcard.
fn naive(glob: &[u8], path: &[u8]) -> bool {
    match glob {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|length| naive(rest, &path[length..])),
        [b'*', rest @ ..] => (0..=path.len())
            .take_while(|length| !path[..*length].contains(&b'/'))
            .any(|length| naive(rest, &path[length..])),
        [byte, rest @ ..] => path
            .split_first()
            .is_some_and(|(first, path)| first == byte && naive(rest, path)),
    }
}

proptest! {
    #[test]
    fn globs_agree_with_their_definition(glob in "/([ab/]{0,2}\\*{0,2}[ab/]){0,3}\\*{0,2}", path in "/[ab/]{0,10}") {
        prop_assert_eq!(PathGlob::from_normal(&glob).matches(&path), naive(glob.as_bytes(), path.as_bytes()));
    }

    #[test]
    fn normalising_twice_changes_nothing(path in "/[a%2eEfF5c./;~]{0,16}") {
        if let Ok(normal) = normal_path(&path) {
            prop_assert_eq!(normal_path(&normal).unwrap().into_owned(), normal.into_owned());
        }
    }
}
