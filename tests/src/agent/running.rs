//! A process in a world: its start, its life, and what came of it.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use crate::{
    clients::Client,
    lab::{Place, World},
    patience::{seconds, stretched},
    require::{is_soak, tool},
};

/// A process that does not end within this hangs.
const PATIENCE: Duration = Duration::from_secs(140);

/// How a process is to be started.
#[derive(Debug)]
pub struct Start<'w> {
    world: &'w World,
    /// The namespaces' files, and their name for messages.
    net: PathBuf,
    mnt: PathBuf,
    place: &'static str,
    cgroup: PathBuf,
    command: Vec<OsString>,
    environment: Vec<(String, String)>,
    pub(super) stdin: Option<Vec<u8>>,
    pub(super) log: Option<PathBuf>,
}

impl<'w> Start<'w> {
    /// In `place` and the world's cgroup, with no variables but PATH, HOME and LANG.
    #[must_use]
    pub fn new(world: &'w World, place: &Place) -> Self {
        Self {
            world,
            net: place.net(),
            mnt: place.mnt(),
            place: place.name,
            cgroup: world.cgroup.path().to_owned(),
            command: Vec::new(),
            environment: Vec::new(),
            stdin: None,
            log: None,
        }
    }

    /// The program and its arguments.
    #[must_use]
    pub fn command(mut self, words: Vec<OsString>) -> Self {
        self.command = words;
        self
    }

    /// A client instead of words.
    #[must_use]
    pub fn client(self, client: &Client) -> Self {
        let mut words = vec![client.program.clone().into_os_string()];
        words.extend(client.arguments.iter().cloned());
        self.command(words).environment(client.environment.clone())
    }

    /// In another cgroup than the world's.
    #[must_use]
    pub fn cgroup(mut self, path: &Path) -> Self {
        self.cgroup = path.to_owned();
        self
    }

    /// A variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn environment(mut self, variables: Vec<(String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// The access log that [`Finished::log`] reads.
    #[must_use]
    pub fn log(mut self, path: &Path) -> Self {
        self.log = Some(path.to_owned());
        self
    }

    /// Starts it, in a process group of its own.
    ///
    /// # Panics
    /// `nsenter` cannot be started.
    #[must_use]
    pub fn start(self) -> Running<'w> {
        let words: Vec<String> = self
            .command
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        self.world
            .tell(&format!("$ {}   (in {})", words.join(" "), self.place));
        // Neither nsenter (without --fork or --pid) nor env nor the shell makes a new process: the child's id is the command's.
        let mut command = Command::new(tool("nsenter"));
        command
            .arg(format!("--net={}", self.net.display()))
            .arg(format!("--mount={}", self.mnt.display()))
            .args([
                "--",
                // A suite that runs in the background of a script inherits signals as ignored, and so would the agent.
                "/usr/bin/env",
                "--default-signal",
                "/bin/sh",
                "-c",
                "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"",
            ])
            .arg(&self.cgroup)
            .args(&self.command)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.world.path(""))
            .env("LANG", "C.UTF-8")
            .envs(self.environment)
            .stdin(if self.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().expect("nsenter starts");
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            tokio::spawn(async move {
                // A command need not read its input.
                drop(pipe.write_all(&bytes).await);
            });
        }
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .expect("a process id");
        self.world.agents.started(pid);
        Running {
            world: self.world,
            begun: Instant::now(),
            pid: Pid::from_raw(pid),
            stdout: Stream::read(child.stdout.take()),
            stderr: Stream::read(child.stderr.take()),
            child,
            log: self.log,
            name: words.join(" "),
        }
    }
}

/// A process that runs. The world's end ends it.
#[derive(Debug)]
pub struct Running<'w> {
    world: &'w World,
    begun: Instant,
    pid: Pid,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    log: Option<PathBuf>,
    name: String,
}

impl Running<'_> {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the process is there");
    }

    /// Sends its whole process group a signal, as a terminal does for Ctrl-C.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal_group(&self, signal: Signal) {
        killpg(self.pid, signal).expect("the process group is there");
    }

    /// Leaves it so many descriptors besides those that it has.
    ///
    /// # Panics
    /// It has ended.
    pub async fn leave_descriptors(&self, free: usize) {
        let pid = self.pid;
        let used: Vec<usize> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("the process is there")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        // What is limited is their numbers, among which there may be gaps.
        let is_left = |most: &usize| most - used.iter().filter(|number| *number < most).count() == free;
        let most = (free..).find(is_left).unwrap_or_default();
        let status = Command::new(tool("prlimit"))
            .arg(format!("--pid={pid}"))
            .arg(format!("--nofile={most}:"))
            .status()
            .await
            .expect("prlimit runs");
        assert!(status.success());
    }

    /// Waits until its standard output contains `text`.
    ///
    /// # Panics
    /// It does not in good time.
    pub async fn says(&self, text: &str) {
        self.stdout.wait_for(&self.name, text, &self.stderr).await;
    }

    /// Waits until its standard error contains `text`.
    ///
    /// # Panics
    /// It does not in good time.
    pub async fn complains(&self, text: &str) {
        self.stderr.wait_for(&self.name, text, &self.stdout).await;
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end in good time.
    pub async fn finish(mut self) -> Finished {
        let patience = if is_soak() { 10 * PATIENCE } else { PATIENCE };
        let Ok(status) = timeout(stretched(patience), self.child.wait()).await else {
            panic!(
                "does not end: {}\nstdout: {}\nstderr: {}",
                self.name,
                String::from_utf8_lossy(&self.stdout.bytes()),
                String::from_utf8_lossy(&self.stderr.bytes())
            );
        };
        let took = self.begun.elapsed();
        // A command's children may hold the pipes for longer than the command lives: what they say then is not ours.
        let stdout = self.stdout.finish().await;
        let stderr = self.stderr.finish().await;
        let finished = Finished {
            status: status.expect("a child is waited for"),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            log: self
                .log
                .map(|path| fs::read_to_string(path).unwrap_or_default())
                .unwrap_or_default(),
            took,
        };
        self.world.tell(&finished.story());
        finished
    }
}

/// What came of a process.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// The access log, if one was asked for.
    pub log: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit status as a shell tells it: 128+n for a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .or_else(|| Some(128 + self.status.signal()?))
            .unwrap_or(-1)
    }

    /// Asserts the exit status 0.
    ///
    /// # Panics
    /// It is another one.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert_eq!(self.code(), 0, "{}", self.story());
        self
    }

    /// Asserts an exit status other than 0.
    ///
    /// # Panics
    /// It is 0.
    #[track_caller]
    pub fn failed(&self) -> &Self {
        assert_ne!(self.code(), 0, "{}", self.story());
        self
    }

    /// Asserts what it printed.
    ///
    /// # Panics
    /// It printed something else.
    #[track_caller]
    pub fn printed(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "{}", self.story());
        self
    }

    /// The access log's lines as JSON.
    ///
    /// # Panics
    /// A line is not JSON.
    #[track_caller]
    #[must_use]
    pub fn json_log(&self) -> Vec<serde_json::Value> {
        self.log
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?} is not JSON: {error}"))
            })
            .collect()
    }

    /// Everything, for a failure's message.
    #[must_use]
    pub fn story(&self) -> String {
        format!(
            "status {} after {:?}\nstdout: {}\nstderr: {}\nlog: {}",
            self.code(),
            self.took,
            shown(&self.stdout),
            self.stderr,
            self.log
        )
    }
}

/// Text as it is, other bytes by their number alone.
fn shown(bytes: &[u8]) -> String {
    let begin = &bytes[..bytes.len().min(2048)];
    // A character cut in two at the end is no reason to hide the text before it.
    match std::str::from_utf8(begin) {
        Ok(text) => text.to_owned(),
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(begin).into_owned(),
        Err(_) => format!("{} bytes that are no text", bytes.len()),
    }
}

/// What comes out of a pipe, and its reader.
#[derive(Debug)]
struct Stream {
    text: Arc<(Mutex<Vec<u8>>, Notify)>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn read(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let text = Arc::new((Mutex::new(Vec::new()), Notify::new()));
        let shared = Arc::clone(&text);
        let reader = tokio::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return;
                }
                shared
                    .0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..count]);
                shared.1.notify_waiters();
            }
        });
        Self { text, reader }
    }

    fn bytes(&self) -> Vec<u8> {
        self.text.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wait_for(&self, name: &str, text: &str, other: &Self) {
        let waited = timeout(seconds(30), async {
            loop {
                let changed = self.text.1.notified();
                if String::from_utf8_lossy(&self.bytes()).contains(text) {
                    return;
                }
                changed.await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{name} did not say {text:?} but {:?} (and on the other stream {:?})",
            String::from_utf8_lossy(&self.bytes()),
            String::from_utf8_lossy(&other.bytes())
        );
    }

    async fn finish(self) -> Vec<u8> {
        let text = Arc::clone(&self.text);
        // An error is the time's end, or the reader's panic, which has been printed.
        drop(timeout(seconds(2), self.reader).await);
        text.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
