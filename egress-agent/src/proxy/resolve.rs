//! Our own name lookup: which addresses belong to a name.
//!
//! Names on the wire are absolute: search domains and `ndots` are never applied. The lookup happens in the agent's own
//! network namespace with the agent's own resolvers; nothing that a workload can write to (its resolv.conf, its hosts
//! file) takes part.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::Query, rr::Name},
};
use tokio::time;

pub use crate::dns::NameServers;
use crate::{
    dns::files::{self, Watched},
    policy::DomainName,
    race::staggered,
};

/// RFC 8305, section 3: how long the second address family may lag behind the first positive answer.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// How names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveSettings {
    /// Who is asked.
    pub servers: NameServers,
    /// The hosts file that comes before any server, also before explicitly given ones: hosts(5) format, read again when
    /// it changes. `None` switches it off.
    pub hosts: Option<PathBuf>,
    /// How long one lookup may take, over all servers and aliases.
    pub timeout: Duration,
    /// A server that has not answered for so long is overtaken by the next one in the list.
    pub patience: Duration,
    /// Answers kept per server; the least used ones make room.
    pub cache_entries: u64,
    /// Bounds on how long an answer is kept, whatever its TTL says.
    pub positive_ttl: RangeInclusive<Duration>,
    /// The same for "no such name" and "no such record" (RFC 2308).
    pub negative_ttl: RangeInclusive<Duration>,
}

/// Looks names up.
#[derive(Debug)]
pub struct Resolver {
    settings: ResolveSettings,
    servers: Servers,
    hosts: Option<Watched<Hosts>>,
}

/// The addresses of a name. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Both families, in the order in which the servers gave them.
    pub addresses: Vec<IpAddr>,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// NXDOMAIN, or no address of either family.
    #[error("the name does not exist or has no address")]
    NameNotFound,
    /// Every server failed.
    #[error("no name server gave an answer: {0}")]
    LookupFailed(String),
    /// No server answered in time.
    #[error("no name server answered within the time limit")]
    Timeout,
}

#[derive(Debug)]
enum Servers {
    File(Watched<Vec<Server>>),
    List(Arc<Vec<Server>>),
}

/// One name server with its cache. One resolver each, rather than one for all: the library either asks several at once
/// and lets the fastest speak, which is wrong where an internal server is listed before a public one, or spends the whole
/// time limit on the first of them.
type Server = TokioResolver;

/// What one server says of one family.
enum Found {
    Addresses(Vec<IpAddr>),
    /// The name exists without this family.
    NoData,
    /// The name does not exist: true for both families (RFC 8020).
    NoName,
}

impl Default for ResolveSettings {
    fn default() -> Self {
        Self {
            servers: NameServers::File(PathBuf::from("/etc/resolv.conf")),
            hosts: Some(PathBuf::from("/etc/hosts")),
            timeout: Duration::from_secs(5),
            patience: Duration::from_secs(1),
            cache_entries: 8192,
            // The floor keeps a name with TTL 0 from costing a query for each of a thousand connections a second.
            positive_ttl: Duration::from_secs(1)..=Duration::from_secs(86_400),
            negative_ttl: Duration::from_secs(1)..=Duration::from_secs(60),
        }
    }
}

impl Resolver {
    /// Makes a resolver; nothing is asked yet. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(settings: ResolveSettings) -> Self {
        let servers = match &settings.servers {
            NameServers::List(list) => Servers::List(Arc::new(
                list.iter()
                    .filter_map(|server| make(*server, &settings))
                    .collect(),
            )),
            NameServers::File(path) => {
                let settings = settings.clone();
                Servers::File(Watched::new(path.clone(), move |text| {
                    let servers = files::name_servers(text);
                    servers
                        .into_iter()
                        .filter_map(|server| make(server, &settings))
                        .collect()
                }))
            }
        };
        let hosts = settings
            .hosts
            .clone()
            .map(|path| Watched::new(path, files::hosts));
        Self {
            settings,
            servers,
            hosts,
        }
    }

    /// The addresses of `name`, from the hosts file, the cache or the servers. A and AAAA are asked for at the same time.
    /// `dialled` is the address that the workload dialled: its family is waited for as long as it takes, the other one
    /// only for RFC 8305's resolution delay, and not at all once `dialled` itself is among the answers.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub async fn lookup(&self, name: &DomainName, dialled: IpAddr) -> Result<Answer, ResolveError> {
        // A host name that is no DNS name has no address.
        let mut query = Name::from_ascii(name.as_str()).map_err(|_impossible| ResolveError::NameNotFound)?;
        query.set_fqdn(true);
        if let Some(addresses) = self.in_hosts(&query) {
            return Ok(Answer { addresses });
        }
        let servers = match &self.servers {
            Servers::File(file) => file.get(),
            Servers::List(list) => Arc::clone(list),
        };
        self.both_families(&servers, &query, dialled).await
    }

    /// As with nsswitch's `files dns`, a name that stands in the hosts file with one family is not looked up for the
    /// other.
    fn in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let hosts = self.hosts.as_ref()?.get();
        let addresses: Vec<IpAddr> = [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|lookup| addresses_of(&lookup))
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    async fn both_families(
        &self,
        servers: &[Server],
        name: &Name,
        dialled: IpAddr,
    ) -> Result<Answer, ResolveError> {
        let (own, other) = match dialled.to_canonical() {
            IpAddr::V4(_) => (RecordType::A, RecordType::AAAA),
            IpAddr::V6(_) => (RecordType::AAAA, RecordType::A),
        };
        let own = self.one_family(servers, name, own);
        let other = self.one_family(servers, name, other);
        tokio::pin!(own, other);
        let mut early = None;
        let own = loop {
            tokio::select! {
                biased;
                found = &mut own => break found,
                found = &mut other, if early.is_none() => {
                    // Only a name that does not exist at all is settled by the other family alone.
                    if matches!(found, Ok(Found::NoName)) {
                        return Err(ResolveError::NameNotFound);
                    }
                    early = Some(found);
                }
            }
        };
        let mut addresses = match own {
            Ok(Found::Addresses(addresses)) => addresses,
            Ok(Found::NoName) => return Err(ResolveError::NameNotFound),
            Ok(Found::NoData) | Err(_) => {
                let other = match early {
                    Some(found) => found,
                    None => other.await,
                };
                return only_family(own, other);
            }
        };
        if addresses.contains(&dialled.to_canonical()) {
            return Ok(Answer { addresses });
        }
        let late = match early {
            Some(found) => Some(found),
            None => time::timeout(RESOLUTION_DELAY, other).await.ok(),
        };
        if let Some(Ok(Found::Addresses(more))) = late {
            addresses.extend(more);
        }
        Ok(Answer { addresses })
    }

    /// Asks the servers in their order; one that fails or is slow is overtaken by the next. The time limit is each
    /// family's own, so that silence about one does not spoil the answer about the other.
    async fn one_family(
        &self,
        servers: &[Server],
        name: &Name,
        kind: RecordType,
    ) -> Result<Found, ResolveError> {
        let asking = staggered(servers, self.settings.patience, |server| {
            ask(server, name.clone(), kind)
        });
        let Ok(found) = time::timeout(self.settings.timeout, asking).await else {
            return Err(ResolveError::Timeout);
        };
        found.map_err(|errors| match errors.into_iter().next_back() {
            Some(NetError::Timeout) => ResolveError::Timeout,
            Some(error) => ResolveError::LookupFailed(error.to_string()),
            None => ResolveError::LookupFailed("no name server is configured".to_owned()),
        })
    }
}

async fn ask(server: &Server, name: Name, kind: RecordType) -> Result<Found, NetError> {
    match server.lookup(name, kind).await {
        Ok(lookup) => {
            let addresses: Vec<IpAddr> = addresses_of(&lookup).collect();
            Ok(if addresses.is_empty() {
                Found::NoData
            } else {
                Found::Addresses(addresses)
            })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let no_name = none.response_code == ResponseCode::NXDomain;
            Ok(if no_name { Found::NoName } else { Found::NoData })
        }
        Err(error) => Err(error),
    }
}

/// The answer when the dialled address's own family has none.
fn only_family(
    own: Result<Found, ResolveError>,
    other: Result<Found, ResolveError>,
) -> Result<Answer, ResolveError> {
    match (own, other) {
        (_, Ok(Found::Addresses(addresses))) => Ok(Answer { addresses }),
        (_, Ok(Found::NoName)) | (Ok(_), Ok(Found::NoData)) => Err(ResolveError::NameNotFound),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn addresses_of(lookup: &hickory_resolver::lookup::Lookup) -> impl Iterator<Item = IpAddr> + use<> {
    let addresses: Vec<IpAddr> = lookup
        .answers()
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect();
    addresses.into_iter()
}

fn make(server: SocketAddr, settings: &ResolveSettings) -> Option<Server> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server_config = NameServerConfig::new(server.ip(), true, connections.to_vec());
    let config = ResolverConfig::from_name_servers(vec![server_config]);
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = settings.timeout;
    // Lost datagrams are sent again within the time limit; an attempt more after it would only be cut off.
    options.attempts = 0;
    options.cache_size = settings.cache_entries;
    options.positive_min_ttl = Some(*settings.positive_ttl.start());
    options.positive_max_ttl = Some(*settings.positive_ttl.end());
    options.negative_min_ttl = Some(*settings.negative_ttl.start());
    options.negative_max_ttl = Some(*settings.negative_ttl.end());
    options.max_active_requests = 1024;
    // Only the addresses are wanted; with the aliases kept, the library asks once more for each alias that came with its
    // target.
    options.preserve_intermediates = false;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .inspect_err(|error| tracing::error!(%server, %error, "cannot use this name server"))
        .ok()
}

#[cfg(test)]
mod tests;
