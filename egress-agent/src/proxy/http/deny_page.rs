//! A refusal that explains itself: status, `X-Squid-Error`, `X-Egress-Reason`, `X-Egress-Rule` and a short page.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::answer::Answer;
use crate::{
    identity::Workload,
    policy::{Host, Verdict},
};

/// squid's name for the error and its errno, so that what is scripted against squid keeps working.
pub const X_SQUID_ERROR: HeaderName = HeaderName::from_static("x-squid-error");
/// The outcome in one word of the closed list.
pub const X_EGRESS_REASON: HeaderName = HeaderName::from_static("x-egress-reason");
/// The rule that decided, if one did.
pub const X_EGRESS_RULE: HeaderName = HeaderName::from_static("x-egress-rule");

/// The facts that a page tells.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'a> {
    /// Outcome and rule.
    pub verdict: &'a Verdict,
    /// The host that was asked for, if it could be told.
    pub host: Option<&'a Host>,
    /// The dialled port.
    pub port: u16,
    /// Who asked.
    pub workload: &'a Workload,
    /// What more there is to say.
    pub particulars: Particulars<'a>,
}

/// What the outcome alone does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Particulars<'a> {
    /// What exactly was wrong with the request.
    pub detail: Option<&'a str>,
    /// The kernel's error, if a system call failed.
    pub errno: Option<i32>,
}

impl Refused<'_> {
    /// The answer over HTTP/1 and for plain requests over HTTP/2: a page in HTML for a client that says it wants HTML,
    /// else in plain text.
    #[must_use]
    pub fn page(&self, is_html: bool) -> Response<Bytes> {
        let answer = self.answer();
        let (kind, text) = if is_html {
            ("text/html; charset=utf-8", self.html(&answer))
        } else {
            ("text/plain; charset=utf-8", self.text(&answer))
        };
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        // A refusal must not outlive the policy that it comes from.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.explain(&answer, headers);
        response
    }

    /// The answer to a gRPC call: HTTP status 200 and the refusal in a trailers-only head (gRPC over HTTP/2,
    /// "Trailers-Only"), because gRPC clients make a vague error of any other HTTP status.
    #[must_use]
    pub fn grpc(&self, content_type: &HeaderValue) -> Response<Bytes> {
        let answer = self.answer();
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type.clone());
        headers.insert("grpc-status", HeaderValue::from(u16::from(answer.grpc_status())));
        headers.insert("grpc-message", grpc_message(&self.text(&answer)));
        self.explain(&answer, headers);
        response
    }

    fn answer(&self) -> Answer {
        let answer = Answer::to(self.verdict.outcome);
        match self.particulars.errno {
            Some(errno) if answer.errno != 0 => answer.with_errno(errno),
            Some(_) | None => answer,
        }
    }

    fn explain(&self, answer: &Answer, headers: &mut HeaderMap) {
        headers.insert(X_SQUID_ERROR, visible(&answer.squid_error()));
        headers.insert(
            X_EGRESS_REASON,
            HeaderValue::from_static(self.verdict.outcome.as_str()),
        );
        if let Some(rule) = &self.verdict.rule {
            headers.insert(X_EGRESS_RULE, visible(&rule.to_string()));
        }
    }

    fn text(&self, answer: &Answer) -> String {
        let mut text = format!(
            "{} {}\n{}\n",
            answer.status.as_u16(),
            self.headline(),
            answer.words
        );
        for (name, value) in self.facts() {
            text.push_str(&format!("{name}: {value}\n"));
        }
        text
    }

    fn html(&self, answer: &Answer) -> String {
        let status = answer.status.as_u16();
        let headline = escape_html(&self.headline());
        let mut rows = String::new();
        for (name, value) in self.facts() {
            rows.push_str(&format!("<dt>{name}</dt><dd>{}</dd>\n", escape_html(&value)));
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {headline}</title></head>\n\
             <body><h1>{headline}</h1>\n<p>{}</p>\n<dl>\n{rows}</dl></body></html>\n",
            escape_html(answer.words),
        )
    }

    fn headline(&self) -> String {
        let what = match self.verdict.outcome.class() {
            egress_common::outcome::Class::Deny => "Refused by the egress enforcer",
            egress_common::outcome::Class::Fail | egress_common::outcome::Class::Allow => {
                "Could not be reached"
            }
        };
        match self.host {
            Some(host) => format!("{what}: {host}:{}", self.port),
            None => what.to_owned(),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("reason", self.verdict.outcome.as_str().to_owned())];
        if let Some(detail) = self.particulars.detail {
            facts.push(("detail", detail.to_owned()));
        }
        if let Some(rule) = &self.verdict.rule {
            facts.push(("rule", rule.to_string()));
        }
        let Workload { namespace, name, .. } = self.workload;
        if !name.is_empty() || !namespace.is_empty() {
            facts.push(("workload", format!("{namespace}/{name}")));
        }
        facts
    }
}

/// Whether the client's `Accept` asks for HTML, as browsers' does.
#[must_use]
pub fn wants_html(request: &HeaderMap) -> bool {
    request.get_all(header::ACCEPT).iter().any(|value| {
        value
            .as_bytes()
            .windows(9)
            .any(|window| window.eq_ignore_ascii_case(b"text/html"))
    })
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A field value of printable ASCII; anything else becomes `?`.
fn visible(text: &str) -> HeaderValue {
    let ascii: String = text
        .chars()
        .map(|character| {
            if matches!(character, ' '..='~') {
                character
            } else {
                '?'
            }
        })
        .collect();
    HeaderValue::try_from(ascii).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

/// gRPC's percent-encoding of `grpc-message`: printable ASCII but `%` as it is.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.trim_end().bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    visible(&encoded)
}

#[cfg(test)]
mod tests;
