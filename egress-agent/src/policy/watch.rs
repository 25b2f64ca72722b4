//! Hot reload: policy files are read again when they change, or on request, and a broken state is never put in force.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, INotifyWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{problem::LoadErrors, rule::Policy, source::PolicySource};

/// A change is read when nothing more has changed for this long: editors and `git checkout` write in several steps, and
/// in between a file can be empty.
const QUIET: Duration = Duration::from_millis(200);
/// Changes that never cease are read after this long all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// Follows the files of a [`PolicySource`].
///
/// What is followed: directories and their files, single files, and both through symbolic links that are swapped, as
/// Kubernetes swaps those of a ConfigMap. What is not: the target of a link that points elsewhere and is written in place;
/// for that there is [`ReloadHandle::request`].
#[derive(Debug)]
pub struct PolicyWatch {
    source: PolicySource,
    signals: Arc<Signals>,
    watcher: INotifyWatcher,
    /// Something has changed and is not read yet. Kept here so that [`Self::next`] can be cancelled at any point.
    pending: bool,
    known_errors: Option<LoadErrors>,
}

/// Asks a [`PolicyWatch`] to read its files now, as SIGHUP does.
#[derive(Debug, Clone)]
pub struct ReloadHandle {
    signals: Arc<Signals>,
}

#[derive(Debug, Default)]
struct Signals {
    changed: Notify,
    requested: Notify,
}

/// What is worth a reload.
#[derive(Debug)]
struct Interest {
    /// Every entry of these directories.
    directories: BTreeSet<PathBuf>,
    /// These paths: single files, and the directories themselves, which may be swapped as a whole.
    paths: BTreeSet<PathBuf>,
}

impl PolicyWatch {
    /// Starts following. To be called before the first [`PolicySource::load`], so that no change falls between the two.
    ///
    /// # Errors
    /// inotify is used up (`fs.inotify.max_user_instances`, `max_user_watches`), or a path cannot be made absolute.
    pub fn start(source: PolicySource) -> notify::Result<Self> {
        let signals = Arc::new(Signals::default());
        Ok(Self {
            watcher: follow(&source, &signals)?,
            source,
            signals,
            pending: false,
            known_errors: None,
        })
    }

    /// The way to ask for a reload from elsewhere.
    #[must_use]
    pub fn reload_handle(&self) -> ReloadHandle {
        ReloadHandle {
            signals: Arc::clone(&self.signals),
        }
    }

    /// Waits for a change or a request, and reads the files: every good state is given, every broken state given and
    /// logged once. What was in force before a broken state is to stay so. Cancelling loses nothing: the next call begins where this one was.
    ///
    /// # Errors
    /// What is broken, if it is not what the last call told.
    pub async fn next(&mut self) -> Result<Vec<Policy>, LoadErrors> {
        loop {
            if !self.pending {
                tokio::select! {
                    () = self.signals.requested.notified() => self.pending = true,
                    () = self.signals.changed.notified() => {
                        self.pending = true;
                        settled(&self.signals.changed).await;
                    }
                }
            }
            let loaded = self.read().await;
            self.pending = false;
            match loaded {
                Ok(policies) => {
                    tracing::info!(policies = policies.len(), "policy files loaded");
                    self.known_errors = None;
                    return Ok(policies);
                }
                Err(errors) if self.known_errors.as_ref() == Some(&errors) => {}
                Err(errors) => {
                    for error in &errors.0 {
                        tracing::error!("{error}");
                    }
                    tracing::error!(
                        errors = errors.0.len(),
                        "the policies are broken; the last good ones stay in force"
                    );
                    self.known_errors = Some(errors.clone());
                    return Err(errors);
                }
            }
        }
    }

    /// Reads the files, beside the runtime because that blocks. They are followed anew each time, before they are read: a
    /// directory may have been replaced by another one.
    async fn read(&mut self) -> Result<Vec<Policy>, LoadErrors> {
        let source = self.source.clone();
        let signals = Arc::clone(&self.signals);
        let work = tokio::task::spawn_blocking(move || (follow(&source, &signals), source.load_policies()));
        let (watcher, loaded) = work.await.map_err(|error| LoadErrors::unread(&error))?;
        match watcher {
            Ok(watcher) => self.watcher = watcher,
            Err(error) => tracing::warn!(%error, "policy files cannot be followed: changes need a reload"),
        }
        loaded
    }
}

impl ReloadHandle {
    /// Asks for a reload; several requests before it happens become one.
    pub fn request(&self) {
        self.signals.requested.notify_one();
    }
}

impl Interest {
    fn of(source: &PolicySource) -> notify::Result<Self> {
        let mut interest = Self {
            directories: BTreeSet::new(),
            paths: BTreeSet::new(),
        };
        for path in source.paths() {
            let path = std::path::absolute(path).map_err(notify::Error::io)?;
            if path.is_dir() {
                interest.directories.insert(path.clone());
            } else {
                // A file of a ConfigMap is a link to ..data/NAME, and ..data is what is swapped.
                interest
                    .paths
                    .extend(path.parent().map(|parent| parent.join("..data")));
            }
            interest.paths.insert(path);
        }
        Ok(interest)
    }

    /// The directories to watch: inotify tells of a file by its directory, which outlives the file.
    fn watched(&self) -> BTreeSet<&Path> {
        let parents = self.paths.iter().filter_map(|path| path.parent());
        let directories = self.directories.iter().map(PathBuf::as_path);
        parents.chain(directories).collect()
    }

    fn has(&self, event: &Event) -> bool {
        let changes = match event.kind {
            EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => true,
        };
        let concerns = |path: &PathBuf| {
            self.paths.contains(path)
                || path
                    .parent()
                    .is_some_and(|parent| self.directories.contains(parent))
        };
        // An overflow of the kernel's queue names no path.
        changes && (event.paths.is_empty() || event.paths.iter().any(concerns))
    }
}

/// Watches what the source names. What is not there yet is found by its parent; what has no parent either is left out.
fn follow(source: &PolicySource, signals: &Arc<Signals>) -> notify::Result<INotifyWatcher> {
    let interest = Arc::new(Interest::of(source)?);
    let signals = Arc::clone(signals);
    let relevant = Arc::clone(&interest);
    let handler = move |event: notify::Result<Event>| {
        if event.map_or(true, |event| relevant.has(&event)) {
            signals.changed.notify_one();
        }
    };
    let mut watcher = INotifyWatcher::new(handler, notify::Config::default())?;
    for directory in interest.watched().into_iter().filter(|path| path.is_dir()) {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Waits until changes cease.
async fn settled(changed: &Notify) {
    let last = Instant::now() + PATIENCE;
    loop {
        let quiet = (Instant::now() + QUIET).min(last);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
