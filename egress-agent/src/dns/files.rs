//! The files that lookups depend on, read again when they change.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_resolver::Hosts;

use crate::policy::DomainName;

/// A change is noticed within this time; looking each time would cost every connection a stat(2).
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The well-known port of a name server.
const DNS_PORT: u16 = 53;

/// What a file says, parsed, and parsed anew when the file has changed. A missing or unreadable file counts as empty.
pub(crate) struct Watched<T> {
    path: PathBuf,
    parse: Box<dyn Fn(&str) -> T + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    checked: Instant,
    stamp: Option<Stamp>,
    value: Arc<T>,
}

/// Tells one version of a file from the next: also if it was replaced by rename within the clock's grain.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl<T> Watched<T> {
    pub(crate) fn new(path: PathBuf, parse: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        let state = State {
            checked: Instant::now(),
            stamp: stamp(&path),
            value: Arc::new(parse(&read(&path))),
        };
        Self {
            path,
            parse: Box::new(parse),
            state: Mutex::new(state),
        }
    }

    /// What the file says now, or said at most [`CHECK_EVERY`] ago.
    pub(crate) fn get(&self) -> Arc<T> {
        // The state is whole at every point where a panic could leave the lock poisoned.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= CHECK_EVERY {
            state.checked = Instant::now();
            let stamp = stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                state.value = Arc::new((self.parse)(&read(&self.path)));
                tracing::info!(path = %self.path.display(), "read again");
            }
        }
        Arc::clone(&state.value)
    }
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: data.ino(),
        size: data.len(),
        seconds: data.mtime(),
        nanoseconds: data.mtime_nsec(),
    })
}

fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read: taken as empty");
            String::new()
        }
    }
}

/// The name servers of a resolv.conf(5); the one on this machine if there are none.
pub(crate) fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            if words.next() != Some("nameserver") {
                return None;
            }
            let word = words.next()?;
            let address = word.parse::<IpAddr>();
            if address.is_err() {
                tracing::warn!(nameserver = word, "not an address that can be asked: left out");
            }
            Some(SocketAddr::new(address.ok()?, DNS_PORT))
        })
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
    }
    servers
}

/// The search list of a resolv.conf(5): the last one counts.
pub(super) fn search_list(text: &str) -> Vec<DomainName> {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        matches!(words.next(), Some("search" | "domain")).then_some(words)
    });
    let last = lines.next_back().into_iter().flatten();
    last.filter_map(|word| DomainName::parse(word).ok()).collect()
}

/// A hosts(5) file.
pub(crate) fn hosts(text: &str) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = hosts.read_hosts_conf(text.as_bytes()) {
        tracing::warn!(%error, "cannot read the hosts file to its end");
    }
    hosts
}
