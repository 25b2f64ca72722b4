//! The maps that the agent writes and reads, typed.

use std::{
    collections::HashSet,
    fmt, io,
    net::SocketAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, lpm_trie::Key};
use egress_common::{
    address::Endpoint,
    counter::{self, Counter},
    decide::TCP,
    dns::Asker,
    fence::Vetted,
    flow::{Flow, FlowKey},
    listener::Listeners,
    names::map,
    outcome::Outcome,
};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

/// Longer than a connection can wait for its accept: a SYN is retried for 127 s at most (tcp_syn_retries).
const STALE: Duration = Duration::from_secs(120);

/// Cgroups that can be left alone: the size of the kernel's table.
pub const MOST_EXEMPT: usize = 4096;

/// Addresses of the explicit proxy that there can be: the size of the kernel's table.
pub const MOST_PROXIES: usize = 64;

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error("map {name}: {error}")]
pub struct TableError {
    name: &'static str,
    #[source]
    error: Box<MapError>,
}

/// What the programs are told besides policies: exempt cgroups, internal prefixes, the explicit proxy's addresses.
#[derive(Debug)]
pub struct Settings {
    exempt: HashMap<MapData, u64, u32>,
    internal: LpmTrie<MapData, [u8; 16], u32>,
    proxies: HashMap<MapData, Endpoint, u32>,
    enforced: HashMap<MapData, u64, u32>,
}

/// Listeners by network namespace.
#[derive(Debug)]
pub struct ListenerTable {
    map: HashMap<MapData, u64, Listeners>,
}

/// Flows waiting for their accept. Each worker has a handle of its own.
#[derive(Debug)]
pub struct FlowTable {
    map: HashMap<MapData, FlowKey, Flow>,
}

/// Who asked for the queries that reach the agent. Each worker has a handle of its own.
#[derive(Debug)]
pub struct QueryTable {
    map: HashMap<MapData, FlowKey, Asker>,
}

/// The agent's own sockets in network namespaces that may be fenced: where they may go.
#[derive(Debug)]
pub struct VettedTable {
    map: Mutex<SkStorage<MapData, Vetted>>,
}

/// The kernel's counters, summed over CPUs.
pub struct Counts {
    map: PerCpuArray<MapData, u64>,
}

impl Settings {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            exempt: hash(pins, map::EXEMPT)?,
            internal: open(pins, map::INTERNAL)
                .map(Map::LpmTrie)
                .and_then(|opened| LpmTrie::try_from(opened).map_err(at(map::INTERNAL)))?,
            proxies: hash(pins, map::PROXIES)?,
            enforced: hash(pins, map::ENFORCED)?,
        })
    }

    /// Leaves exactly these cgroups alone.
    ///
    /// # Errors
    /// The table is full, or cannot be read.
    pub fn exempt(&mut self, cgroups: &[u64]) -> Result<(), TableError> {
        for cgroup in cgroups {
            self.exempt.insert(cgroup, 1, 0).map_err(at(map::EXEMPT))?;
        }
        let present: Vec<u64> = self
            .exempt
            .keys()
            .collect::<Result<_, _>>()
            .map_err(at(map::EXEMPT))?;
        for cgroup in present.iter().filter(|cgroup| !cgroups.contains(cgroup)) {
            self.exempt.remove(cgroup).map_err(at(map::EXEMPT))?;
        }
        Ok(())
    }

    /// Says which cgroup is enforced, for the announcement of new programs.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enforce(&mut self, cgroup: u64) -> Result<(), TableError> {
        self.enforced.insert(cgroup, 1, 0).map_err(at(map::ENFORCED))
    }

    /// Leaves destinations in exactly these prefixes alone.
    ///
    /// # Errors
    /// The table is full, or cannot be read.
    pub fn internal(&mut self, prefixes: &[IpNet]) -> Result<(), TableError> {
        let wanted: HashSet<(u32, [u8; 16])> = prefixes.iter().map(prefix_key).collect();
        for (length, octets) in &wanted {
            self.internal
                .insert(&Key::new(*length, *octets), 1, 0)
                .map_err(at(map::INTERNAL))?;
        }
        let present: Vec<Key<[u8; 16]>> = self
            .internal
            .keys()
            .collect::<Result<_, _>>()
            .map_err(at(map::INTERNAL))?;
        for key in present {
            if !wanted.contains(&(key.prefix_len(), key.data())) {
                self.internal.remove(&key).map_err(at(map::INTERNAL))?;
            }
        }
        Ok(())
    }

    /// Takes exactly these addresses for the explicit proxy's. An unspecified one stands for all of its family.
    ///
    /// # Errors
    /// The table is full, or cannot be read.
    pub fn proxies(&mut self, addresses: &[SocketAddr]) -> Result<(), TableError> {
        let wanted: Vec<Endpoint> = addresses.iter().copied().map(Endpoint::from).collect();
        for address in &wanted {
            self.proxies.insert(address, 1, 0).map_err(at(map::PROXIES))?;
        }
        let present: Vec<Endpoint> = self
            .proxies
            .keys()
            .collect::<Result<_, _>>()
            .map_err(at(map::PROXIES))?;
        for address in present.iter().filter(|address| !wanted.contains(address)) {
            self.proxies.remove(address).map_err(at(map::PROXIES))?;
        }
        Ok(())
    }
}

impl ListenerTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            map: hash(pins, map::LISTENERS)?,
        })
    }

    /// Publishes the listeners of a namespace: from now on its held connects go through.
    ///
    /// # Errors
    /// The table is full.
    pub fn publish(&mut self, netns: u64, listeners: Listeners) -> Result<(), TableError> {
        self.map.insert(netns, listeners, 0).map_err(at(map::LISTENERS))
    }

    /// Every namespace's entry.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn entries(&self) -> Result<Vec<(u64, Listeners)>, TableError> {
        self.map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(at(map::LISTENERS))
    }

    /// Withdraws them: further connects are held.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn withdraw(&mut self, netns: u64) -> Result<(), TableError> {
        match self.map.remove(&netns) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(at(map::LISTENERS)(error)),
        }
    }
}

impl FlowTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            map: hash(pins, map::FLOWS)?,
        })
    }

    /// Takes the flow of a connection from `peer` that was accepted at `listener` out of the table: a flow explains one
    /// connection.
    ///
    /// # Errors
    /// The kernel refuses; that there is no flow is `Ok(None)`.
    pub fn take(
        &mut self,
        netns: u64,
        peer: SocketAddr,
        listener: SocketAddr,
    ) -> Result<Option<Flow>, TableError> {
        let key = FlowKey::leg(netns, peer.into(), &listener.into());
        let flow = match self.map.get(&key, 0) {
            Ok(flow) => flow,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(at(map::FLOWS)(error)),
        };
        match self.map.remove(&key) {
            Ok(()) => Ok(Some(flow)),
            // Withdrawn between the two calls: its connect failed after all.
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(at(map::FLOWS)(error)),
        }
    }

    /// How many there are. A system call for each.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.keys().count()
    }

    /// Removes flows that nobody took for two minutes: connections that were established while no agent accepted them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep_stale(&mut self) -> Result<usize, TableError> {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        self.remove_if(|flow| now.saturating_sub(Duration::from_nanos(flow.time)) > STALE)
    }

    /// Removes flows whose connections died with an earlier agent's listeners. Those whose SYN was held stay: it is sent
    /// again, and the connection may still come about.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep_dead(&mut self) -> Result<usize, TableError> {
        self.remove_if(|flow| flow.released != 0)
    }

    fn remove_if(&mut self, condition: impl Fn(&Flow) -> bool) -> Result<usize, TableError> {
        let stale: Vec<FlowKey> = self
            .map
            .iter()
            // An entry that vanishes while it is read ends the walk early; the next sweep goes on.
            .filter_map(Result::ok)
            .filter(|(_, flow)| condition(flow))
            .map(|(key, _)| key)
            .collect();
        for key in &stale {
            match self.map.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(at(map::FLOWS)(error)),
            }
        }
        Ok(stale.len())
    }
}

impl QueryTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        let map = Map::LruHashMap(open(pins, map::QUERIES)?);
        Ok(Self {
            map: HashMap::try_from(map).map_err(at(map::QUERIES))?,
        })
    }

    /// Who asked from `peer`. The entry stays: a socket asks more than once.
    ///
    /// # Errors
    /// The kernel refuses; that there is none is `Ok(None)`.
    pub fn asker(&self, netns: u64, peer: SocketAddr) -> Result<Option<Asker>, TableError> {
        match self.map.get(&FlowKey::socket(netns, peer.into()), 0) {
            Ok(asker) => Ok(Some(asker)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(at(map::QUERIES)(error)),
        }
    }
}

impl VettedTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        let map = Map::SkStorage(open(pins, map::VETTED)?);
        Ok(Self {
            map: Mutex::new(SkStorage::try_from(map).map_err(at(map::VETTED))?),
        })
    }

    /// Lets a TCP socket out, to `destination` alone. Costs a microsecond.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn let_out(&self, socket: &impl AsRawFd, destination: SocketAddr) -> Result<(), TableError> {
        let vetted = Vetted {
            destination: destination.into(),
            protocol: TCP,
        };
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(socket, vetted, 0).map_err(at(map::VETTED))
    }
}

impl Counts {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        let map = open(pins, map::COUNTS)
            .map(Map::PerCpuArray)
            .and_then(|opened| PerCpuArray::try_from(opened).map_err(at(map::COUNTS)))?;
        Ok(Self { map })
    }

    /// How often the kernel came to `outcome`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn outcome(&self, outcome: Outcome) -> Result<u64, TableError> {
        self.sum(counter::outcome_index(outcome))
    }

    /// The value of a loss counter.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn loss(&self, counter: Counter) -> Result<u64, TableError> {
        self.sum(counter.index())
    }

    fn sum(&self, index: u32) -> Result<u64, TableError> {
        self.map
            .get(&index, 0)
            .map(|values| values.iter().sum())
            .map_err(at(map::COUNTS))
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

/// Length and octets of a prefix in 16-byte form.
pub(super) fn prefix_key(prefix: &IpNet) -> (u32, [u8; 16]) {
    match prefix {
        IpNet::V4(net) => (
            u32::from(net.prefix_len()) + 96,
            net.network().to_ipv6_mapped().octets(),
        ),
        IpNet::V6(net) => (u32::from(net.prefix_len()), net.network().octets()),
    }
}

pub(super) fn open(pins: &Path, name: &'static str) -> Result<MapData, TableError> {
    MapData::from_pin(pins.join(name)).map_err(at(name))
}

pub(super) fn hash<K: aya::Pod, V: aya::Pod>(
    pins: &Path,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, TableError> {
    HashMap::try_from(Map::HashMap(open(pins, name)?)).map_err(at(name))
}

pub(super) fn at(name: &'static str) -> impl Fn(MapError) -> TableError {
    move |error| TableError {
        name,
        error: Box::new(error),
    }
}

impl From<TableError> for io::Error {
    fn from(error: TableError) -> Self {
        Self::other(error)
    }
}
