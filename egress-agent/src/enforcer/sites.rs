//! Which network namespaces are served: opened when somebody's connect is held there, closed when nobody is left.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use egress_common::{dns::HeldQuery, event::ListenerWanted};
use tokio::sync::watch;

use super::{
    census::{Censor, Census, namespace_inode, namespace_of, processes},
    failures::Failures,
    handover::HandedSite,
};
use crate::{
    identity::{Identities, Place, Tally},
    kernel::ListenerTable,
    netns::Netns,
    proxy::{
        Site, Stop, Workers,
        leg::LegSettings,
        listener::{self, Bound},
    },
    telemetry::Throttle,
};

/// The time between the judgement of a connect and its SYN, generously.
const UNDER_WAY: Duration = Duration::from_millis(20);
/// How long a worker may take to serve what waits in a namespace's sockets.
const PATIENCE: Duration = Duration::from_secs(2);

/// Network namespaces that are opened for one workload. Each costs some 25 descriptors, and everybody can make more of them
/// in a user namespace of his own. Enough for a whole node as a workload (kind): a kubelet takes 110 pods.
const MOST_OF_WORKLOAD: u32 = 256;

/// The namespaces that have listeners.
#[derive(Debug)]
pub(super) struct Sites {
    table: Arc<Mutex<ListenerTable>>,
    legs: LegSettings,
    /// Of the enforced cgroup: a namespace in which none of its members is left is abandoned.
    censor: Censor,
    open: HashMap<u64, OpenSite>,
    /// How many namespaces each workload has open.
    tally: Arc<Tally>,
    failures: Failures,
    not_found: Throttle,
    not_opened: Throttle,
}

/// Why a namespace is not open.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("no process leads to it")]
    NotFound,
    #[error("its workload has {MOST_OF_WORKLOAD} network namespaces already")]
    TooMany,
    #[error(transparent)]
    Listen(#[from] io::Error),
}

#[derive(Debug)]
struct OpenSite {
    site: Arc<Site>,
    /// For a successor, and to go on with if that fails. The workers serve duplicates of them.
    listeners: Vec<TcpListener>,
    /// Inode of the namespace in nsfs, as /proc/PID/ns/net shows it.
    inode: u64,
    /// Of whom it was opened for. None for the agent's own, which is everybody's, and for those that an earlier agent had
    /// opened: they count for nobody.
    place: Option<Place>,
    /// The agent's own namespace stays open as long as the agent lives.
    keep: bool,
    /// Seen without a member at the last sweep. Two sweeps in a row close it: a runtime may be between two processes.
    unused: bool,
    stop: watch::Sender<Stop>,
}

impl Sites {
    /// No namespaces yet.
    #[must_use]
    pub(super) fn new(table: Arc<Mutex<ListenerTable>>, legs: LegSettings, cgroup: PathBuf) -> Self {
        Self {
            table,
            legs,
            censor: Censor::new(cgroup),
            open: HashMap::new(),
            tally: Tally::new(MOST_OF_WORKLOAD),
            failures: Failures::default(),
            not_found: Throttle::default(),
            not_opened: Throttle::default(),
        }
    }

    /// Opens the agent's own namespace, which stays.
    ///
    /// # Errors
    /// No listener can be bound.
    pub(super) fn open(&mut self, netns: Netns, workers: &Workers) -> io::Result<()> {
        if self.open.contains_key(&netns.cookie()) {
            return Ok(());
        }
        self.open_with(netns, workers, None)
    }

    /// Opens the namespaces that an earlier agent served, at the ports that the kernel's table has for them: connects
    /// that were held or are on their way go there. A namespace in which no process of the enforced cgroup is found is
    /// forgotten; its next connect is held and asks for a listener.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub(super) fn reopen(&mut self, home: &Netns, workers: &Workers) -> io::Result<()> {
        let entries = self.lock_table().entries()?;
        if entries.is_empty() {
            return Ok(());
        }
        let mut found: HashMap<u64, Netns> = self
            .census()?
            .open_namespaces()
            .map(|netns| (netns.cookie(), netns))
            .collect();
        found.insert(home.cookie(), home.clone());
        for (cookie, listeners) in entries {
            let reopened = found
                .remove(&cookie)
                .map(|netns| self.open_with(netns, workers, listeners.v4.first().copied()));
            match reopened {
                Some(Ok(())) => continue,
                Some(Err(error)) => {
                    tracing::error!(%error, cookie, "cannot listen again in a network namespace: its connects are held");
                }
                None => tracing::debug!(cookie, "nobody is left in a network namespace"),
            }
            self.lock_table().withdraw(cookie)?;
        }
        Ok(())
    }

    /// Opens the namespaces for which SYNs are held.
    pub(super) fn open_wanted(
        &mut self,
        wanted: &[ListenerWanted],
        workers: &Workers,
        identities: &Identities,
    ) {
        for wanted in each_once(wanted) {
            if self.open.contains_key(&wanted.netns) {
                continue;
            }
            if wanted.netns == 0 {
                self.open_announced(wanted, workers, identities);
                continue;
            }
            let now = Instant::now();
            if self.failures.remember(wanted.cgroup, wanted.netns, now) {
                continue;
            }
            let opened = find(wanted, identities)
                .ok_or(OpenError::NotFound)
                .and_then(|netns| self.open_for(netns, wanted, workers, identities));
            if let Err(error) = opened {
                self.failures.note(wanted.cgroup, wanted.netns, now);
                self.tell(wanted, &error, now);
                if error.is_exhaustion() {
                    // For the SYN that is sent again in a second. Pods that come and go by the hundred in ten seconds leave
                    // some 25 descriptors each until the next sweep.
                    match self.census() {
                        Ok(census) => self.close_unused(&census, true),
                        Err(error) => {
                            tracing::warn!(%error, "cannot tell which network namespaces are in use")
                        }
                    }
                }
            }
        }
    }

    /// Opens a namespace for whom has asked, if its workload may have one more.
    fn open_for(
        &mut self,
        netns: Netns,
        wanted: &ListenerWanted,
        workers: &Workers,
        identities: &Identities,
    ) -> Result<(), OpenError> {
        let place = if netns.is_home() {
            None
        } else {
            let workload = identities.of_or_stranger(wanted.cgroup);
            Some(self.tally.enter(&workload).ok_or(OpenError::TooMany)?)
        };
        let cookie = netns.cookie();
        self.open_with(netns, workers, None)?;
        if let Some(open) = self.open.get_mut(&cookie) {
            open.place = place;
        }
        Ok(())
    }

    /// A connect that stays held is sent again in a second and asks again, as long as its process lives.
    fn tell(&mut self, wanted: &ListenerWanted, error: &OpenError, now: Instant) {
        let pid = wanted.pid;
        match error {
            OpenError::NotFound => {
                if let Some(unsaid) = self.not_found.pass(now) {
                    tracing::warn!(
                        pid,
                        unsaid,
                        "no process leads to a network namespace that wants a listener"
                    );
                }
            }
            OpenError::TooMany | OpenError::Listen(_) => {
                if let Some(unsaid) = self.not_opened.pass(now) {
                    tracing::error!(%error, pid, unsaid, "cannot listen in a network namespace: its connects stay held");
                }
            }
        }
    }

    /// Opens the namespace of a program that has just begun, if it is a new one. If it cannot be, its first connect will
    /// be held.
    fn open_announced(&mut self, wanted: &ListenerWanted, workers: &Workers, identities: &Identities) {
        // Before the program says its first word, and while its cgroup is there for sure: it may be gone when the agent
        // accepts its connection.
        drop(identities.of(wanted.cgroup));
        let members = members(wanted.cgroup, identities);
        let own = wanted.pid.to_string();
        // A pid of the root namespace is another process's, or nobody's, where the agent has one of its own (kind).
        let Some(pid) = members
            .iter()
            .find(|member| **member == own)
            .or_else(|| members.first())
        else {
            return;
        };
        let Ok(inode) = namespace_inode(pid) else {
            return;
        };
        let now = Instant::now();
        // By its inode, for want of a cookie: no cookie is as large.
        if self.open.values().any(|open| open.inode == inode)
            || self.failures.remember(wanted.cgroup, inode, now)
        {
            return;
        }
        let opened = Netns::open(&namespace_of(pid))
            .map_err(OpenError::Listen)
            .and_then(|netns| {
                if self.open.contains_key(&netns.cookie()) {
                    return Ok(());
                }
                self.open_for(netns, wanted, workers, identities)
            });
        if let Err(error) = opened {
            self.failures.note(wanted.cgroup, inode, now);
            tracing::debug!(%error, pid = wanted.pid, "a program's network namespace cannot be opened yet");
        }
    }

    /// Answers queries that were asked in namespaces without a name service, once they have one.
    pub(super) fn answer_held(&mut self, held: Vec<HeldQuery>, workers: &Workers, identities: &Identities) {
        for query in held {
            let wanted = ListenerWanted {
                netns: query.asker.netns,
                cgroup: query.asker.cgroup,
                pid: query.asker.pid,
                reserved: 0,
            };
            self.open_wanted(&[wanted], workers, identities);
            if let Some(open) = self.open.get(&query.asker.netns) {
                workers.answer(query, &open.site, open.stop.subscribe());
            }
        }
    }

    /// The source address that the namespace's route to the world would choose, as far as it is known.
    pub(super) fn source_of(&self, netns: u64, is_v4: bool) -> Option<IpAddr> {
        let table = self.open.get(&netns)?.site.listeners();
        let source = if is_v4 {
            IpAddr::from(table.source_v4)
        } else {
            IpAddr::from(table.source_v6)
        };
        (!source.is_unspecified()).then_some(source)
    }

    /// How many are open.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Where it listens in the agent's own namespace.
    #[must_use]
    pub(super) fn at_home(&self) -> Vec<SocketAddr> {
        let home = self.open.values().filter(|open| open.keep);
        home.flat_map(|open| &open.listeners)
            .filter_map(|listener| listener.local_addr().ok())
            // The same workers serve the others.
            .filter(SocketAddr::is_ipv4)
            .collect()
    }

    /// Stops accepting for good, as [`Self::close_all`], and goes on knowing the namespaces.
    pub(super) fn stop_accepting(&mut self) {
        for open in self.open.values_mut() {
            open.stop.send_replace(Stop::Now);
            open.listeners.clear();
        }
    }

    /// Closes all; what was accepted goes on. The kernel's table keeps its entries, so that new connects are sent to
    /// closed ports and refused at once; without an entry they would be held.
    pub(super) fn close_all(&mut self) {
        for (_, open) in self.open.drain() {
            open.stop.send_replace(Stop::Now);
        }
    }

    /// Closes all, for a successor that is not there yet: new connects are held, and what has connected already is served.
    pub(super) async fn hold_all(&mut self) {
        for open in self.open.values() {
            open.site.withdraw();
        }
        // A connect that was judged before has yet to send its SYN.
        tokio::time::sleep(UNDER_WAY).await;
        for (_, open) in self.open.drain() {
            open.stop.send_replace(Stop::WhenEmpty);
            // A worker that hangs must not keep the others' connections from their end.
            if tokio::time::timeout(PATIENCE, open.stop.closed()).await.is_err() {
                tracing::warn!("a worker does not let go of its listeners");
            }
        }
    }

    /// Who is in the enforced cgroup now.
    ///
    /// # Errors
    /// See [`Censor::take`].
    pub(super) fn census(&mut self) -> io::Result<Census> {
        self.censor.take()
    }

    /// Closes those in which no member of the enforced cgroup is left. A listener keeps its namespace alive, so without
    /// this every namespace would stay for ever.
    pub(super) fn close_abandoned(&mut self, census: &Census) {
        self.close_unused(census, false);
    }

    fn close_unused(&mut self, census: &Census, at_once: bool) {
        let inhabited = census.namespaces();
        self.open.retain(|cookie, open| {
            let unused = !open.keep && !inhabited.contains_key(&open.inode);
            let abandoned = unused && (at_once || open.unused);
            open.unused = unused;
            if abandoned {
                tracing::debug!(cookie, "closing the listeners of an abandoned network namespace");
                open.site.withdraw();
                open.stop.send_replace(Stop::Now);
            }
            !abandoned
        });
    }

    /// Goes on with what a predecessor has handed over.
    ///
    /// # Errors
    /// The kernel's table is full, or a worker does not take a listener.
    pub(super) fn adopt(&mut self, handed: Vec<HandedSite>, workers: &Workers) -> io::Result<()> {
        handed.into_iter().try_for_each(|site| {
            self.serve(
                site.netns,
                Bound {
                    listeners: site.listeners,
                    datagrams: site.datagrams,
                    table: site.table,
                },
                workers,
            )
        })
    }

    /// Every namespace, what the kernel knows of its listeners, and they themselves.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Site, &[TcpListener])> {
        let sites = self.open.values();
        sites.map(|open| (&*open.site, open.listeners.as_slice()))
    }

    /// Stops accepting. The listeners stay open: connections wait in their queues.
    pub(super) fn pause(&self) {
        for open in self.open.values() {
            open.stop.send_replace(Stop::Now);
        }
    }

    /// Accepts again after [`Self::pause`].
    ///
    /// # Errors
    /// A worker does not take a listener, or the kernel's table no entry.
    pub(super) fn resume(&mut self, workers: &Workers) -> io::Result<()> {
        for open in self.open.values_mut() {
            // The successor may have withdrawn what it could not serve.
            open.site.publish_again()?;
            let (stop, stopped) = watch::channel(Stop::NotYet);
            workers.serve(
                duplicates(&open.listeners)?,
                open.site.duplicates()?,
                &open.site,
                &stopped,
            )?;
            open.stop = stop;
        }
        Ok(())
    }

    fn open_with(&mut self, netns: Netns, workers: &Workers, first: Option<u16>) -> io::Result<()> {
        let bound = listener::bind(&netns, workers.count(), &self.legs, first)?;
        self.serve(netns, bound, workers)
    }

    fn serve(&mut self, netns: Netns, bound: Bound, workers: &Workers) -> io::Result<()> {
        let (cookie, inode, keep) = (netns.cookie(), netns.inode()?, netns.is_home());
        let table = Arc::clone(&self.table);
        // Descriptors may be what is lacking: before the kernel is told of listeners that nobody would serve.
        let (served, named) = (
            duplicates(&bound.listeners)?,
            listener::duplicate_places(&bound.datagrams)?,
        );
        let site = Arc::new(Site::publish(netns, bound.table, bound.datagrams, table)?);
        let (stop, stopped) = watch::channel(Stop::NotYet);
        if let Err(error) = workers.serve(served, named, &site, &stopped) {
            // Else connects would be sent to ports that are closed in a moment, and nobody would ask for others.
            site.withdraw();
            return Err(error);
        }
        self.open.insert(
            cookie,
            OpenSite {
                site,
                listeners: bound.listeners,
                inode,
                place: None,
                keep,
                unused: false,
                stop,
            },
        );
        Ok(())
    }

    fn lock_table(&self) -> MutexGuard<'_, ListenerTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenError {
    /// No descriptor is left.
    fn is_exhaustion(&self) -> bool {
        match self {
            Self::Listen(error) => matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)),
            Self::NotFound | Self::TooMany => false,
        }
    }
}

/// What is wanted, without what the same cgroup wants for the same namespace: a batch may have two thousand of them. Programs
/// that have just begun do not say which namespace they are in.
fn each_once(wanted: &[ListenerWanted]) -> impl Iterator<Item = &ListenerWanted> {
    let mut seen = HashSet::new();
    wanted.iter().filter(move |wanted| {
        let pid = if wanted.netns == 0 { wanted.pid } else { 0 };
        seen.insert((wanted.netns, wanted.cgroup, pid))
    })
}

/// The namespace that a held connect was made in: by the process that made it, else by another one of its cgroup. The
/// cookie proves that it is the right one; /proc/PID/ns/net may show another meanwhile.
fn find(wanted: &ListenerWanted, identities: &Identities) -> Option<Netns> {
    // Entered once, however many processes are in it.
    let mut seen = HashSet::new();
    let mut matching = |pid: &str| {
        let inode = namespace_inode(pid).ok()?;
        if seen.contains(&inode) {
            return None;
        }
        let netns = Netns::open(&namespace_of(pid)).ok()?;
        seen.insert(inode);
        (netns.cookie() == wanted.netns).then_some(netns)
    };
    matching(&wanted.pid.to_string()).or_else(|| {
        members(wanted.cgroup, identities)
            .iter()
            .find_map(|pid| matching(pid))
    })
}

/// The processes of a cgroup, as this process counts them.
fn members(cgroup: u64, identities: &Identities) -> Vec<String> {
    let pids = identities
        .place(cgroup)
        .and_then(|directory| processes(&directory).ok());
    pids.iter()
        .flat_map(|pids| pids.lines())
        .map(str::to_owned)
        .collect()
}

fn duplicates(listeners: &[TcpListener]) -> io::Result<Vec<TcpListener>> {
    listeners.iter().map(TcpListener::try_clone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_looked_at_once_for_each_cgroup_and_namespace() {
        let wanted = |netns, cgroup, pid| ListenerWanted {
            netns,
            cgroup,
            pid,
            reserved: 0,
        };
        let batch = [
            wanted(7, 1, 100),
            wanted(7, 1, 101),
            wanted(7, 2, 102),
            wanted(8, 1, 100),
            wanted(7, 1, 100),
            wanted(0, 1, 103),
            wanted(0, 1, 104),
            wanted(0, 1, 104),
        ];
        let pids: Vec<u32> = each_once(&batch).map(|wanted| wanted.pid).collect();
        assert_eq!(pids, [100, 102, 100, 103, 104]);
    }
}
