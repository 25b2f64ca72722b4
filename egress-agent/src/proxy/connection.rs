//! An accepted connection and what is known of it before a byte is read.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use egress_common::outcome::Outcome;

use super::{
    dial::{DialError, Dialer, Dialled, Payload, Peer, PrivateAnswers, Sought, Wanted},
    explicit::ExplicitProxy,
    limits::Limits,
};
use crate::{
    access_log::{AccessLog, AddressRelation, Asked, Carrier, Ending, Protocol, Record},
    dns::{Forwarder, NameTable},
    identity::{Identities, Process, Workload},
    netns::Netns,
    policy::{self, Host, PolicyStore, PolicyView, Posture, RequestFacts, Verdict},
};

/// What every connection needs; one per agent.
#[derive(Debug)]
pub struct Services {
    /// The policies in force.
    pub policy: PolicyStore,
    /// Looks names up and dials.
    pub dialer: Dialer,
    /// What each workload was told by DNS.
    pub names: Arc<NameTable>,
    /// The ports on which the client speaks first, whatever it speaks; on others the server may.
    pub client_first: Vec<u16>,
    /// Where connections are ones to the explicit proxy.
    pub proxy: ExplicitProxy,
    /// Answers what workloads ask of name servers.
    pub dns: Forwarder,
    /// Takes the records.
    pub log: AccessLog,
    /// The bounds.
    pub limits: Limits,
}

/// The facts of one accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// What every connection shares.
    pub services: Arc<Services>,
    /// When it was accepted.
    pub accepted: Instant,
    /// The same on the wall clock.
    pub accepted_at: jiff::Timestamp,
    /// The workload's own address and port, as its peers would see it.
    pub client: SocketAddr,
    /// The address it dialled, or in a tunnel by CONNECT the one that was dialled for it: unspecified behind a parent proxy,
    /// which alone knows it.
    pub original: SocketAddr,
    /// How it says where it wants to go.
    pub via: Via,
    /// Who it is, as it was known when the connection was accepted.
    pub workload: Arc<Workload>,
    /// Where to look for what it is now, and under which cgroup.
    pub identity: Option<(Arc<Identities>, u64)>,
    /// The process that dialled.
    pub process: Process,
    /// The socket was made in another workload than the one that connected it: always refused.
    pub foreign: bool,
    /// Where upstream sockets are made.
    pub route: Route,
}

/// How a workload says where it wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// By dialling it: the connect was redirected.
    Connect,
    /// By asking the explicit proxy, for each request anew.
    Proxy,
    /// By CONNECT to this host: nobody else may be named in the tunnel.
    Tunnel(Host),
}

/// Where and how an upstream socket is made, so that it leaves as the workload's own would have.
#[derive(Debug, Clone)]
pub struct Route {
    /// The workload's network namespace.
    pub netns: Netns,
    /// The source address that the workload had bound, if it had.
    pub source: Option<IpAddr>,
    /// The device that the workload had bound (SO_BINDTODEVICE), if it had.
    pub device: Option<u32>,
    /// As which user, if not as the agent itself: where a service mesh has a sidecar, a connection of anybody else would be
    /// sent to that, whose own connection comes back to the agent.
    pub user: Option<u32>,
}

impl Connection {
    /// The policy view for the next verdict: taken anew for each request, so that a new policy set and new labels of the
    /// workload reach connections that are kept alive.
    #[must_use]
    pub fn view(&self) -> PolicyView {
        self.services.policy.load().view(&self.workload_now())
    }

    /// Who it is now: with the labels of now, and with the container's name, which is known later than the pod.
    fn workload_now(&self) -> Arc<Workload> {
        let now = self
            .identity
            .as_ref()
            .and_then(|(identities, cgroup)| identities.of(*cgroup));
        now.filter(|now| now.is_same_as(&self.workload))
            .unwrap_or_else(|| Arc::clone(&self.workload))
    }

    /// Whether nothing may pass now because it could not be logged.
    #[must_use]
    pub fn must_be_unlogged(&self) -> bool {
        self.services.limits.deny_unlogged && self.services.log.is_failing()
    }

    /// Waits until the policies in force refuse, and do not only record, what they have allowed before: `is_refused` is
    /// asked at once and after each change. For ever if that never comes.
    pub async fn revoked(&self, is_refused: impl Fn(&PolicyView) -> bool) {
        let mut changes = self.services.policy.changes();
        loop {
            let view = self.view();
            if view.posture() == Posture::Enforce && is_refused(&view) {
                return;
            }
            changes.next().await;
        }
    }

    /// What `view` says of `host` and `port`, and of a request to it.
    #[must_use]
    pub fn judge(
        &self,
        view: &PolicyView,
        host: &Host,
        port: u16,
        request: Option<RequestFacts<'_>>,
    ) -> Verdict {
        let address = match (&self.via, host) {
            (Via::Proxy, Host::Address(address)) => *address,
            (Via::Connect | Via::Proxy | Via::Tunnel(_), _) => self.original.ip(),
        };
        let target = policy::Target {
            host,
            port,
            address,
            request,
        };
        match self.via {
            // Nobody has dialled an address of the name yet: the one at hand is the proxy's own.
            Via::Proxy => view.judge_undialled(&target),
            // Nor has anybody here.
            Via::Tunnel(_) if address.is_unspecified() => view.judge_undialled(&target),
            Via::Connect | Via::Tunnel(_) => view.judge(&target),
        }
    }

    /// What the workload has said of the address that it wants.
    #[must_use]
    pub const fn sought(&self) -> Sought {
        match self.via {
            Via::Proxy => Sought::Named {
                by_ipv4: self.original.is_ipv4(),
            },
            Via::Connect | Via::Tunnel(_) => Sought::Dialled(self.original),
        }
    }

    /// The connection inside a tunnel to `host` and `port`, for which `peer` was dialled: as if the workload had dialled that
    /// itself, but for the name, which it has to keep to.
    #[must_use]
    pub fn within(&self, host: Host, port: u16, peer: &Peer) -> Self {
        let nowhere: IpAddr = match peer.address() {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let original = peer.origin().unwrap_or_else(|| SocketAddr::new(nowhere, port));
        Self {
            services: Arc::clone(&self.services),
            accepted: Instant::now(),
            accepted_at: jiff::Timestamp::now(),
            client: self.client,
            original,
            via: Via::Tunnel(host),
            identity: self.identity.clone(),
            workload: Arc::clone(&self.workload),
            process: self.process.clone(),
            foreign: self.foreign,
            route: self.route.clone(),
        }
    }

    /// Dials an allowed host for this connection, within what `view` allows it to resolve to.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(
        &self,
        host: &Host,
        port: u16,
        view: &PolicyView,
        payload: Payload,
    ) -> Result<Dialled, DialError> {
        let wanted = Wanted {
            host,
            port,
            sought: self.sought(),
            private: private_answers(host, view),
            payload,
        };
        let refused = |address| view.refused_answer(address, port).map(|verdict| verdict.outcome);
        let dialer = &self.services.dialer;
        dialer.dial_unless(wanted, &self.route, refused).await
    }

    /// What `view` has against an address that was dialled for an allowed `host`, by other policies perhaps: whether it
    /// would be dialled now.
    #[must_use]
    pub fn refused_dialled(&self, view: &PolicyView, host: &Host, dialled: SocketAddr) -> Option<Outcome> {
        let (address, port) = (dialled.ip(), dialled.port());
        if let Some(verdict) = view.refused_answer(address, port) {
            return Some(verdict.outcome);
        }
        match host {
            Host::Name(_) => {
                self.services
                    .dialer
                    .refused_as_private(self.sought(), address, private_answers(host, view))
            }
            Host::Address(_) => None,
        }
    }

    /// A record with what is known before anything was read; the caller fills in the rest.
    #[must_use]
    pub fn record(&self, verdict: Verdict) -> Record {
        Record {
            started: self.accepted_at,
            duration: self.accepted.elapsed(),
            client: self.client,
            original: self.original,
            workload: self.workload_now(),
            process: self.process.clone(),
            carrier: Carrier::TCP,
            protocol: Protocol::Unknown,
            asked: Asked::Nothing,
            tls: None,
            status: 0,
            bytes_to_client: 0,
            bytes_to_origin: 0,
            referer: None,
            user_agent: None,
            content_type: None,
            upstream: None,
            by_parent: false,
            relation: None::<AddressRelation>,
            verdict,
            enforced: true,
            ending: Ending::Refused,
            attempts: 1,
        }
    }

    /// How long the connection has been open.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }
}

/// Whether `host` may resolve to private addresses.
fn private_answers(host: &Host, view: &PolicyView) -> PrivateAnswers {
    match host {
        Host::Name(name) if view.private_answers_allowed(name) => PrivateAnswers::Allowed,
        Host::Name(_) | Host::Address(_) => PrivateAnswers::Refused,
    }
}
