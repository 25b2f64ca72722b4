//! From an allowed host to a connected upstream socket.
//!
//! The policy has been asked before: a denied name never gets here, so it causes no lookup. What is dialled is an address
//! that we resolved for the name ourselves (name pinning), so a forged server name or `Host` gains nothing. With a parent
//! proxy a name is handed to that instead, which looks it up and dials: there is no address to pin then.

mod candidates;
mod error;
mod parent;
mod socket;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::OnceLock,
    time::Duration,
};

use egress_common::outcome::Outcome;
use ipnet::IpNet;
use tokio::{net::TcpStream, time};

use self::candidates::Candidates;
pub use self::{
    error::DialError,
    parent::{CredentialsError, ParentProxy, PlaceError},
};
use super::{
    connection::Route,
    leg::LegSettings,
    resolve::{ResolveError, ResolveSettings, Resolver},
};
use crate::{
    access_log::{AddressRelation, Record},
    dns::private,
    kernel::VettedTable,
    netns::Netns,
    policy::{DomainName, Host},
    race::staggered,
};

/// RFC 8305, section 5: the recommended head start of one attempt over the next.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Which address of an allowed name is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DialMode {
    /// One that we resolved for the name: the workload's own if it is among them, else the first that answers.
    #[default]
    Pinned,
    /// As `Pinned`, but if the workload's own address is not among them the connection is refused.
    Strict,
    /// The one that the workload dialled, whatever the name's addresses are. Weaker: a workload that sends an allowed name
    /// to any address reaches that address. The name is still looked up, for the record alone.
    Original,
}

/// What a name may resolve to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateAnswers {
    /// Private addresses that are not declared internal are dropped from the answer (DNS rebinding).
    Refused,
    /// The policy names this name as one with private addresses.
    Allowed,
}

/// What a workload has said of the address that it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// It dialled this one.
    Dialled(SocketAddr),
    /// None: it named a host to the explicit proxy, which it dialled by IPv4 or IPv6.
    Named {
        /// IPv4.
        by_ipv4: bool,
    },
}

/// How upstream sockets come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialSettings {
    /// Which address is dialled.
    pub mode: DialMode,
    /// How names are looked up.
    pub resolve: ResolveSettings,
    /// How long a dial may take, lookup included.
    pub timeout: Duration,
    /// Networks whose addresses are proper answers for any name, though they are private.
    pub internal: Vec<IpNet>,
    /// The proxy that names are handed to, where there is no direct way out.
    pub parent: Option<ParentProxy>,
    /// Options of the upstream sockets.
    pub legs: LegSettings,
}

/// Looks names up with our own resolver and dials the answers. One per agent, shared by all workers.
#[derive(Debug)]
pub struct Dialer {
    settings: DialSettings,
    resolver: Resolver,
    /// Lets its sockets through the fences of network namespaces, once there are any.
    vetted: OnceLock<VettedTable>,
}

/// What is to be dialled for a workload.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The host that the policy has allowed.
    pub host: &'a Host,
    /// Its port.
    pub port: u16,
    /// What the workload has said of its address.
    pub sought: Sought,
    /// The policy's word on private ones.
    pub private: PrivateAnswers,
    /// What it is for.
    pub payload: Payload,
}

/// What an upstream connection is to carry: only a parent proxy has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Anything: a parent is asked for a tunnel, by CONNECT.
    Bytes,
    /// Requests of HTTP/1: a parent is sent them in absolute form, as one seldom allows CONNECT to port 80.
    Requests,
}

/// A connected upstream socket.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Who is at its other end.
    pub peer: Peer,
}

/// Who is at the other end of an upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The origin.
    Origin {
        /// Where it was dialled.
        address: SocketAddr,
        /// Whether the address that the workload dialled belongs to the name.
        relation: AddressRelation,
    },
    /// The parent proxy. Where the origin is, it alone knows.
    Parent {
        /// Where it was dialled.
        address: SocketAddr,
    },
}

impl Peer {
    /// The address that was dialled.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        match self {
            Self::Origin { address, .. } | Self::Parent { address } => *address,
        }
    }

    /// The origin's address, for the policies to judge; `None` behind a parent.
    #[must_use]
    pub const fn origin(&self) -> Option<SocketAddr> {
        match self {
            Self::Origin { address, .. } => Some(*address),
            Self::Parent { .. } => None,
        }
    }

    /// What the origin's address says of the one that the workload dialled; `None` behind a parent.
    #[must_use]
    pub const fn relation(&self) -> Option<AddressRelation> {
        match self {
            Self::Origin { relation, .. } => Some(*relation),
            Self::Parent { .. } => None,
        }
    }

    /// Whether it is the parent proxy.
    #[must_use]
    pub const fn is_parent(&self) -> bool {
        matches!(self, Self::Parent { .. })
    }

    /// Tells a record of it.
    pub const fn note(&self, record: &mut Record) {
        record.upstream = Some(self.address());
        record.by_parent = self.is_parent();
        record.relation = self.relation();
    }
}

impl Sought {
    /// Whose family comes first.
    fn hint(self) -> IpAddr {
        match self {
            Self::Dialled(address) => address.ip().to_canonical(),
            Self::Named { by_ipv4: true } => Ipv4Addr::UNSPECIFIED.into(),
            Self::Named { by_ipv4: false } => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl Default for DialSettings {
    fn default() -> Self {
        Self {
            mode: DialMode::default(),
            resolve: ResolveSettings::default(),
            timeout: Duration::from_secs(10),
            internal: Vec::new(),
            parent: None,
            legs: LegSettings::default(),
        }
    }
}

impl Dialer {
    /// A dialer; nothing is asked or dialled yet.
    #[must_use]
    pub fn new(settings: DialSettings) -> Self {
        let resolver = Resolver::new(settings.resolve.clone());
        Self {
            settings,
            resolver,
            vetted: OnceLock::new(),
        }
    }

    /// Lets upstream sockets through the fences of network namespaces from now on. The first call counts.
    pub fn pass_fences(&self, vetted: VettedTable) {
        drop(self.vetted.set(vetted));
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> &DialSettings {
        &self.settings
    }

    /// Dials what is wanted.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, wanted: Wanted<'_>, route: &Route) -> Result<Dialled, DialError> {
        self.dial_unless(wanted, route, |_| None).await
    }

    /// As [`Self::dial`], but an address for which `refused` has an outcome is not dialled, whatever name resolved to it:
    /// whoever owns a name chooses its answers, and some addresses are denied by themselves. Nobody is asked about the
    /// addresses that a parent proxy dials.
    ///
    /// # Errors
    /// See [`DialError`]; the outcome that `refused` gave if nothing else remained.
    pub async fn dial_unless(
        &self,
        wanted: Wanted<'_>,
        route: &Route,
        refused: impl Fn(IpAddr) -> Option<Outcome>,
    ) -> Result<Dialled, DialError> {
        let Wanted {
            host,
            port,
            sought,
            private,
            payload: _,
        } = wanted;
        let mut timed_out = DialError::new(Outcome::LookupFailed);
        let work = async {
            let candidates = match host {
                Host::Address(address) => Candidates::literal(*address, sought)?.without(refused)?,
                Host::Name(name) => {
                    let parent = self.settings.parent.as_ref();
                    if let Some(parent) = parent.filter(|parent| parent.serves(name)) {
                        // On the heap: what it takes is part of every connection's future otherwise, which with its
                        // buffers were 8 KiB more for each that only waits.
                        return Box::pin(self.ask_parent(parent, wanted, route, &mut timed_out)).await;
                    }
                    self.candidates(name, sought, private, refused).await?
                }
            };
            timed_out = silence(&candidates, port);
            self.race(candidates, port, route).await
        };
        let result = time::timeout(self.settings.timeout, work).await;
        result.unwrap_or(Err(timed_out))
    }

    /// Dials the very address that the workload dialled, without any lookup: for workloads whose verdicts are only
    /// recorded.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial_original(&self, original: SocketAddr, route: &Route) -> Result<Dialled, DialError> {
        let candidates = Candidates::one(original.ip().to_canonical(), AddressRelation::Literal);
        let timed_out = silence(&candidates, original.port());
        let work = self.race(candidates, original.port(), route);
        let result = time::timeout(self.settings.timeout, work).await;
        result.unwrap_or(Err(timed_out))
    }

    /// The address that a socket in `netns` would have as its source towards `destination`: what the workload's peers
    /// would see. By a route lookup; nothing is sent. `None` if there is no route.
    #[must_use]
    pub fn source_for(netns: &Netns, destination: IpAddr) -> Option<IpAddr> {
        socket::source_for(netns, destination).ok()
    }

    /// Dials the parent proxy, and for bytes has it open a tunnel to what is wanted. `timed_out` is kept to what is said if the
    /// time limit ends.
    async fn ask_parent(
        &self,
        parent: &ParentProxy,
        wanted: Wanted<'_>,
        route: &Route,
        timed_out: &mut DialError,
    ) -> Result<Dialled, DialError> {
        let sought = wanted.sought;
        let candidates = match parent.host() {
            Host::Address(address) => Candidates::one(*address, AddressRelation::Named),
            Host::Name(name) => {
                let answer = self.resolver.lookup(name, sought.hint()).await;
                let addresses = answer.map_err(|error| unresolved(error).of_parent())?.addresses;
                Candidates::in_order(addresses, sought)
            }
        };
        *timed_out = silence(&candidates, parent.port()).of_parent();
        let dialled = self.race(candidates, parent.port(), route).await;
        let Dialled { mut stream, peer } = dialled.map_err(DialError::of_parent)?;
        let address = peer.address();
        if wanted.payload == Payload::Bytes {
            let opened = parent.open_tunnel(&mut stream, wanted.host, wanted.port).await;
            opened.map_err(|error| DialError {
                address: Some(address),
                source: Some(error),
                ..DialError::new(Outcome::ParentFailed).of_parent()
            })?;
        }
        Ok(Dialled {
            stream,
            peer: Peer::Parent { address },
        })
    }

    /// What may be dialled for `name`.
    async fn candidates(
        &self,
        name: &DomainName,
        sought: Sought,
        private: PrivateAnswers,
        refused: impl Fn(IpAddr) -> Option<Outcome>,
    ) -> Result<Candidates, DialError> {
        let answer = self.resolver.lookup(name, sought.hint()).await;
        if let (DialMode::Original, Sought::Dialled(original)) = (self.settings.mode, sought) {
            let known = answer.map(|answer| answer.addresses).unwrap_or_default();
            let relation = Candidates::of_name(known, sought).relation;
            return Candidates::one(original.ip().to_canonical(), relation).without(refused);
        }
        let private_answer = |address| self.refused_as_private(sought, address, private);
        Candidates::of_name(answer.map_err(unresolved)?.addresses, sought)
            .without(private_answer)?
            .without(refused)?
            .pinned(sought, self.settings.mode == DialMode::Strict)
    }

    /// Whether an address would not be dialled for a name because it is private.
    #[must_use]
    pub fn refused_as_private(
        &self,
        sought: Sought,
        address: IpAddr,
        private: PrivateAnswers,
    ) -> Option<Outcome> {
        // There the workload's own choice is dialled, and no answer is used.
        let uses_answers = self.settings.mode != DialMode::Original || !matches!(sought, Sought::Dialled(_));
        let is_private = uses_answers && private::is_private(address) && !self.is_internal(address);
        (is_private && private == PrivateAnswers::Refused).then_some(Outcome::PrivateAnswer)
    }

    fn is_internal(&self, address: IpAddr) -> bool {
        self.settings
            .internal
            .iter()
            .any(|network| network.contains(&address))
    }

    /// RFC 8305: attempts in order, each with a head start; the first connection wins.
    async fn race(&self, candidates: Candidates, port: u16, route: &Route) -> Result<Dialled, DialError> {
        let relation = candidates.relation;
        let attempts = staggered(candidates.addresses, ATTEMPT_DELAY, async |address| {
            let address = SocketAddr::new(address, port);
            let connected = socket::connect(address, route, &self.settings.legs, self.vetted.get()).await;
            connected
                .map(|stream| Dialled {
                    stream,
                    peer: Peer::Origin { address, relation },
                })
                .map_err(|error| DialError::from_connect(error, address, relation))
        });
        attempts.await.map_err(most_telling)
    }
}

/// What is said if the time limit ends now.
fn silence(candidates: &Candidates, port: u16) -> DialError {
    DialError {
        address: candidates
            .addresses
            .first()
            .map(|address| SocketAddr::new(*address, port)),
        relation: Some(candidates.relation),
        ..DialError::new(Outcome::OriginTimeout)
    }
}

/// Of several failed attempts the one that says most: an answer before silence, silence before no way to ask.
fn most_telling(errors: Vec<DialError>) -> DialError {
    let telling = [Outcome::OriginRefused, Outcome::OriginTimeout];
    errors
        .into_iter()
        .min_by_key(|error| {
            telling
                .iter()
                .position(|outcome| *outcome == error.outcome)
                .unwrap_or(telling.len())
        })
        .unwrap_or_else(|| DialError::new(Outcome::NameNotFound))
}

fn unresolved(error: ResolveError) -> DialError {
    let outcome = match error {
        ResolveError::NameNotFound => Outcome::NameNotFound,
        ResolveError::LookupFailed(_) | ResolveError::Timeout => Outcome::LookupFailed,
    };
    DialError {
        source: Some(io::Error::other(error)),
        ..DialError::new(outcome)
    }
}

#[cfg(test)]
mod tests;
