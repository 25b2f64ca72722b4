//! `cargo xtask cluster up|down|test`: the agent's image on a real Kubernetes, two nodes on this machine.

mod images;
mod kit;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::fcntl::{Flock, FlockArg};

use self::kit::Kit;
use crate::{
    image::{self, Arch},
    progress,
    setup::{self, Purpose},
    test::{close, required::Required, runner, tally::Tally},
    workspace,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster of two nodes with the agent's image on them (root; about 30 s once the image is built)
    Up {
        /// The cgroup hierarchy that the nodes see
        #[arg(long, value_enum, default_value = "hybrid")]
        cgroups: Cgroups,
    },
    /// End it; nothing stays but what was downloaded
    Down,
    /// Run a command on a node: `cargo xtask cluster enter 1 -- ip addr`
    Enter {
        node: u8,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Start a cluster, run the tests on it, end it
    Test {
        /// Only tests whose names contain this
        filter: Option<String>,
        /// Leave the cluster as it is at the end
        #[arg(long)]
        keep: bool,
        /// The cgroup hierarchy that the nodes see
        #[arg(long, value_enum, default_value = "hybrid")]
        cgroups: Cgroups,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cgroups {
    /// Version 1 with version 2 beside it
    Hybrid,
    /// Version 2 alone
    V2,
}

/// A cluster to test on.
enum Cluster {
    /// Ours, with what starts it.
    Own(Kit),
    /// The one that KUBECONFIG names: tests that want its nodes are ignored.
    Foreign(PathBuf),
}

/// What becomes of the tests.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ran(Tally, Vec<String>),
    /// There is no cluster here, and why.
    NotRun(String),
}

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Up { cgroups } => {
            let _alone = alone()?;
            match find()? {
                Err(why) => return Ok(not_run(&why)),
                Ok(Cluster::Foreign(path)) => println!("KUBECONFIG names a cluster: {}", path.display()),
                Ok(Cluster::Own(kit)) => {
                    up(&kit, *cgroups)?;
                    println!("export KUBECONFIG={}", kit.kubeconfig().display());
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Down => {
            workspace::demand_root("cluster down")?;
            let _alone = alone()?;
            down(&Kit::at(directory()?))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Enter { node, command } => {
            let kit = Kit::at(directory()?);
            let status = kit.script("enter").arg(node.to_string()).args(command).status()?;
            Ok(u8::try_from(status.code().unwrap_or(1)).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Verb::Test {
            filter,
            keep,
            cgroups,
        } => match run(filter.as_deref(), *keep, *cgroups)? {
            Outcome::Ran(tally, complaints) => Ok(close(&tally, &complaints)),
            Outcome::NotRun(why) => Ok(not_run(&why)),
        },
    }
}

/// All tests on a cluster, for another verb.
pub(crate) fn all() -> Result<Outcome> {
    run(None, false, Cgroups::Hybrid)
}

fn run(filter: Option<&str>, keep: bool, cgroups: Cgroups) -> Result<Outcome> {
    let _alone = alone()?;
    let cluster = match find()? {
        Ok(cluster) => cluster,
        Err(why) => return Ok(Outcome::NotRun(why)),
    };
    let mut cargo = workspace::cargo("test");
    cargo
        .args(["--locked", "--package", "egress-tests", "--test", "cluster", "--"])
        // Most of the time they wait for the cluster; those that stop a part of it have it for themselves.
        .arg("--test-threads=2")
        .args(filter);
    let ran = match &cluster {
        Cluster::Foreign(path) => runner::program(cargo.env("KUBECONFIG", path)),
        Cluster::Own(kit) => {
            let ran = up(kit, cgroups).and_then(|()| {
                kit.describe(&mut cargo);
                // For those who ask the cluster from outside.
                cargo.env("EGRESS_AGENT", image::program(Arch::own()?)?);
                runner::program(cargo.env("KUBECONFIG", kit.kubeconfig()))
            });
            if !keep {
                down(kit)?;
            }
            ran
        }
    };
    let (tally, failure) = ran?;
    let mut complaints: Vec<String> = failure.into_iter().collect();
    if filter.is_none() {
        let strict = std::env::var_os("CI").is_some();
        complaints.extend(Required::of_cluster()?.complaints(&tally, strict));
    }
    Ok(Outcome::Ran(tally, complaints))
}

fn not_run(why: &str) -> ExitCode {
    eprintln!("cluster: not run: {why}");
    ExitCode::FAILURE
}

/// The cluster to take, or why there is none: the one that KUBECONFIG names, else one of our own.
fn find() -> Result<Result<Cluster, String>> {
    let own = Kit::at(directory()?);
    if let Some(path) = std::env::var_os("KUBECONFIG").map(PathBuf::from)
        && path != own.kubeconfig()
    {
        return Ok(Ok(Cluster::Foreign(path)));
    }
    if !cfg!(target_arch = "x86_64") {
        return Ok(Err(
            "a cluster can be had on x86_64 alone; KUBECONFIG names another".to_owned(),
        ));
    }
    workspace::demand_root("cluster")?;
    setup::ensure(&[
        Purpose::Build,
        Purpose::Image,
        Purpose::Demo,
        Purpose::Test,
        Purpose::Cluster,
    ])?;
    own.complete()?;
    Ok(Ok(Cluster::Own(own)))
}

fn up(kit: &Kit, cgroups: Cgroups) -> Result<()> {
    // What a run that was interrupted has left.
    down(kit)?;
    images::write(&kit.images())?;
    let mut script = kit.script("up");
    script.env(
        "CGROUPS",
        match cgroups {
            Cgroups::Hybrid => "hybrid",
            Cgroups::V2 => "v2",
        },
    );
    let begun = progress::run("starting a cluster of two nodes", "about 30 s", &mut script);
    if begun.is_err() {
        down(kit)?;
    }
    begun
}

fn down(kit: &Kit) -> Result<()> {
    if !kit.is_up() {
        return Ok(());
    }
    progress::run("ending the cluster", "about 10 s", &mut kit.script("down"))
}

/// One run at a time: the cluster's names and addresses are the machine's.
fn alone() -> Result<Flock<File>> {
    let path = std::env::temp_dir().join("egress-cluster.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, _)) => {
            eprintln!("waiting for the end of another run");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .context("a lock")
        }
    }
}

fn directory() -> Result<PathBuf> {
    let directory = workspace::target()?.join("cluster");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// A command whose output is wanted.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", workspace::describe(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            workspace::describe(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}
