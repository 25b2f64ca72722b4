use http::Request;

use super::*;

fn filtered(fields: &[(&'static str, &str)], version: Version) -> (Offer, Vec<(String, String)>) {
    let mut request = Request::builder().version(version);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let offer = filter(&mut parts);
    let fields = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    (offer, fields)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn an_h2c_offer_is_taken_out_with_all_that_belongs_to_it() {
    let (offer, fields) = filtered(
        &[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
            ("accept", "*/*"),
        ],
        Version::HTTP_11,
    );
    assert_eq!(offer, Offer::None);
    assert_eq!(fields, pairs(&[("accept", "*/*")]));
}

#[test]
fn other_connection_options_stay() {
    let (_, fields) = filtered(
        &[("connection", "keep-alive, Upgrade"), ("upgrade", "TLS/1.0")],
        Version::HTTP_11,
    );
    assert_eq!(fields, pairs(&[("connection", "keep-alive")]));
}

#[test]
fn a_websocket_offer_stays_as_it_was_written() {
    let written = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
    let (offer, fields) = filtered(&written, Version::HTTP_11);
    assert_eq!(offer, Offer::WebSocket);
    assert_eq!(fields, pairs(&written));
}

#[test]
fn websocket_is_all_that_is_left_of_a_list() {
    for upgrades in [
        &["h2c, websocket"][..],
        &["websocket, h2c"],
        &["h2c", "websocket"],
        &["websocket", "h2c"],
    ] {
        let mut fields = vec![
            ("connection", "Upgrade, HTTP2-Settings"),
            ("http2-settings", "AAM"),
        ];
        fields.extend(upgrades.iter().map(|value| ("upgrade", *value)));
        let (offer, left) = filtered(&fields, Version::HTTP_11);
        assert_eq!(offer, Offer::WebSocket);
        let mut left = left;
        left.sort();
        assert_eq!(
            left,
            pairs(&[("connection", "Upgrade"), ("upgrade", "websocket")]),
            "{upgrades:?}"
        );
    }
}

#[test]
fn http_1_0_cannot_upgrade() {
    let (offer, fields) = filtered(
        &[("connection", "Upgrade"), ("upgrade", "websocket")],
        Version::HTTP_10,
    );
    assert_eq!(offer, Offer::None);
    assert!(fields.is_empty());
}

#[test]
fn a_101_counts_only_for_what_was_offered() {
    let mut answer = HeaderMap::new();
    answer.insert("upgrade", HeaderValue::from_static("websocket"));
    assert!(is_taken(Offer::WebSocket, &answer));
    assert!(!is_taken(Offer::None, &answer));
    answer.insert("upgrade", HeaderValue::from_static("h2c"));
    assert!(!is_taken(Offer::WebSocket, &answer));
}
