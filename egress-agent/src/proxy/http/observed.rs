//! A request head read in passing, for connections whose verdicts are only recorded: nothing is parsed out of the stream
//! that flows on, so only the first request of a connection is seen.

use egress_common::outcome::Outcome;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};

use super::{
    judge::{Judged, judge},
    target::Head,
    upstream::MOST_FIELDS,
};
use crate::{access_log::Asked, policy::Verdict, proxy::Connection};

/// What a request head said, and what the policies say of it.
#[derive(Debug)]
pub struct Observed {
    /// What would have happened.
    pub verdict: Verdict,
    /// What was asked.
    pub asked: Asked,
    /// Its `Referer`.
    pub referer: Option<HeaderValue>,
    /// Its `User-Agent`.
    pub user_agent: Option<HeaderValue>,
}

/// Reads the head at the beginning of `received`; `None` while it is incomplete.
pub fn observe(received: &[u8], connection: &Connection) -> Option<Observed> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(received) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Some(Observed::refused(Outcome::HeadTooLarge)),
        Err(_malformed) => return Some(Observed::refused(Outcome::MalformedHttp)),
    }
    Some(read(&request, connection).unwrap_or_else(|| Observed::refused(Outcome::MalformedHttp)))
}

fn read(request: &httparse::Request<'_, '_>, connection: &Connection) -> Option<Observed> {
    let method = Method::from_bytes(request.method?.as_bytes()).ok()?;
    let uri: Uri = request.path?.parse().ok()?;
    let version = if request.version? == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        headers.append(
            HeaderName::from_bytes(field.name.as_bytes()).ok()?,
            HeaderValue::from_bytes(field.value).ok()?,
        );
    }
    let head = Head {
        method: &method,
        uri: &uri,
        version,
        headers: &headers,
    };
    let (target, verdict) = match judge(connection, &head) {
        Judged::Pass { target, verdict, .. } => (Some(target), verdict),
        Judged::Refuse { target, verdict, .. } => (target, verdict),
    };
    let asked = target.map_or(Asked::Nothing, |target| Asked::Request {
        method,
        url: target.url,
        version,
    });
    Some(Observed {
        verdict,
        asked,
        referer: headers.remove(header::REFERER),
        user_agent: headers.remove(header::USER_AGENT),
    })
}

impl Observed {
    const fn refused(outcome: Outcome) -> Self {
        Self {
            verdict: Verdict::without_rule(outcome),
            asked: Asked::Nothing,
            referer: None,
            user_agent: None,
        }
    }
}
