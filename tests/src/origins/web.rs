//! A web server whose paths say what they do:
//!
//! - `/`: `hello from NAME`
//! - `/bytes/N`: N bytes of the payload, with Content-Length; `/chunked/N`: without
//! - `/hash`: `LENGTH SHA256` of the request's body; refuses with 417 a body that was announced as `X-Unwelcome`
//! - `/headers`: the request's head as it arrived
//! - `/trailers`: a body with the trailer `x-checksum`
//! - `/close`: answers and closes
//! - `/vanish/N`: promises N bytes, sends half of them and closes the connection
//! - `/stall`: promises 100 bytes, sends the line `stalled` and then nothing more
//! - `/echo`: a WebSocket that sends back what it gets

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{Pen, websocket, witness};
use crate::bytes::{Hash, Payload};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, pen: Pen, name: Arc<str>, tls: Option<Arc<ServerConfig>>) {
    let result = match tls {
        None => serve_stream(stream, &pen, name).await,
        Some(config) => match TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => {
                let (_, session) = stream.get_ref();
                let server_name = session.server_name().map(str::to_owned);
                let alpn = session
                    .alpn_protocol()
                    .map(|alpn| String::from_utf8_lossy(alpn).into_owned());
                pen.note(|seen| {
                    seen.server_name = server_name;
                    seen.alpn = alpn;
                });
                serve_stream(stream, &pen, name).await
            }
            Err(error) => Err(format!("TLS handshake: {error}")),
        },
    };
    pen.ended(result);
}

async fn serve_stream<S>(stream: S, pen: &Pen, name: Arc<str>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| answer(request, pen.clone(), Arc::clone(&name)));
    auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|error| format!("{error:?}"))
}

async fn answer(request: Request<Incoming>, pen: Pen, name: Arc<str>) -> Result<Response<Body>, Infallible> {
    let index = note(&request, &pen);
    let path = request.uri().path().to_owned();
    let number = path
        .rsplit('/')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    let first = path.split('/').nth(1).unwrap_or_default();
    Ok(match first {
        "" => text(format!("hello from {name}\n")),
        "bytes" => {
            let mut response = Response::new(payload(number, number));
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from(number));
            response
        }
        "chunked" => Response::new(payload(number, number)),
        "vanish" => {
            let mut response = Response::new(payload(number / 2, number));
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from(number));
            response
        }
        "stall" => {
            let begin = stream::iter([Ok(Frame::data(Bytes::from_static(b"stalled\n")))]);
            let body = StreamBody::new(begin.chain(stream::pending()));
            let mut response = Response::new(body.boxed_unsync());
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from(100));
            response
        }
        "hash" if request.headers().contains_key("x-unwelcome") => status(StatusCode::EXPECTATION_FAILED),
        "hash" => hash(request, &pen, index).await,
        "headers" => text(head_of(&request)),
        "trailers" => trailers(),
        "close" => {
            let mut response = text(format!("goodbye from {name}\n"));
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        "echo" => upgrade(request),
        _ => status(StatusCode::NOT_FOUND),
    })
}

/// Notes the request and tells its number.
fn note(request: &Request<Incoming>, pen: &Pen) -> usize {
    let host = match request.version() {
        Version::HTTP_2 => request.uri().authority().map(ToString::to_string),
        _ => request
            .headers()
            .get(header::HOST)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into()),
    };
    let noted = witness::Request {
        version: format!("{:?}", request.version()),
        method: request.method().to_string(),
        target: match request.version() {
            Version::HTTP_2 => request
                .uri()
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            _ => request.uri().to_string(),
        },
        host: host.unwrap_or_default(),
        headers: request
            .headers()
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect(),
        body: None,
    };
    let mut index = 0;
    pen.note(|seen| {
        index = seen.requests.len();
        seen.requests.push(noted);
    });
    index
}

fn text(text: String) -> Response<Body> {
    let mut response = Response::new(
        Full::new(Bytes::from(text))
            .map_err(io::Error::other)
            .boxed_unsync(),
    );
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = text(format!("{code}\n"));
    *response.status_mut() = code;
    response
}

/// `length` bytes of the payload, then the end; an error, which closes the connection, if that is not `promised`.
fn payload(length: u64, promised: u64) -> Body {
    PayloadBody {
        payload: Payload::new(),
        left: length,
        broken: length != promised,
        trailers: None,
    }
    .boxed_unsync()
}

/// A body that is generated as the connection takes it.
struct PayloadBody {
    payload: Payload,
    left: u64,
    broken: bool,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for PayloadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.left > 0 {
            let bytes = Bytes::copy_from_slice(this.payload.next(this.left));
            this.left -= bytes.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(fields) = this.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(fields))));
        }
        Poll::Ready(std::mem::take(&mut this.broken).then(|| Err(io::ErrorKind::ConnectionReset.into())))
    }
}

async fn hash(request: Request<Incoming>, pen: &Pen, index: usize) -> Response<Body> {
    let mut hash = Hash::default();
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Some(data) = frame.data_ref() {
                    hash.update(data);
                }
            }
            Err(error) => return text(format!("incomplete: {error}\n")),
        }
    }
    let digest = hash.finish();
    pen.note(|seen| seen.requests[index].body = Some(digest.clone()));
    text(format!("{digest}\n"))
}

fn head_of(request: &Request<Incoming>) -> String {
    let mut head = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        head.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    head
}

fn trailers() -> Response<Body> {
    let mut fields = HeaderMap::new();
    fields.insert("x-checksum", HeaderValue::from_static("complete"));
    // Of unknown length: hyper writes no trailer behind a Content-Length.
    let body = PayloadBody {
        payload: Payload::new(),
        left: 1000,
        broken: false,
        trailers: Some(fields),
    };
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// Answers 101 and becomes a WebSocket echo.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request
        .headers()
        .get("sec-websocket-key")
        .and_then(|key| key.to_str().ok())
    else {
        return status(StatusCode::BAD_REQUEST);
    };
    let accept = websocket::accept_key(key);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                if let Err(error) = websocket::echo(TokioIo::new(stream)).await
                    && error.kind() != io::ErrorKind::UnexpectedEof
                {
                    eprintln!("WebSocket echo: {error}");
                }
            }
            Err(error) => eprintln!("WebSocket upgrade: {error}"),
        }
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    *response.body_mut() = Full::default().map_err(io::Error::other).boxed_unsync();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        "sec-websocket-accept",
        HeaderValue::from_str(&accept).expect("base64 is a header value"),
    );
    response
}
