//! Servers that the workloads want to reach. Each records what arrives: it is the witness, not the client's error.

mod raw;
mod web;
mod websocket;
mod witness;

pub use raw::RawConnection;
pub use witness::{Pen, Request, Seen, Witness};

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
};

use crate::lab::Place;

/// A running origin.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    witness: Arc<Witness>,
    runtime: runtime::Handle,
}

impl Origin {
    /// A web server that calls itself `name`: HTTP/1.1 and HTTP/2, in clear or (with `tls`) in TLS. See [`web`].
    pub async fn web(
        place: &Place,
        addresses: Vec<SocketAddr>,
        name: &str,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let name: Arc<str> = name.into();
        Self::start(place, addresses, move |stream, pen| {
            web::serve(stream, pen, Arc::clone(&name), tls.clone())
        })
        .await
    }

    /// A server that does `script` with each connection. An error of the script is noted as the connection's end.
    pub async fn raw<S, F>(place: &Place, addresses: Vec<SocketAddr>, script: S) -> Self
    where
        S: Fn(RawConnection) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::start(place, addresses, move |stream, pen| {
            let done = script(RawConnection::new(stream, pen.clone()));
            async move { pen.ended(done.await) }
        })
        .await
    }

    /// The connections so far, whatever state they are in. Everything that had connected when this was called is there.
    pub async fn seen(&self) -> Vec<Seen> {
        for &address in &self.addresses {
            let witness = Arc::clone(&self.witness);
            let settled = self.runtime.spawn(async move { witness.settle(address).await });
            settled.await.expect("the origin accepts");
        }
        self.witness.snapshot()
    }

    /// All HTTP requests so far.
    pub async fn requests(&self) -> Vec<Request> {
        self.seen()
            .await
            .into_iter()
            .flat_map(|seen| seen.requests)
            .collect()
    }

    /// Waits until `is_so` holds of the connections.
    ///
    /// # Panics
    /// It does not soon; `what` says what was waited for.
    pub async fn wait(&self, what: &str, is_so: impl Fn(&[Seen]) -> bool) {
        self.witness.wait(what, is_so).await;
    }

    /// Asserts that nobody has connected.
    ///
    /// # Panics
    /// Somebody has.
    pub async fn was_never_reached(&self) {
        let seen = self.seen().await;
        assert!(
            seen.is_empty(),
            "the origin at {:?} was reached: {seen:#?}",
            self.addresses
        );
    }

    async fn start<S, F>(place: &Place, addresses: Vec<SocketAddr>, serve: S) -> Self
    where
        S: Fn(TcpStream, Pen) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let witness = Arc::new(Witness::default());
        for &address in &addresses {
            let serve = serve.clone();
            let witness = Arc::clone(&witness);
            place
                .run(async move {
                    let listener = witness::listen(address);
                    tokio::spawn(accept(listener, address, witness, serve));
                })
                .await;
        }
        let runtime = place.runtime();
        Self {
            addresses,
            witness,
            runtime,
        }
    }
}

async fn accept<S, F>(listener: TcpListener, address: SocketAddr, witness: Arc<Witness>, serve: S)
where
    S: Fn(TcpStream, Pen) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    while let Ok((stream, peer)) = listener.accept().await {
        let pen = witness.open(peer, address);
        if !pen.is_marker() {
            tokio::spawn(serve(stream, pen));
        }
    }
}
