//! The enforcer: kernel programs, listeners and workers as one thing that starts, serves and stops. `exec` and `run`
//! differ in what they attach it to and in how long it lives.

mod control;
mod reports;
mod sites;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use egress_common::listener::LISTENERS_PER_FAMILY;
use ipnet::IpNet;
use tokio::sync::mpsc;

use control::Control;
use reports::Reports;
use sites::Sites;

use crate::{
    drain::{self, DrainTrigger},
    identity::{Identities, Mapping},
    instance::{Instance, Traces},
    kernel::{self, Attachment, CgroupMount, Counts, FlowTable, ListenerTable, Settings, WantedReader},
    netns::Netns,
    policy::PolicySet,
    proxy::{Services, WorkerContext, WorkerCounts, Workers},
};

/// How often the kernel's reports are fetched: it never wakes us for them.
const REPORT_PERIOD: Duration = Duration::from_millis(250);
/// How often what nobody uses any more is looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

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
    policy_error: Option<String>,
    services: Arc<Services>,
}

impl Enforcer {
    /// Loads everything, in an order that leaves no moment in which a connect would be passed: tables first, listeners
    /// next, the programs last. Must be called inside a runtime. If it fails nothing stays.
    ///
    /// # Errors
    /// What is missing or refused, in a sentence.
    pub fn start(instance: Instance, settings: EnforcerSettings) -> anyhow::Result<Self> {
        let attachment = Attachment::load(instance.name())?;
        instance
            .note(&Traces {
                pid: std::process::id(),
                pins: attachment.pin_path().to_path_buf(),
                cgroup: settings.cgroup.clone(),
                owns_cgroup: settings.owns_cgroup,
            })
            .context("cannot note what has to be cleaned up")?;
        let pins = attachment.pin_path().to_path_buf();
        let socket = instance.socket();
        let mut enforcer = match Parts::build(&pins, &socket, &settings) {
            Ok(parts) => parts.into_enforcer(instance, attachment, settings),
            Err(error) => {
                attachment
                    .remove()
                    .context("cannot remove the pins of a failed start")?;
                instance
                    .release()
                    .context("cannot remove the state directory of a failed start")?;
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
        self.sites.open(Netns::current()?, &self.workers)?;
        self.attachment.attach(&self.cgroup)?;
        Ok(())
    }

    fn stop_now(self) {
        self.drain.start(Duration::ZERO);
        self.workers.join();
        if let Err(error) = self.attachment.remove() {
            tracing::warn!(%error, "cannot remove the pins of a failed start");
        }
        if let Err(error) = self.instance.release() {
            tracing::warn!(%error, "cannot remove the state directory of a failed start");
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

/// If the agent is below the cgroup that it enforces, its own connects must be left alone. It then needs a cgroup to
/// itself, because whoever shares it would be left alone too.
fn exempt_own_cgroup(mount: &CgroupMount, enforced: &Path, settings: &mut Settings) -> anyhow::Result<()> {
    let own = kernel::own_cgroup(mount)?;
    if !own.starts_with(enforced) {
        return Ok(());
    }
    let members = fs::read_to_string(own.join("cgroup.procs"))?;
    let pid = std::process::id().to_string();
    ensure!(
        own != enforced && members.lines().all(|member| member == pid),
        "the agent is in the enforced cgroup {} together with other processes: start it from another cgroup",
        own.display()
    );
    settings.exempt(fs::metadata(&own)?.ino())?;
    Ok(())
}

/// What is made between loading and attaching.
struct Parts {
    settings: Settings,
    wanted: WantedReader,
    flows: FlowTable,
    sites: Sites,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    control: Control,
}

impl Parts {
    fn build(pins: &Path, socket: &Path, settings: &EnforcerSettings) -> anyhow::Result<Self> {
        let mount = kernel::find_mount()?;
        let mut kernel_settings = Settings::open(pins)?;
        for prefix in &settings.internal {
            kernel_settings.internal(*prefix)?;
        }
        exempt_own_cgroup(&mount, &settings.cgroup, &mut kernel_settings)?;
        let ports = redirected_ports(&settings.ports, &settings.services.policy.load())?;
        kernel_settings.redirect_ports(&ports)?;

        let identities = Arc::new(Identities::new(
            mount.path,
            settings.cgroup.clone(),
            settings.mappings.clone(),
        ));
        let (drain, watcher) = drain::channel();
        let context = WorkerContext {
            services: Arc::clone(&settings.services),
            identities: Arc::clone(&identities),
            drain: watcher,
            counts: Arc::new(WorkerCounts::default()),
        };
        // More workers than listeners of a family would idle.
        let count = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(LISTENERS_PER_FAMILY);
        let workers = Workers::start(count, pins, &context)?;
        let table = Arc::new(Mutex::new(ListenerTable::open(pins)?));
        let legs = settings.services.dialer.settings().legs;
        Ok(Self {
            settings: kernel_settings,
            wanted: WantedReader::open(pins)?,
            flows: FlowTable::open(pins)?,
            sites: Sites::new(table, legs, settings.cgroup.clone()),
            workers,
            drain,
            reports: Reports::new(kernel::EventReader::open(pins)?, Counts::open(pins)?, identities),
            control: Control::listen(socket)?,
        })
    }

    fn into_enforcer(self, instance: Instance, attachment: Attachment, from: EnforcerSettings) -> Enforcer {
        let Self {
            settings,
            wanted,
            flows,
            sites,
            workers,
            drain,
            reports,
            control,
        } = self;
        Enforcer {
            instance,
            attachment,
            settings,
            ports: from.ports,
            wanted,
            flows,
            sites,
            workers,
            drain,
            reports,
            control,
            cgroup: from.cgroup,
            policy_error: None,
            services: from.services,
        }
    }
}
