//! From an allowed host to a connected upstream socket.

use std::net::SocketAddr;

use egress_common::outcome::Outcome;
use tokio::net::TcpStream;

use super::connection::Route;
use crate::{access_log::AddressRelation, policy::Host};

/// Looks names up with our own resolver and dials the answers.
#[derive(Debug, Default)]
pub struct Dialer {}

/// A connected upstream socket.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub address: SocketAddr,
    /// Whether the address that the workload dialled belongs to the name.
    pub relation: AddressRelation,
}

/// Why there is no upstream socket.
#[derive(Debug, thiserror::Error)]
#[error("{outcome:?}")]
pub struct DialError {
    /// The outcome for the record.
    pub outcome: Outcome,
    /// The last address tried, if one was.
    pub address: Option<SocketAddr>,
    /// What was learned of the dialled address before it failed.
    pub relation: Option<AddressRelation>,
}

impl Dialer {
    /// Dials `host` on `port` for a workload that dialled `original`.
    ///
    /// # Errors
    /// See [`DialError`].
    #[expect(clippy::unused_async, reason = "filled in with the resolver")]
    pub async fn dial(
        &self,
        _host: &Host,
        _port: u16,
        _original: SocketAddr,
        _route: &Route,
    ) -> Result<Dialled, DialError> {
        Err(DialError {
            outcome: Outcome::LookupFailed,
            address: None,
            relation: None,
        })
    }
}
