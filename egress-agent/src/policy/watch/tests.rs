use std::{fs, os::unix::fs::symlink, sync::Mutex};

use super::*;
use crate::policy::Settings;

/// A watch over one path, with a patience that only a missed change exhausts.
struct Followed(PolicyWatch);

impl Followed {
    fn start(path: &Path) -> Self {
        let source = PolicySource::new(Settings::default()).with_paths([path.to_path_buf()]);
        Self(PolicyWatch::start(source).unwrap())
    }

    async fn loaded(&mut self) -> Result<Vec<Policy>, LoadErrors> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.0.next());
        next.await.expect("the change is noticed")
    }

    /// The number of rules in the next good set; a loaded machine may show a broken state between two steps.
    async fn next(&mut self) -> usize {
        loop {
            if let Ok(policies) = self.loaded().await {
                return policies.iter().map(Policy::rule_count).sum();
            }
        }
    }

    /// As [`Self::next`], until that many rules are there.
    async fn reaches(&mut self, rules: usize) {
        while self.next().await != rules {}
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
    followed.reaches(2).await;
    fs::write(
        directory.path().join("b.yaml"),
        policy(3).replace("name: p", "name: q"),
    )
    .unwrap();
    followed.reaches(5).await;
    fs::remove_file(&file).unwrap();
    followed.reaches(3).await;
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
        followed.reaches(rules).await;
    }
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
        followed.reaches(2).await;
        publish(3);
        followed.reaches(3).await;
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
    followed.reaches(2).await;
    // The new directory is watched now, through the same path.
    fs::write(path("release2/a.yaml"), policy(3)).unwrap();
    followed.reaches(3).await;
    // A directory that is gone is broken, not empty; once it is back, it is read and watched.
    fs::remove_file(path("current")).unwrap();
    fs::create_dir(path("current")).unwrap();
    fs::write(path("current/a.yaml"), policy(4)).unwrap();
    followed.reaches(4).await;
    fs::write(path("current/a.yaml"), policy(5)).unwrap();
    followed.reaches(5).await;
}

#[tokio::test]
async fn a_request_reads_the_files_without_a_change() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    followed.0.reload_handle().request();
    followed.reaches(1).await;
}

#[tokio::test]
async fn reading_the_files_is_no_change_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    followed.0.reload_handle().request();
    followed.reaches(1).await;
    fs::read(&file).unwrap();
    // Were the two readings changes, there would be another set well within the time.
    let more = tokio::time::timeout(QUIET * 3, followed.0.next());
    assert!(more.await.is_err());
}

#[tokio::test]
async fn a_wait_that_is_cancelled_loses_no_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1)).unwrap();
    let mut followed = Followed::start(directory.path());
    fs::write(&file, policy(2)).unwrap();
    // Cancelled after ever longer times: waiting for the change, waiting for quiet, reading.
    let mut patience = QUIET / 100;
    let loaded = loop {
        match tokio::time::timeout(patience, followed.0.next()).await {
            Ok(loaded) => break loaded,
            Err(_) => patience = patience * 3 / 2,
        }
        assert!(patience < Duration::from_secs(20), "the change is lost");
    };
    let rules: usize = loaded.unwrap().iter().map(Policy::rule_count).sum();
    assert_eq!(rules, 2);
}

/// Collects the formatted log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn count(&self, text: &str) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.matches(text).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_broken_state_is_told_once_with_its_place() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, policy(1).replace("x.test", "'*.com'")).unwrap();
    let mut followed = Followed::start(directory.path());
    let handle = followed.0.reload_handle();
    handle.request();
    let errors = followed.loaded().await.unwrap_err().to_string();
    let place = format!("{}:6:19: `*.com` would match", file.display());
    assert!(errors.starts_with(&place), "{errors}");
    // The same again is not told again ...
    handle.request();
    assert!(tokio::time::timeout(QUIET * 3, followed.0.next()).await.is_err());
    assert_eq!(log.count(&place), 1);
    assert_eq!(log.count("the last good ones stay in force"), 1);
    // ... but another fault is: emptied, as an editor leaves a file between two steps, is not a state without policies.
    fs::write(&file, "").unwrap();
    let errors = followed.loaded().await.unwrap_err().to_string();
    assert!(
        errors.contains("a.yaml:1:1: the file holds no policy"),
        "{errors}"
    );
    fs::write(&file, policy(2)).unwrap();
    followed.reaches(2).await;
}
