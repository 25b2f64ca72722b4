//! The enforcer: kernel programs, listeners and workers as one thing that starts, serves and stops. `exec` and `run`
//! differ in what they attach it to and in how long it lives.

mod control;
mod handover;
mod parts;
mod reports;
mod sites;
mod start;

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use tokio::sync::mpsc;

use self::{control::Control, handover::Draining, reports::Reports, sites::Sites};
pub use self::{
    handover::{Channel, Predecessor},
    start::Claim,
};

use crate::{
    drain::DrainTrigger,
    identity::Mapping,
    instance::{Instance, Traces},
    kernel::{self, Attachment, FlowTable, HeldReader, Repair, Settings, WantedReader},
    policy::PolicySet,
    proxy::{Services, Workers},
};

/// How often the kernel's reports are fetched: it never wakes us for them.
const REPORT_PERIOD: Duration = Duration::from_millis(250);
/// How often what nobody uses any more is looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// How often links and pins are looked at. The kernel tells nobody when one is detached or removed.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// How long the log may take to write what it has when the enforcer stops.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// What a running enforcer is told.
#[derive(Debug)]
pub enum Update {
    /// New policies.
    Policies(Box<PolicySet>),
    /// The newest policies are broken, and why; the last good ones stay.
    BrokenPolicies(String),
}

/// Why [`Enforcer::serve`] has ended.
#[derive(Debug)]
pub enum Served {
    /// It is to stop.
    Stopped,
    /// A successor serves now: to be kept until this process ends.
    HandedOver(Channel),
}

/// What an enforcer is made from.
#[derive(Debug)]
pub struct EnforcerSettings {
    /// The cgroup whose members are enforced.
    pub cgroup: PathBuf,
    /// Whether it goes with the enforcer.
    pub owns_cgroup: bool,
    /// Whether what an agent of the same name left, that did not end by itself, is taken over. Otherwise it is in the way.
    pub may_inherit: bool,
    /// What the cgroups below it are.
    pub mappings: Vec<Mapping>,
    /// Destinations that are left alone.
    pub internal: Vec<IpNet>,
    /// TCP ports that are redirected besides those that domain rules name.
    pub ports: Vec<u16>,
    /// Policies, dialer, log, limits.
    pub services: Arc<Services>,
}

/// Programs in force, listeners open, workers running.
#[derive(Debug)]
pub struct Enforcer {
    instance: Instance,
    attachment: Attachment,
    settings: Settings,
    ports: Vec<u16>,
    wanted: WantedReader,
    held: HeldReader,
    flows: FlowTable,
    sites: Sites,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    control: Control,
    cgroup: PathBuf,
    internal: Vec<IpNet>,
    /// As long as it drains.
    predecessor: Option<Draining>,
    traces: Traces,
    begun: Instant,
    /// How often something had to be put right.
    repairs: u64,
    /// Why something cannot be put right now.
    repair_error: Option<String>,
    policy_error: Option<String>,
    services: Arc<Services>,
}

impl Enforcer {
    /// Serves requests for listeners, updates, reports and sweeps, until `stop` is ready or a successor has taken over.
    ///
    /// # Errors
    /// The kernel's side cannot be read any more.
    pub async fn serve(
        &mut self,
        updates: &mut mpsc::Receiver<Update>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<Served> {
        let mut report = tokio::time::interval(REPORT_PERIOD);
        let mut watch = tokio::time::interval(WATCH_PERIOD);
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        loop {
            tokio::select! {
                biased;
                wanted = self.wanted.next() => self.sites.open_wanted(&wanted?, &self.workers),
                held = self.held.next() => self.sites.answer_held(held?, &self.workers),
                () = &mut stop => return Ok(Served::Stopped),
                Some(update) = updates.recv() => self.update(update),
                asked = self.control.accept() => {
                    let status = self.status();
                    control::answer(asked, &status).await;
                }
                asked = self.control.successor() => if let Some(channel) = self.hand_over(asked) {
                    return Ok(Served::HandedOver(channel));
                },
                () = draining(self.predecessor.as_ref()) => self.forget_predecessor(),
                _tick = report.tick() => self.reports.fetch(),
                _tick = watch.tick() => self.mend(),
                _tick = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Stops accepting, lets open connections end by themselves within `grace`, and removes everything. The pins go
    /// last: until then new connects are refused, never passed.
    ///
    /// # Errors
    /// Something could not be removed: `egress-agent cleanup` then tries again.
    pub async fn stop(mut self, grace: Duration) -> anyhow::Result<()> {
        self.drain.start(grace);
        self.sites.close_all();
        let workers = self.workers;
        tokio::task::spawn_blocking(move || workers.join())
            .await
            .context("a worker failed")?;
        self.reports.fetch();
        if let Err(unwritten) = self.services.log.close(LOG_PATIENCE) {
            tracing::error!(error = %unwritten, "the access log did not take everything");
        }
        self.attachment.remove().context("cannot remove the pins")?;
        self.instance
            .release()
            .context("cannot remove the state directory")?;
        Ok(())
    }

    /// Stops, and leaves everything in force for a successor: new connects are held until it comes, and open connections
    /// may end by themselves within `grace`.
    ///
    /// # Errors
    /// A worker failed.
    pub async fn leave(mut self, grace: Duration) -> anyhow::Result<()> {
        self.sites.hold_all().await;
        self.drain.start(grace);
        let workers = self.workers;
        tokio::task::spawn_blocking(move || workers.join())
            .await
            .context("a worker failed")?;
        self.reports.fetch();
        if let Err(unwritten) = self.services.log.close(LOG_PATIENCE) {
            tracing::error!(error = %unwritten, "the access log did not take everything");
        }
        Ok(())
    }

    /// After a hand-over: lets open connections end by themselves within `grace`, or until `stop` is ready, and removes
    /// nothing. New policies reach them still.
    ///
    /// # Errors
    /// A worker failed.
    pub async fn retire(
        mut self,
        grace: Duration,
        successor: Channel,
        updates: &mut mpsc::Receiver<Update>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> anyhow::Result<()> {
        self.drain.start(grace);
        self.sites.close_all();
        // The successor's from now on: whoever comes after it must not find our hand on the lock.
        drop((self.instance, self.attachment, self.control, self.wanted));
        let workers = self.workers;
        let mut joined = tokio::task::spawn_blocking(move || workers.join());
        loop {
            tokio::select! {
                joined = &mut joined => {
                    joined.context("a worker failed")?;
                    break;
                }
                Some(update) = updates.recv() => if let Update::Policies(set) = update {
                    self.services.policy.replace(Arc::new(*set));
                },
                () = &mut stop => {
                    self.drain.start(Duration::ZERO);
                    joined.await.context("a worker failed")?;
                    break;
                }
            }
        }
        if let Err(unwritten) = self.services.log.close(LOG_PATIENCE) {
            tracing::error!(error = %unwritten, "the access log did not take everything");
        }
        drop(successor);
        Ok(())
    }

    fn update(&mut self, update: Update) {
        self.policy_error = match update {
            Update::Policies(set) => self.apply(*set).err().map(|error| format!("{error:#}")),
            // Whoever read them has logged it.
            Update::BrokenPolicies(problem) => return self.policy_error = Some(problem),
        };
        if let Some(problem) = &self.policy_error {
            tracing::error!(problem, "new policies are not in force, the last good ones stay");
        }
    }

    /// Puts a policy set in force: the kernel redirects the ports that it names before anything is judged by it.
    fn apply(&mut self, set: PolicySet) -> anyhow::Result<()> {
        let ports = redirected_ports(&self.ports, &set)?;
        self.settings.redirect_ports(&ports)?;
        let counts = set.counts();
        tracing::info!(
            policies = counts.policies,
            rules = counts.rules,
            "policies are in force"
        );
        self.services.policy.replace(Arc::new(set));
        Ok(())
    }

    /// Fills the tables with what this agent is configured to, and reads the reports from where they have been read.
    fn refill(&mut self) -> anyhow::Result<()> {
        self.exempt()?;
        let pins = self.attachment.pin_path();
        self.settings.internal(&self.internal)?;
        let ports = redirected_ports(&self.ports, &self.services.policy.load())?;
        self.settings.redirect_ports(&ports)?;
        self.wanted = WantedReader::open(pins)?;
        self.reports.reopen(pins)?;
        self.control = Control::listen(&self.instance, true)?;
        Ok(())
    }

    fn exempt(&mut self) -> anyhow::Result<()> {
        let predecessor = self.predecessor.as_ref().map(|predecessor| predecessor.pid);
        let exempt = parts::exempt_cgroups(&kernel::find_mount()?, &self.cgroup, predecessor)?;
        Ok(self.settings.exempt(&exempt)?)
    }

    fn forget_predecessor(&mut self) {
        let Some(predecessor) = self.predecessor.take() else {
            return;
        };
        tracing::info!(pid = predecessor.pid, "the predecessor has ended");
        if let Err(error) = self.exempt() {
            tracing::warn!(
                error = format!("{error:#}"),
                "the predecessor's cgroup stays exempt"
            );
        }
    }

    /// Looks after links and pins: another program with the right to do so may detach or remove them at any time.
    fn mend(&mut self) {
        let error = match self.attachment.mend() {
            Ok(repairs) => {
                for Repair { name, found } in repairs {
                    tracing::error!(
                        name,
                        found,
                        "somebody has interfered with the enforcement: repaired"
                    );
                    self.repairs += 1;
                }
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if error != self.repair_error {
            match &error {
                Some(error) => tracing::error!(%error, "the enforcement is damaged and cannot be repaired"),
                None => tracing::info!("the enforcement is whole again"),
            }
            self.repair_error = error;
        }
    }

    fn sweep(&mut self) {
        self.sites.close_abandoned();
        self.services.names.sweep(Instant::now());
        match self.flows.sweep_stale() {
            Ok(0) => {}
            Ok(stale) => tracing::debug!(stale, "removed flows that were never accepted"),
            Err(error) => tracing::warn!(%error, "cannot sweep the flow table"),
        }
    }
}

/// Waits for the end of a predecessor, for ever if there is none.
async fn draining(predecessor: Option<&Draining>) {
    match predecessor {
        Some(predecessor) => predecessor.ended().await,
        None => std::future::pending().await,
    }
}

/// The ports to redirect: the configured ones and those that domain rules name.
fn redirected_ports(configured: &[u16], set: &PolicySet) -> anyhow::Result<Vec<u16>> {
    let mut ports: Vec<u16> = configured
        .iter()
        .copied()
        .chain(set.ports_by_domain().iter())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ensure!(
        ports.len() <= kernel::MOST_PORTS,
        "domain rules name {} ports: at most {} can be redirected, so name fewer or narrower ranges",
        ports.len(),
        kernel::MOST_PORTS
    );
    Ok(ports)
}
