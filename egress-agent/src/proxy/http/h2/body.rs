//! Bodies of streams, counted on their way through.

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

use super::{pool::Lease, stream::Account};
use crate::access_log::Ending;

/// RFC 9113 section 4.1.
const FRAME_HEADER: u64 = 9;

/// What a stream's request body has come to, for the one who keeps the account.
#[derive(Debug, Default)]
pub(super) struct Upload {
    pub(super) bytes: Cell<u64>,
    /// New policies have refused the stream.
    pub(super) is_revoked: Cell<bool>,
}

/// Ready once new policies refuse the stream.
pub(super) type Revocation = Pin<Box<dyn Future<Output = ()>>>;

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The sender's doing. hyper finds the HTTP/2 reason in the source, and passes it on.
    #[error("the sender gave the stream up")]
    Sender(#[source] hyper::Error),
    /// New policies refuse the stream.
    #[error("new policies refuse the stream")]
    Revoked,
}

/// A request's body.
pub(super) enum UploadBody {
    /// None.
    Empty,
    /// As it comes.
    Flowing {
        body: Incoming,
        upload: Rc<Upload>,
        revocation: Revocation,
    },
}

/// The body of an answer, and with it the stream's account: when it is dropped the stream is over.
pub(super) struct StreamBody {
    source: Source,
    account: Account,
}

enum Source {
    /// Our own page.
    Page(Option<Bytes>),
    /// What the origin sends. Its connection is kept open for it.
    Origin {
        body: Incoming,
        revocation: Revocation,
        _lease: Lease,
    },
}

impl UploadBody {
    pub(super) fn new(body: Incoming, upload: &Rc<Upload>, revocation: Revocation) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Flowing {
            body,
            upload: Rc::clone(upload),
            revocation,
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Self::Flowing {
            body,
            upload,
            revocation,
        } = &mut *self
        else {
            return Poll::Ready(None);
        };
        if upload.is_revoked.get() || revocation.as_mut().poll(cx).is_ready() {
            upload.is_revoked.set(true);
            return Poll::Ready(Some(Err(Broken::Revoked)));
        }
        let frame = ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Broken::Sender));
        if let Some(Ok(frame)) = &frame {
            upload.bytes.set(upload.bytes.get() + frame_bytes(frame));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Flowing { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Flowing { body, .. } => body.size_hint(),
        }
    }
}

impl StreamBody {
    pub(super) fn page(page: Bytes, mut account: Account) -> Self {
        account.is_complete = page.is_empty();
        Self {
            source: Source::Page((!page.is_empty()).then_some(page)),
            account,
        }
    }

    pub(super) fn origin(body: Incoming, lease: Lease, revocation: Revocation, mut account: Account) -> Self {
        account.is_complete = body.is_end_stream();
        Self {
            source: Source::Origin {
                body,
                revocation,
                _lease: lease,
            },
            account,
        }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Self { source, account } = &mut *self;
        let frame = match source {
            Source::Page(page) => page.take().map(|page| Ok(Frame::data(page))),
            Source::Origin { body, revocation, .. } => {
                if account.is_revoked() || revocation.as_mut().poll(cx).is_ready() {
                    account.revoke();
                    return Poll::Ready(Some(Err(Broken::Revoked)));
                }
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Broken::Sender))
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                account.to_client += frame_bytes(frame);
                account.is_complete = frame.is_trailers()
                    || match source {
                        Source::Page(_) => true,
                        // The announced length is the whole of it: an origin may send the flag in an empty frame behind
                        // the last byte, and a client that counts need not wait for that.
                        Source::Origin { body, .. } => {
                            body.is_end_stream() || body.size_hint().exact() == Some(0)
                        }
                    };
            }
            Some(Err(_)) => account.cut = Some(Ending::OriginAborted),
            None => account.is_complete = true,
        }
        Poll::Ready(frame)
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

/// What a head costs on the wire at most: names and values as they are. HPACK makes less of them, by how much only the
/// encoder knows.
pub(super) fn head_bytes(fields: &HeaderMap) -> u64 {
    let fields = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    FRAME_HEADER + fields.sum::<usize>() as u64
}

fn frame_bytes(frame: &Frame<Bytes>) -> u64 {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => FRAME_HEADER + data.len() as u64,
        (None, Some(trailers)) => head_bytes(trailers),
        (None, None) => 0,
    }
}
