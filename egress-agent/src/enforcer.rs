//! The enforcer: kernel programs, listeners and workers as one thing that starts, serves and stops. `exec` and `run`
//! differ in what they attach it to and in how long it lives.

mod control;
mod parts;
mod reports;
mod sites;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use egress_common::names::LAYOUT;
use ipnet::IpNet;
use tokio::sync::mpsc;

use control::Control;
use parts::Parts;
use reports::Reports;
use sites::Sites;

use crate::{
    drain::DrainTrigger,
    identity::Mapping,
    instance::{Instance, Traces},
    kernel::{self, Attachment, FlowTable, Inheritance, Repair, Settings, WantedReader},
    netns::Netns,
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
    flows: FlowTable,
    sites: Sites,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    control: Control,
    cgroup: PathBuf,
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
    /// Loads everything, in an order that leaves no moment in which a connect would be passed: tables first, listeners
    /// next, the programs last. Must be called inside a runtime. If it fails nothing stays, but what an agent that was
    /// killed had left: that goes on refusing.
    ///
    /// # Errors
    /// What is missing or refused, in a sentence.
    pub fn start(instance: Instance, settings: EnforcerSettings) -> anyhow::Result<Self> {
        let earlier = settings.may_inherit.then(|| instance.predecessor()).flatten();
        let inheritance = match (&earlier, settings.may_inherit) {
            (Some(earlier), _) => Inheritance::Layout(earlier.layout),
            (None, true) => Inheritance::Layout(0),
            (None, false) => Inheritance::None,
        };
        let attachment = match Attachment::load(instance.name(), &settings.cgroup, inheritance) {
            Ok(attachment) => attachment,
            Err(error) => {
                if earlier.is_none() {
                    instance
                        .release()
                        .context("cannot remove the state directory of a failed start")?;
                }
                return Err(error.into());
            }
        };
        let traces = Traces {
            pid: std::process::id(),
            pins: attachment.pin_path().to_path_buf(),
            cgroup: settings.cgroup.clone(),
            owns_cgroup: settings.owns_cgroup,
            // Until all programs use the new maps nobody may take them for what they are not.
            layout: match &earlier {
                Some(earlier) if earlier.layout != LAYOUT => 0,
                Some(_) | None => LAYOUT,
            },
            generation: earlier.map_or(0, |earlier| earlier.generation) + 1,
        };
        let built = instance
            .note(&traces)
            .context("cannot note what has to be cleaned up")
            .and_then(|()| Parts::build(&instance, &attachment, &settings));
        let mut enforcer = match built {
            Ok(parts) => parts.into_enforcer(instance, attachment, traces, settings),
            Err(error) => {
                abandon(instance, attachment);
                return Err(error);
            }
        };
        match enforcer.put_in_force() {
            Ok(()) => Ok(enforcer),
            Err(error) => {
                enforcer.stop_now();
                Err(error)
            }
        }
    }

    /// Serves requests for listeners, updates, reports and sweeps, until `stop` is ready.
    ///
    /// # Errors
    /// The kernel's side cannot be read any more.
    pub async fn serve(
        &mut self,
        updates: &mut mpsc::Receiver<Update>,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut report = tokio::time::interval(REPORT_PERIOD);
        let mut watch = tokio::time::interval(WATCH_PERIOD);
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                wanted = self.wanted.next() => self.sites.open_wanted(&wanted?, &self.workers),
                () = &mut stop => return Ok(()),
                Some(update) = updates.recv() => self.update(update),
                asked = self.control.accept() => {
                    let status = self.status();
                    control::answer(asked, &status).await;
                }
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

    fn put_in_force(&mut self) -> anyhow::Result<()> {
        let home = Netns::current()?;
        if self.attachment.is_inherited() {
            tracing::info!(
                generation = self.traces.generation,
                pins = %self.attachment.pin_path().display(),
                "taking over from an agent that did not end by itself"
            );
            self.flows.sweep_dead()?;
            self.sites.reopen(&home, &self.workers)?;
        }
        self.sites.open(home, &self.workers)?;
        self.attachment.attach()?;
        if self.traces.layout != LAYOUT {
            self.traces.layout = LAYOUT;
            self.instance.note(&self.traces)?;
        }
        Ok(())
    }

    fn stop_now(self) {
        self.drain.start(Duration::ZERO);
        self.workers.join();
        abandon(self.instance, self.attachment);
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
        match self.flows.sweep_stale() {
            Ok(0) => {}
            Ok(stale) => tracing::debug!(stale, "removed flows that were never accepted"),
            Err(error) => tracing::warn!(%error, "cannot sweep the flow table"),
        }
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

/// Undoes a failed start as far as nobody's enforcement depends on it.
fn abandon(instance: Instance, attachment: Attachment) {
    let keeps = attachment.is_inherited();
    if let Err(error) = attachment.abandon() {
        tracing::warn!(%error, "cannot remove the pins of a failed start");
    }
    if !keeps && let Err(error) = instance.release() {
        tracing::warn!(%error, "cannot remove the state directory of a failed start");
    }
}
