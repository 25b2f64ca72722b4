//! Runs the promises: one line for each, like `cargo test`'s own, but a test that a machine cannot run is reported as
//! ignored, a test that hangs fails, and a test can have the machine for itself.

use std::{
    fs::File,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::mpsc,
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    lab::cgroup::remove_all_left,
    patience::stretched,
    require::{Need, is_soak},
};

/// After this a test has failed, whatever it waits for.
const DEADLINE: Duration = Duration::from_secs(150);
/// The same for those that take long.
const LONG_DEADLINE: Duration = Duration::from_secs(1800);

/// A test under the name of what it promises.
#[derive(Debug, Clone)]
pub struct Promise {
    /// `file::what_holds`.
    pub name: &'static str,
    /// Without these it is ignored.
    pub needs: &'static [Need],
    /// Whether no other promise may be tested at the same time: for what is counted over the whole machine.
    pub alone: bool,
    /// The test: it panics if the promise does not hold.
    pub test: fn() -> Pin<Box<dyn Future<Output = ()>>>,
}

impl Promise {
    /// The name without the test program's own.
    #[must_use]
    pub fn short_name(&self) -> &'static str {
        self.name.split_once("::").map_or(self.name, |(_, rest)| rest)
    }
}

/// The promises of a file: `promises![name, other: [Need::Mptcp], third: alone]`.
#[macro_export]
macro_rules! promises {
    ($($name:ident $(: $how:tt)?),* $(,)?) => {
        /// The tests of this file.
        pub(crate) fn promises() -> Vec<$crate::harness::Promise> {
            vec![$($crate::promises!(@one $name $(: $how)?)),*]
        }
    };
    (@one $name:ident) => { $crate::promises!(@make $name, &[], false) };
    (@one $name:ident : alone) => { $crate::promises!(@make $name, &[], true) };
    (@one $name:ident : [$need:expr, alone]) => { $crate::promises!(@make $name, &[$need], true) };
    (@one $name:ident : [$($need:expr),+]) => { $crate::promises!(@make $name, &[$($need),+], false) };
    (@make $name:ident, $needs:expr, $alone:expr) => {
        $crate::harness::Promise {
            name: concat!(module_path!(), "::", stringify!($name)),
            needs: $needs,
            alone: $alone,
            test: || Box::pin($name()),
        }
    };
}

/// Runs what the command line asks for and ends the program.
pub fn run(promises: Vec<Promise>) -> ! {
    let deadline = match (is_soak(), Need::OwnClock.missing()) {
        (true, _) => LONG_DEADLINE,
        (false, Some(_)) => DEADLINE,
        // A guest, whose processor is as a rule an emulated one.
        (false, None) => 4 * DEADLINE,
    };
    run_within(promises, deadline)
}

/// The same for tests that may take longer.
pub fn run_within(promises: Vec<Promise>, deadline: Duration) -> ! {
    let deadline = stretched(deadline);
    let arguments = Arguments::from_args();
    let trials = promises
        .into_iter()
        .map(|promise| trial(promise, deadline))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    remove_all_left();
    conclusion.exit()
}

fn trial(promise: Promise, deadline: Duration) -> Trial {
    let name = promise.short_name();
    let missing = promise.needs.iter().find_map(|need| need.missing());
    if let Some(what) = missing {
        eprintln!("{name} is ignored: {what}");
    }
    Trial::test(name, move || check(name, &promise, deadline)).with_ignored_flag(missing.is_some())
}

/// Runs one test on a thread of its own, so that a hang is a failure with a name and not a silent CI job.
fn check(name: &'static str, promise: &Promise, deadline: Duration) -> Result<(), Failed> {
    let test = promise.test;
    // Taken here, so that the wait for it does not count as the test's.
    let _turn = turn(promise.alone);
    let (done, is_done) = mpsc::sync_channel(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(test());
        }));
        // The receiver is gone only when the deadline has passed and the failure is told.
        drop(done.send(result));
    })?;
    match is_done.recv_timeout(deadline) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => Err(Failed::from(message(panic.as_ref()))),
        Err(_) => Err(Failed::from(format!(
            "did not end within {} s",
            deadline.as_secs()
        ))),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
}

/// A share of the machine, or all of it. A lock on a file, because a runner may give each test a process of its own.
fn turn(alone: bool) -> Flock<File> {
    let path = std::env::temp_dir().join("egress-tests.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .expect("a lock file");
    let how = if alone {
        FlockArg::LockExclusive
    } else {
        FlockArg::LockShared
    };
    Flock::lock(file, how)
        .map_err(|(_, error)| error)
        .expect("a lock")
}
