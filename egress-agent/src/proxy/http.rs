//! HTTP in clear: judged per request, not per connection.
//!
//! `target` and `path` read a request, `judge` asks the policy, `h1` and `h2` speak the two protocols, `deny_page` says
//! no. Nothing here terminates TLS, and nothing is added to or taken out of a message but what its hop needs.

pub mod answer;
mod body;
mod client;
mod clock;
pub mod deny_page;
mod exchange;
mod forward;
mod framing;
#[doc(hidden)]
pub mod fuzz;
mod h1;
mod h2;
mod interim;
mod judge;
mod lane;
mod observed;
mod proxied;
pub mod target;
mod upgrade;
mod upstream;

pub use observed::{Observed, observe};
pub use proxied::{Opened, Promised};

use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::Connection;
use crate::{access_log::Protocol, drain::DrainWatcher};

/// Serves a connection whose first bytes were recognised as HTTP, to its end. `prefix` is what was read of it. One record
/// per request goes to the log, also when this future is dropped. Once `drain` starts, the requests under way are served
/// and no further ones are waited for.
///
/// A CONNECT to the explicit proxy ends it with what has been opened, which the caller has to go on with.
///
/// The future is not `Send`: client and origin legs stay on one worker.
pub async fn serve(
    connection: Arc<Connection>,
    stream: TcpStream,
    prefix: Bytes,
    protocol: Protocol,
    drain: DrainWatcher,
) -> Option<Opened> {
    if let Err(error) = stream.set_nodelay(true) {
        // It only costs time.
        tracing::debug!(%error, "TCP_NODELAY");
    }
    match protocol {
        Protocol::Http1 => h1::serve(connection, stream, prefix, drain).await,
        Protocol::Http2 => {
            h2::serve(connection, stream, prefix, drain).await;
            None
        }
        // Not HTTP: nobody asks for it, and nothing may pass unjudged.
        Protocol::Tls | Protocol::Unknown => None,
    }
}

#[cfg(test)]
mod tests;
