//! The `dns` log: a JSON line for each query, and what was decided about it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use serde::Serialize;

/// Lines that may wait for the disk: some 3 MiB.
const QUEUE: usize = 8192;
/// How often the writer looks whether the file is to be reopened.
const LOOK: Duration = Duration::from_millis(250);

/// Which queries are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// None.
    Off,
    /// Those that were refused or failed.
    #[default]
    Denied,
    /// All, those of observed workloads too.
    All,
}

/// One query. Field names are a contract: docs/dns.md.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) time: String,
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) cgroup: String,
    pub(crate) pid: u32,
    pub(crate) command: String,
    pub(crate) client: SocketAddr,
    pub(crate) resolver: SocketAddr,
    pub(crate) transport: &'static str,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) outcome: &'static str,
    pub(crate) rule: Option<String>,
    pub(crate) enforced: bool,
    pub(crate) rcode: String,
    pub(crate) answers: Vec<IpAddr>,
    pub(crate) stripped: Vec<&'static str>,
    pub(crate) milliseconds: u64,
}

/// Takes entries; one that cannot wait is dropped and counted, because no query is to wait for a disk.
#[derive(Debug, Clone, Default)]
pub struct DnsLog {
    running: Option<Arc<Running>>,
}

#[derive(Debug)]
struct Running {
    level: Level,
    queue: SyncSender<Entry>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    reopen: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
}

impl DnsLog {
    /// Appends to the file `path`.
    ///
    /// # Errors
    /// It cannot be opened, or no thread can be made.
    pub fn start(path: &Path, level: Level) -> io::Result<Self> {
        if level == Level::Off {
            return Ok(Self::default());
        }
        let file = open(path)?;
        let (queue, entries) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let writer = Writer {
            path: path.to_path_buf(),
            file: Some(file),
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("egress-dns-log".to_owned())
            .spawn(move || writer.run(&entries))?;
        Ok(Self {
            running: Some(Arc::new(Running { level, queue, shared })),
        })
    }

    /// Opens the file anew, after a rotation.
    pub fn reopen(&self) {
        if let Some(running) = &self.running {
            running.shared.reopen.store(true, Ordering::Relaxed);
        }
    }

    /// Entries written and lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.running.as_ref().map_or((0, 0), |running| {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (count(&running.shared.written), count(&running.shared.lost))
        })
    }

    /// Whether an entry of this kind is wanted: so that none is made for nothing.
    pub(crate) fn wants(&self, is_passed: bool) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.level == Level::All || !is_passed)
    }

    pub(crate) fn record(&self, entry: Entry) {
        if let Some(running) = &self.running
            && running.queue.try_send(entry).is_err()
        {
            running.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    path: PathBuf,
    file: Option<File>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Ends when the last handle of the log is gone and everything is written.
    fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            if self.shared.reopen.swap(false, Ordering::Relaxed) {
                self.file = None;
            }
            match entries.recv_timeout(LOOK) {
                Ok(entry) => self.write(&entry),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write(&mut self, entry: &Entry) {
        match self.try_write(entry) {
            Ok(()) => self.shared.written.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                // Once for each series of losses: a full disk would otherwise fill another one.
                if self.file.take().is_some() {
                    tracing::error!(path = %self.path.display(), %error, "cannot write the dns log: entries are lost and counted");
                }
                self.shared.lost.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    fn try_write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(open(&self.path)?),
        };
        file.write_all(&line)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        let address = SocketAddr::from(([192, 0, 2, 1], 53));
        Entry {
            time: "2026-11-23T10:00:00Z".to_owned(),
            namespace: "team".to_owned(),
            workload: "one".to_owned(),
            cgroup: "/one".to_owned(),
            pid: 7,
            command: "curl".to_owned(),
            client: address,
            resolver: address,
            transport: "udp",
            name: name.to_owned(),
            kind: "A".to_owned(),
            outcome: "no_rule",
            rule: None,
            enforced: true,
            rcode: "NXDOMAIN".to_owned(),
            answers: Vec::new(),
            stripped: Vec::new(),
            milliseconds: 0,
        }
    }

    fn wait_for(what: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(10), "never came about");
            thread::yield_now();
        }
    }

    #[test]
    fn lines_are_appended_and_a_rotated_file_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("dns.json"), directory.path().join("old"));
        let log = DnsLog::start(&path, Level::Denied).unwrap();
        assert!(log.wants(false) && !log.wants(true));
        log.record(entry("one.test"));
        wait_for(|| log.counts().0 == 1);
        std::fs::rename(&path, &old).unwrap();
        log.reopen();
        wait_for(|| {
            log.record(entry("two.test"));
            path.exists()
        });
        let text = std::fs::read_to_string(&old).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (first["name"].as_str(), first["type"].as_str()),
            (Some("one.test"), Some("A"))
        );
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let log = DnsLog::start(Path::new("/dev/full"), Level::All).unwrap();
        log.record(entry("one.test"));
        wait_for(|| log.counts().1 == 1);
        assert!(!DnsLog::default().wants(false));
        assert!(
            !DnsLog::start(Path::new("/dev/null"), Level::Off)
                .unwrap()
                .wants(false)
        );
    }
}
