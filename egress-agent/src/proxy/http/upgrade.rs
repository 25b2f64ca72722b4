//! Upgrades: only `websocket` passes, and becomes a tunnel behind a 101.

use http::{HeaderMap, HeaderValue, Version, header, request};
use hyper::upgrade::OnUpgrade;

use super::body::lists;

const WEBSOCKET: &str = "websocket";

/// What a request offers to change to, once everything but `websocket` has been taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// Nothing.
    None,
    /// RFC 6455.
    WebSocket,
}

/// Takes out of a request what could not be judged afterwards.
///
/// An `Upgrade` is an offer that an origin is free to ignore (RFC 9110 section 7.8), so what may not pass is stripped and
/// not refused: `h2c`, behind which every further request would escape its own verdict, and every protocol that is not
/// known here. The request itself goes on as the plain HTTP/1.1 request that it is.
pub(super) fn filter(request: &mut request::Parts) -> Offer {
    // hyper's own handle: the 101 is dealt with by hand.
    request.extensions.remove::<OnUpgrade>();
    let offers_websocket =
        request.version == Version::HTTP_11 && lists(&request.headers, &header::UPGRADE, WEBSOCKET);
    request.headers.remove("http2-settings");
    if offers_websocket {
        // Unchanged where there is nothing to take out: the value's own spelling stays.
        if request
            .headers
            .get_all(header::UPGRADE)
            .iter()
            .any(|value| value.len() != WEBSOCKET.len())
        {
            request
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
        }
        strip_options(&mut request.headers, &["http2-settings"]);
        return Offer::WebSocket;
    }
    if request.headers.remove(header::UPGRADE).is_some() {
        strip_options(&mut request.headers, &["upgrade", "http2-settings"]);
    }
    Offer::None
}

/// Whether a 101 takes up the offer.
pub(super) fn is_taken(offer: Offer, answer: &HeaderMap) -> bool {
    offer == Offer::WebSocket && lists(answer, &header::UPGRADE, WEBSOCKET)
}

/// Takes connection options out of `Connection`; a field without any option left goes.
fn strip_options(fields: &mut HeaderMap, unwanted: &[&str]) {
    if !unwanted
        .iter()
        .any(|option| lists(fields, &header::CONNECTION, option))
    {
        return;
    }
    let kept: Vec<String> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty() && !unwanted.iter().any(|option| item.eq_ignore_ascii_case(option)))
        .map(str::to_owned)
        .collect();
    fields.remove(header::CONNECTION);
    if let Ok(value) = HeaderValue::try_from(kept.join(", "))
        && !kept.is_empty()
    {
        fields.insert(header::CONNECTION, value);
    }
}

#[cfg(test)]
mod tests;
