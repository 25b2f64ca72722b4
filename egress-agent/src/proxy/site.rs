//! A network namespace that the agent serves, and the connections accepted in it.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use egress_common::{dns::Asker, listener::Listeners};

use super::{
    connection::{Connection, Route, Services, Via},
    dial::Dialer,
    listener,
};
use crate::{
    identity::{Identities, Process, Workload},
    kernel::{FlowTable, ListenerTable, QueryTable},
    netns::Netns,
};

/// One served network namespace.
#[derive(Debug)]
pub struct Site {
    netns: Netns,
    /// What the kernel was told last.
    table: Mutex<Listeners>,
    published: Arc<Mutex<ListenerTable>>,
    /// Changed by who has the lock of `published`: what was withdrawn must not be published by a connection that came before.
    is_published: AtomicBool,
    /// The name service's sockets by their places, for answers to what came by another way.
    places: Vec<(usize, UdpSocket)>,
}

/// Who asked which name server.
#[derive(Debug)]
pub struct Asked {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The process, for the log.
    pub process: Process,
    /// The name server.
    pub resolver: SocketAddr,
}

/// A connection that a redirected connect explains.
#[derive(Debug)]
pub struct Explained {
    /// The connection.
    pub connection: Connection,
    /// Whether its cgroup has an identity: one outside the enforced cgroup has none, nor has one that is gone, nor a pod that
    /// the API server has not told in time. Such a connection is to be refused.
    pub is_known: bool,
}

/// Why a connection or a query is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unexplained {
    /// No redirected connect belongs to it: somebody dialled the listener directly.
    NoFlow,
    /// Its cgroup has no identity, or its socket was made in another workload.
    UnknownWorkload,
}

impl Site {
    /// Publishes the listeners to the kernel: from now on connects of this namespace go to them.
    ///
    /// # Errors
    /// The kernel's table is full.
    pub fn publish(
        netns: Netns,
        table: Listeners,
        places: Vec<(usize, UdpSocket)>,
        published: Arc<Mutex<ListenerTable>>,
    ) -> io::Result<Self> {
        published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .publish(netns.cookie(), table)?;
        Ok(Self {
            netns,
            table: Mutex::new(table),
            published,
            is_published: AtomicBool::new(true),
            places,
        })
    }

    /// Publishes them again, where somebody else may have withdrawn them.
    ///
    /// # Errors
    /// The kernel's table is full.
    pub fn publish_again(&self) -> io::Result<()> {
        // In the order of `source_for`.
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.publish(self.netns.cookie(), *table)?;
        self.is_published.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Withdraws them: further connects of this namespace are held.
    pub fn withdraw(&self) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_published.store(false, Ordering::Relaxed);
        if let Err(error) = published.withdraw(self.netns.cookie()) {
            tracing::warn!(%error, "cannot withdraw a namespace's listeners");
        }
    }

    /// The namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What the kernel was told of its listeners.
    #[must_use]
    pub fn listeners(&self) -> Listeners {
        *self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Explains a connection from `peer` that was accepted at `listener`: takes its flow and names its workload. If it may
    /// wait, it does for a while for a pod that is not known yet.
    ///
    /// # Errors
    /// There is no explanation; the connection must be closed.
    pub async fn explain(
        &self,
        peer: SocketAddr,
        listener: SocketAddr,
        flows: &RefCell<FlowTable>,
        identities: &Arc<Identities>,
        services: &Arc<Services>,
        may_wait: bool,
    ) -> Result<Explained, Unexplained> {
        let taken = flows.borrow_mut().take(self.netns.cookie(), peer, listener);
        let flow = match taken {
            Ok(Some(flow)) => flow,
            Ok(None) => return Err(Unexplained::NoFlow),
            Err(error) => {
                tracing::error!(%error, "cannot read the flow table");
                return Err(Unexplained::NoFlow);
            }
        };
        let (accepted, accepted_at) = (Instant::now(), jiff::Timestamp::now());
        let found = if may_wait {
            identities.find(flow.cgroup).await
        } else {
            identities.of(flow.cgroup)
        };
        let is_known = found.is_some();
        let workload = found.unwrap_or_else(|| Arc::new(identities.stranger(flow.cgroup)));
        let foreign = is_foreign(flow.birth_cgroup, flow.cgroup, &workload, identities);
        let original = flow.destination.socket_addr();
        let via = if services.proxy.is_at(original) {
            Via::Proxy
        } else {
            Via::Connect
        };
        let bound = (!peer.ip().is_loopback()).then(|| peer.ip());
        let sidecar = workload.pod.as_ref().and_then(|pod| pod.sidecar);
        let connection = Connection {
            services: Arc::clone(services),
            accepted,
            accepted_at,
            client: SocketAddr::new(
                bound.unwrap_or_else(|| self.source_for(original, &workload)),
                peer.port(),
            ),
            original,
            identity: Some((Arc::clone(identities), flow.cgroup)),
            via,
            workload,
            process: process(flow.pid, flow.uid, &flow.command),
            foreign,
            route: Route {
                netns: self.netns.clone(),
                source: bound,
                device: (flow.device != 0).then_some(flow.device),
                user: sidecar,
            },
        };
        Ok(Explained { connection, is_known })
    }

    /// Who asked from `peer`, as the kernel noted it.
    ///
    /// # Errors
    /// There is no explanation; the query must be dropped.
    pub fn asker(&self, peer: SocketAddr, queries: &QueryTable) -> Result<Asker, Unexplained> {
        match queries.asker(self.netns.cookie(), peer) {
            Ok(Some(asker)) => Ok(asker),
            Ok(None) => Err(Unexplained::NoFlow),
            Err(error) => {
                tracing::error!(%error, "cannot read the table of queries");
                Err(Unexplained::NoFlow)
            }
        }
    }

    /// The name service's sockets by their places.
    #[must_use]
    pub fn places(&self) -> &[(usize, UdpSocket)] {
        &self.places
    }

    /// The same, to be served: the originals stay here.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn duplicates(&self) -> io::Result<Vec<(usize, UdpSocket)>> {
        listener::duplicate_places(&self.places)
    }

    /// Sends `reply` from the place `slot` of the name service.
    ///
    /// # Errors
    /// There is no such place, or its asker has gone.
    pub fn reply(&self, slot: usize, to: SocketAddr, reply: &[u8]) -> io::Result<()> {
        let place = self.places.iter().find(|(number, socket)| {
            let is_same_family = socket.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4());
            *number == slot && is_same_family
        });
        let (_, socket) = place.ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.send_to(reply, to).map(drop)
    }

    /// Who the kernel says has asked, and which name server, `slot` being the place where the query came in. Waits, for a
    /// while, for a pod that is not known yet.
    ///
    /// # Errors
    /// It is nobody that we know; the query must be dropped.
    pub async fn identify(asker: &Asker, slot: usize, identities: &Identities) -> Result<Asked, Unexplained> {
        let resolver = asker.resolver(slot).ok_or(Unexplained::NoFlow)?;
        let workload = identities.find(asker.cgroup).await;
        let workload = workload.ok_or(Unexplained::UnknownWorkload)?;
        if is_foreign(asker.birth_cgroup, asker.cgroup, &workload, identities) {
            return Err(Unexplained::UnknownWorkload);
        }
        Ok(Asked {
            workload,
            process: process(asker.pid, asker.uid, &asker.command),
            resolver: resolver.socket_addr(),
        })
    }

    /// The source address that the namespace's routes choose for a destination, which is also what getsockname(2) is to
    /// show. Without a route: the pod's address of that family, else what the kernel's table has.
    fn source_for(&self, original: SocketAddr, workload: &Workload) -> IpAddr {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = Dialer::source_for(&self.netns, original.ip()) else {
            let mut addresses = workload.pod.iter().flat_map(|pod| &pod.addresses);
            if let Some(address) = addresses.find(|address| address.is_ipv4() == original.is_ipv4()) {
                return *address;
            }
            return if original.is_ipv4() {
                table.source_v4.into()
            } else {
                table.source_v6.into()
            };
        };
        if let Some(changed) = listener::with_source(&table, source) {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_published.load(Ordering::Relaxed) {
                return source;
            }
            match published.publish(self.netns.cookie(), changed) {
                Ok(()) => *table = changed,
                Err(error) => tracing::warn!(%error, "getsockname will show an old address"),
            }
        }
        source
    }
}

/// Whether a socket was made in another workload than the one that uses it.
fn is_foreign(birth: u64, user: u64, workload: &Workload, identities: &Identities) -> bool {
    // 0: born before the programs were attached, so there is nothing to compare with.
    birth != 0
        && birth != user
        && identities
            .of(birth)
            .is_none_or(|birth| !birth.is_same_as(workload))
}

fn process(pid: u32, uid: u32, command: &[u8]) -> Process {
    let end = command
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(command.len());
    let command = command.get(..end).unwrap_or_default();
    Process {
        pid,
        uid,
        command: String::from_utf8_lossy(command).into_owned(),
    }
}
