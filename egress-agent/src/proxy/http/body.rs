//! Bodies on their way through: streamed frame by frame, never gathered.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{interim::Gate, lane::Lane, upstream::Upstream};
use crate::access_log::Ending;

/// A request's body, read from the client only as fast as the origin takes it.
pub(super) enum RequestBody {
    /// None.
    Empty,
    /// As it comes.
    Flowing { body: Incoming, state: Rc<UploadState> },
    /// Not before the origin, or the client's patience, says so.
    Gated {
        body: Incoming,
        opened: Pin<Box<dyn Future<Output = ()>>>,
        state: Rc<UploadState>,
    },
}

/// What became of a request's body, for the one who waits for the answer.
#[derive(Debug, Default)]
pub(super) struct UploadState {
    /// It may flow.
    pub(super) is_open: Cell<bool>,
    /// It broke off: the client went away, or broke the rules.
    pub(super) is_broken: Cell<bool>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, gate: Option<&Gate>, state: &Rc<UploadState>) -> Self {
        let state = Rc::clone(state);
        state.is_open.set(gate.is_none());
        match gate {
            _ if body.is_end_stream() => Self::Empty,
            None => Self::Flowing { body, state },
            Some(gate) => Self::Gated {
                body,
                opened: Box::pin(gate.opened()),
                state,
            },
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (body, state) = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::Flowing { body, state } => (body, state),
            Self::Gated { body, opened, state } => {
                if !state.is_open.get() {
                    ready!(opened.as_mut().poll(cx));
                    state.is_open.set(true);
                }
                (body, state)
            }
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if matches!(frame, Some(Err(_))) {
            state.is_broken.set(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Flowing { body, .. } | Self::Gated { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Flowing { body, .. } | Self::Gated { body, .. } => body.size_hint(),
        }
    }
}

/// The body of an answer over HTTP/1. When it is dropped the answer is over, in one way or another.
pub(super) struct ResponseBody {
    lane: Rc<Lane>,
    source: Source,
    progress: Progress,
}

enum Source {
    /// Our own page.
    Page(Option<Bytes>),
    /// What the origin sends, and the connection that it comes from, which is kept for the next request if the answer
    /// comes through in full.
    Origin {
        body: Incoming,
        upstream: Option<Upstream>,
        is_kept: bool,
    },
}

enum Progress {
    Running,
    Ended,
    /// The origin broke off. The client gets what came before, and then learns of it.
    Broken {
        error: hyper::Error,
        flushes: u64,
    },
    Failed,
}

impl ResponseBody {
    pub(super) fn page(lane: &Rc<Lane>, page: Bytes) -> Self {
        Self {
            lane: Rc::clone(lane),
            source: Source::Page((!page.is_empty()).then_some(page)),
            progress: Progress::Running,
        }
    }

    /// `is_kept` if another request may go over `upstream` afterwards.
    pub(super) fn origin(lane: &Rc<Lane>, body: Incoming, upstream: Upstream, is_kept: bool) -> Self {
        Self {
            lane: Rc::clone(lane),
            source: Source::Origin {
                body,
                upstream: Some(upstream),
                is_kept,
            },
            progress: Progress::Running,
        }
    }

    fn is_complete(&self) -> bool {
        match (&self.progress, &self.source) {
            (Progress::Ended, _) | (Progress::Running, Source::Page(_)) => true,
            (Progress::Running, Source::Origin { body, .. }) => body.is_end_stream(),
            (Progress::Broken { .. } | Progress::Failed, _) => false,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        loop {
            if let Progress::Broken { flushes, .. } = &this.progress {
                // hyper throws away what it has buffered when a body fails.
                ready!(this.lane.client.poll_flushed(*flushes));
                let Progress::Broken { error, .. } = std::mem::replace(&mut this.progress, Progress::Failed)
                else {
                    return Poll::Ready(None);
                };
                return Poll::Ready(Some(Err(error)));
            }
            let body = match &mut this.source {
                Source::Page(page) => return Poll::Ready(page.take().map(|page| Ok(Frame::data(page)))),
                Source::Origin { body, .. } => body,
            };
            match ready!(Pin::new(body).poll_frame(cx)) {
                None => {
                    this.progress = Progress::Ended;
                    return Poll::Ready(None);
                }
                Some(Ok(frame)) => {
                    if frame.is_trailers() {
                        this.progress = Progress::Ended;
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    let flushes = this.lane.client.flushes();
                    this.progress = Progress::Broken { error, flushes };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Page(page) => page.is_none(),
            Source::Origin { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Page(page) => SizeHint::with_exact(page.as_ref().map_or(0, Bytes::len) as u64),
            Source::Origin { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if !self.is_complete() {
            let is_broken = matches!(self.progress, Progress::Broken { .. } | Progress::Failed);
            self.lane.cut_off(is_broken.then_some(Ending::OriginAborted));
            return;
        }
        if let Source::Origin {
            upstream,
            is_kept: true,
            ..
        } = &mut self.source
            && let Some(upstream) = upstream.take()
        {
            self.lane.keep(upstream);
        }
        self.lane.answered_in_full();
    }
}

/// Whether `fields` has `option` in a comma-separated list (RFC 9110 section 5.6.1), without regard to case.
pub(super) fn lists(fields: &HeaderMap, name: &http::HeaderName, option: &str) -> bool {
    fields.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    })
}
