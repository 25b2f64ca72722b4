//! One network namespace (and mount namespace) that a thread holds, with a runtime whose tasks run inside it.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use tokio::{runtime, sync::oneshot, task::JoinHandle};

/// A network namespace and a mount namespace of their own. They live as long as this value: no name under /run/netns
/// is left over even when the test program is killed.
#[derive(Debug)]
pub struct Place {
    /// For messages.
    pub name: &'static str,
    thread_directory: PathBuf,
    runtime: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Place {
    /// A fresh, empty namespace with `lo` up.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || hold(&ready, stopped))
            .expect("a thread");
        let (thread_directory, runtime) = is_ready
            .recv()
            .unwrap_or_else(|_| panic!("place {name}: cannot make its namespaces: is this root?"));
        Self {
            name,
            thread_directory,
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The network namespace's file.
    #[must_use]
    pub fn net(&self) -> PathBuf {
        self.thread_directory.join("ns/net")
    }

    /// The mount namespace's file.
    #[must_use]
    pub fn mnt(&self) -> PathBuf {
        self.thread_directory.join("ns/mnt")
    }

    /// Where its tasks run.
    #[must_use]
    pub fn runtime(&self) -> runtime::Handle {
        self.runtime.clone()
    }

    /// What a person types to look around in here while the test runs.
    #[must_use]
    pub fn join_line(&self) -> String {
        format!(
            "nsenter --net={} --mount={}",
            self.net().display(),
            self.mnt().display()
        )
    }

    /// Runs `task` in here.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.runtime.spawn(task)
    }

    /// Runs `task` in here and waits for it.
    ///
    /// # Panics
    /// `task` did.
    pub async fn run<F>(&self, task: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.spawn(task).await.expect("a task of the lab panicked")
    }

    /// Runs `ip` with each line's words as arguments.
    ///
    /// # Panics
    /// `ip` failed.
    pub async fn ip(&self, script: &str) {
        let script = script.to_owned();
        self.run(async move {
            for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
                // A child inherits the namespaces of the thread that starts it.
                let output = Command::new("ip")
                    .args(line.split_whitespace())
                    .output()
                    .expect("ip runs");
                assert!(
                    output.status.success(),
                    "ip {line}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        })
        .await;
    }

    /// Writes a sysctl of this namespace, named by its path below /proc/sys.
    ///
    /// # Panics
    /// It cannot be written.
    pub async fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        let value = value.to_owned();
        self.run(async move {
            fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        })
        .await;
    }

    /// Puts `file` in the place of `over`, for programs in here alone.
    pub async fn cover(&self, file: &Path, over: &'static str) {
        let file = file.to_owned();
        self.run(async move {
            mount(Some(&file), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap_or_else(|error| panic!("cannot put {} over {over}: {error}", file.display()));
        })
        .await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of place {} panicked", self.name);
        }
    }
}

/// The thread's life: make the namespaces, tell, hold them until told to stop.
fn hold(ready: &mpsc::SyncSender<(PathBuf, runtime::Handle)>, stopped: oneshot::Receiver<()>) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare, as root");
    // What the host mounts later shall be seen in here, and nothing of ours out there.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .expect("mounts made private");
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .expect("ip runs");
    assert!(up.success(), "lo cannot be brought up");
    let directory = PathBuf::from(format!("/proc/{}/task/{}", std::process::id(), gettid()));
    ready
        .send((directory, runtime.handle().clone()))
        .expect("the test waits");
    runtime.block_on(async {
        // An error means that the sender is gone: told to stop just the same.
        drop(stopped.await);
    });
    runtime.shutdown_background();
}
