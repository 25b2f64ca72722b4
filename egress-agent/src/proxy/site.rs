//! A network namespace that the agent serves, and the connections accepted in it.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use egress_common::{flow::Flow, listener::Listeners};

use super::{
    connection::{Connection, Route, Services},
    dial::Dialer,
    listener,
};
use crate::{
    identity::{Identities, Process},
    kernel::{FlowTable, ListenerTable},
    netns::Netns,
};

/// One served network namespace.
#[derive(Debug)]
pub struct Site {
    netns: Netns,
    /// What the kernel was told last.
    table: Mutex<Listeners>,
    published: Arc<Mutex<ListenerTable>>,
}

/// Why an accepted connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unexplained {
    /// No redirected connect belongs to it: somebody dialled the listener directly.
    NoFlow,
    /// Its cgroup has no identity: outside the enforced cgroup, or gone.
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
        published: Arc<Mutex<ListenerTable>>,
    ) -> std::io::Result<Self> {
        published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .publish(netns.cookie(), table)?;
        Ok(Self {
            netns,
            table: Mutex::new(table),
            published,
        })
    }

    /// Withdraws them: further connects of this namespace are held.
    pub fn withdraw(&self) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Explains an accepted connection: takes its flow and names its workload.
    ///
    /// # Errors
    /// There is no explanation; the connection must be closed.
    pub fn explain(
        &self,
        peer: SocketAddr,
        flows: &RefCell<FlowTable>,
        identities: &Identities,
        services: &Arc<Services>,
    ) -> Result<Connection, Unexplained> {
        let flow = match flows.borrow_mut().take(self.netns.cookie(), peer) {
            Ok(Some(flow)) => flow,
            Ok(None) => return Err(Unexplained::NoFlow),
            Err(error) => {
                tracing::error!(%error, "cannot read the flow table");
                return Err(Unexplained::NoFlow);
            }
        };
        let workload = identities.of(flow.cgroup).ok_or(Unexplained::UnknownWorkload)?;
        // Born before the programs were attached: nothing to compare with.
        let foreign = flow.birth_cgroup != 0
            && flow.birth_cgroup != flow.cgroup
            && identities
                .of(flow.birth_cgroup)
                .is_none_or(|birth| !birth.is_same_as(&workload));
        let original = flow.destination.socket_addr();
        let bound = (!peer.ip().is_loopback()).then(|| peer.ip());
        Ok(Connection {
            services: Arc::clone(services),
            accepted: Instant::now(),
            accepted_at: jiff::Timestamp::now(),
            client: SocketAddr::new(bound.unwrap_or_else(|| self.source_for(original)), peer.port()),
            original,
            workload,
            process: process(&flow),
            foreign,
            route: Route {
                netns: self.netns.clone(),
                source: bound,
                device: (flow.device != 0).then_some(flow.device),
            },
        })
    }

    /// The source address that the namespace's routes choose for a destination, which is also what getsockname(2) is to
    /// show. Without a route: what the kernel's table has.
    fn source_for(&self, original: SocketAddr) -> IpAddr {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = Dialer::source_for(&self.netns, original.ip()) else {
            return if original.is_ipv4() {
                table.source_v4.into()
            } else {
                table.source_v6.into()
            };
        };
        if let Some(changed) = listener::with_source(&table, source) {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            match published.publish(self.netns.cookie(), changed) {
                Ok(()) => *table = changed,
                Err(error) => tracing::warn!(%error, "getsockname will show an old address"),
            }
        }
        source
    }
}

fn process(flow: &Flow) -> Process {
    let end = flow
        .command
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(flow.command.len());
    let command = flow.command.get(..end).unwrap_or_default();
    Process {
        pid: flow.pid,
        uid: flow.uid,
        command: String::from_utf8_lossy(command).into_owned(),
    }
}
