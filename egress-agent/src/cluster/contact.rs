//! Whether the API server answers. Measured at the client, because a watch tells nothing while nothing happens.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

/// Whether the API server has answered last time.
#[derive(Debug)]
pub struct Contact {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Since when it is as it is.
    since: Instant,
    is_answered: bool,
    /// What went wrong last.
    error: Option<String>,
}

/// The same for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactStatus {
    /// Whether the last request was answered.
    pub is_answered: bool,
    /// For how long that has been so.
    pub lasts: Duration,
    /// Why it is not.
    pub error: Option<String>,
}

impl Default for Contact {
    fn default() -> Self {
        let state = State {
            since: Instant::now(),
            is_answered: false,
            error: None,
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

impl Contact {
    /// Whether the server answers, and since when.
    #[must_use]
    pub fn status(&self) -> ContactStatus {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        ContactStatus {
            is_answered: state.is_answered,
            lasts: state.since.elapsed(),
            error: state.error.clone(),
        }
    }

    fn note(&self, error: Option<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_answered = error.is_none();
        if state.is_answered != is_answered {
            match &error {
                None => tracing::info!("the API server answers"),
                Some(error) => tracing::warn!(
                    error,
                    "the API server does not answer: what is known stays in force"
                ),
            }
            state.since = Instant::now();
            state.is_answered = is_answered;
        } else if let Some(error) = &error
            && state.error.is_none()
        {
            // Never answered since the start.
            tracing::warn!(error, "the API server does not answer");
        }
        state.error = error;
    }
}

/// Notes the fate of every request.
#[derive(Debug, Clone)]
pub(super) struct ContactLayer {
    contact: Arc<Contact>,
}

impl ContactLayer {
    pub(super) const fn new(contact: Arc<Contact>) -> Self {
        Self { contact }
    }
}

impl<S> Layer<S> for ContactLayer {
    type Service = Noting<S>;

    fn layer(&self, inner: S) -> Noting<S> {
        Noting {
            inner,
            contact: Arc::clone(&self.contact),
        }
    }
}

/// A client that notes.
#[derive(Debug)]
pub(super) struct Noting<S> {
    inner: S,
    contact: Arc<Contact>,
}

impl<S, B> Service<Request<Body>> for Noting<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let contact = Arc::clone(&self.contact);
        let asked = format!("{} {}", request.method(), request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            contact.note(match &answer {
                Err(error) => Some(format!("{asked}: {}", chain(error.as_ref()))),
                // A refusal is an outage for whoever needs the answer. 404 and 410 are answers, so is 409.
                Ok(answer)
                    if answer.status().is_server_error()
                        || matches!(answer.status().as_u16(), 401 | 403 | 429) =>
                {
                    Some(format!("{asked}: {}", answer.status()))
                }
                Ok(_) => None,
            });
            answer
        })
    }
}

/// An error with its causes: the outermost one of an HTTP client says as good as nothing.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text = format!("{text}: {further}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outage_is_told_with_its_reason_and_its_beginning() {
        let contact = Arc::new(Contact::default());
        let inner = tower::service_fn(|request: Request<Body>| async move {
            match request.uri().path() {
                "/gone" => Err(BoxError::from("connection refused")),
                "/forbidden" => Ok(Response::builder().status(403).body(()).unwrap()),
                "/none" => Ok(Response::builder().status(404).body(()).unwrap()),
                _ => Ok(Response::new(())),
            }
        });
        let mut client = ContactLayer::new(Arc::clone(&contact)).layer(inner);
        let mut ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            drop(client.call(request).await);
            contact.status()
        };
        assert!(ask("/api").await.is_answered);
        let gone = ask("/gone").await;
        assert_eq!(gone.error.as_deref(), Some("GET /gone: connection refused"));
        let since = Instant::now() - gone.lasts;
        let forbidden = ask("/forbidden").await;
        assert_eq!(forbidden.error.as_deref(), Some("GET /forbidden: 403 Forbidden"));
        assert!(
            Instant::now() - forbidden.lasts <= since + Duration::from_millis(100),
            "one outage"
        );
        assert_eq!(ask("/none").await.error, None);
    }
}
