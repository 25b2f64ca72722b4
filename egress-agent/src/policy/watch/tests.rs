use std::{
    fs,
    os::unix::fs::symlink,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::policy::{PolicyStore, Settings};

/// A running watch over one path, and what it applies.
struct Followed {
    applied: mpsc::Receiver<PolicySet>,
    handle: ReloadHandle,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Followed {
    fn start(path: &Path) -> Self {
        let source = PolicySource::new(Settings::default()).with_paths([path.to_path_buf()]);
        let watch = PolicyWatch::start(source).unwrap();
        let (sender, applied) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        Self {
            handle: watch.reload_handle(),
            task: tokio::spawn(watch.run(
                move |loaded| drop(loaded.map(|set| sender.try_send(set).unwrap())),
                async move { drop(stopped.await) },
            )),
            applied,
            stop: Some(stop),
        }
    }

    /// The number of rules in the next set that is applied.
    async fn next(&mut self) -> usize {
        let set = tokio::time::timeout(Duration::from_secs(10), self.applied.recv());
        set.await.unwrap().unwrap().counts().rules
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
    }
}

/// A policy with that many rules.
fn policy(rules: usize) -> String {
    let rules = "\n  - to: [{domain: x.test}]".repeat(rules);
    format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: p}}\nspec:\n  egress:{rules}\n"
    )
}

#[tokio::test]
async fn a_changed_new_or_removed_file_of_a_directory_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    fs::write(&file, policy(2)).unwrap();
    assert_eq!(followed.next().await, 2);
    fs::write(
        directory.path().join("b.yaml"),
        policy(3).replace("name: p", "name: q"),
    )
    .unwrap();
    assert_eq!(followed.next().await, 5);
    fs::remove_file(&file).unwrap();
    assert_eq!(followed.next().await, 3);
    followed.stop().await;
}

#[tokio::test]
async fn a_file_that_is_replaced_by_renaming_is_noticed_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1)).unwrap();
    let mut followed = Followed::start(&file);
    for rules in 2..4 {
        let new = directory.path().join("new");
        fs::write(&new, policy(rules)).unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(followed.next().await, rules);
    }
    followed.stop().await;
}

#[tokio::test]
async fn a_configmap_that_the_kubelet_swaps_is_noticed() {
    for watch_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let publish = |version: usize| {
            let data = format!("..v{version}");
            fs::create_dir(path(&data)).unwrap();
            fs::write(path(&data).join("a.yaml"), policy(version)).unwrap();
            symlink(&data, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
        };
        publish(1);
        symlink("..data/a.yaml", path("a.yaml")).unwrap();
        let watched = if watch_file { path("a.yaml") } else { path("") };
        let mut followed = Followed::start(&watched);
        publish(2);
        fs::remove_dir_all(path("..v1")).unwrap();
        assert_eq!(followed.next().await, 2);
        publish(3);
        assert_eq!(followed.next().await, 3);
        followed.stop().await;
    }
}

#[tokio::test]
async fn a_directory_that_is_swapped_or_made_anew_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let release = |version: usize| {
        let name = path(&format!("release{version}"));
        fs::create_dir(&name).unwrap();
        fs::write(name.join("a.yaml"), policy(version)).unwrap();
        symlink(name, path("tmp")).unwrap();
        fs::rename(path("tmp"), path("current")).unwrap();
    };
    release(1);
    let mut followed = Followed::start(&path("current"));
    release(2);
    assert_eq!(followed.next().await, 2);
    // The new directory is watched now, through the same path.
    fs::write(path("release2/a.yaml"), policy(3)).unwrap();
    assert_eq!(followed.next().await, 3);
    // A directory that is gone is broken, not empty; once it is back, it is read and watched.
    fs::remove_file(path("current")).unwrap();
    fs::create_dir(path("current")).unwrap();
    fs::write(path("current/a.yaml"), policy(4)).unwrap();
    assert_eq!(followed.next().await, 4);
    fs::write(path("current/a.yaml"), policy(5)).unwrap();
    assert_eq!(followed.next().await, 5);
    followed.stop().await;
}

#[tokio::test]
async fn a_request_reads_the_files_without_a_change() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    followed.handle.request();
    assert_eq!(followed.next().await, 1);
    followed.stop().await;
}

#[tokio::test]
async fn reading_the_files_is_no_change_of_them() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    followed.handle.request();
    assert_eq!(followed.next().await, 1);
    // The reload above, and this reading, would lead to another set well within the time.
    fs::read(directory.path().join("a.yaml")).unwrap();
    let more = tokio::time::timeout(QUIET * 3, followed.applied.recv());
    assert!(more.await.is_err());
    followed.stop().await;
}

/// Collects the formatted log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }

    fn count(&self, text: &str) -> usize {
        String::from_utf8(self.bytes().clone())
            .unwrap()
            .matches(text)
            .count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_set_and_is_told_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1)).unwrap();
    let source = PolicySource::new(Settings::default()).with_paths([directory.path().to_path_buf()]);
    let mut watch = PolicyWatch::start(source.clone()).unwrap();
    let store = PolicyStore::default();
    store.replace(Arc::new(source.load().unwrap()));

    fs::write(&file, policy(1).replace("x.test", "'*.com'")).unwrap();
    for _ in 0..3 {
        assert!(watch.reload().await.is_none());
    }
    let place = format!("{}:6:19: `*.com` would match", file.display());
    assert_eq!(log.count(&place), 1);
    assert_eq!(log.count("the last good ones stay in force"), 1);
    // Emptied, as an editor leaves it between two steps: not a state without policies.
    fs::write(&file, "").unwrap();
    assert!(watch.reload().await.is_none());
    assert_eq!(log.count("the last good ones stay in force"), 2);
    assert_eq!(store.load().counts().rules, 1);
    fs::write(&file, policy(2)).unwrap();
    assert_eq!(watch.reload().await.unwrap().counts().rules, 2);
    assert_eq!(log.count("policies loaded policies=1 rules=2"), 1);
}
