//! The enforcer: kernel programs, listeners and workers as one thing that starts, serves and stops. `exec` and `run`
//! differ in what they attach it to and in how long it lives.

mod census;
mod control;
mod failures;
mod fences;
mod handover;
mod ledger;
mod members;
mod parts;
mod purge;
mod reports;
mod roster;
mod sites;
mod start;
mod strangers;

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use egress_common::event::ListenerWanted;
use ipnet::IpNet;
use tokio::sync::mpsc;

use self::{
    census::Census, control::Control, fences::Fences, handover::Draining, ledger::Ledger,
    members::IdentityChanges, reports::Reports, roster::Roster, sites::Sites, strangers::Strangers,
};
pub use self::{
    handover::{Channel, Predecessor},
    start::Claim,
};

use crate::{
    access_log::AccessLog,
    cluster::Cluster,
    drain::DrainTrigger,
    identity::{Identities, Mapping, PodDirectory, PodSource},
    instance::{Instance, Traces},
    kernel::{
        Attachment, CgroupMount, DirectTable, Due, FlowTable, HeldReader, Repair, Settings, UnderWay,
        WantedReader,
    },
    policy::PolicySet,
    proxy::{Services, Workers},
    telemetry::Throttle,
};

/// How often the kernel's reports are fetched: it never wakes us for them.
const REPORT_PERIOD: Duration = Duration::from_millis(250);
/// How often what nobody uses any more is looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// How often policies that did not fit are tried again at least.
const TRY_PERIOD: Duration = Duration::from_secs(60);

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

/// A node of a cluster, for `status`.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its API server.
    pub cluster: Cluster,
    /// Its pods.
    pub directory: Arc<PodDirectory>,
}

/// What an enforcer is made from.
#[derive(Debug)]
pub struct EnforcerSettings {
    /// Where the cgroup2 hierarchy is mounted.
    pub mount: CgroupMount,
    /// The cgroup whose members are enforced.
    pub cgroup: PathBuf,
    /// Whether it goes with the enforcer.
    pub owns_cgroup: bool,
    /// Whether what an agent of the same name left, that did not end by itself, is taken over. Otherwise it is in the way.
    pub may_inherit: bool,
    /// What the cgroups below it are.
    pub mappings: Vec<Mapping>,
    /// Where pods are found, on a node of a cluster.
    pub pods: Option<PodSource>,
    /// What `status` tells of the cluster, on a node.
    pub node: Option<Node>,
    /// Destinations that are left alone.
    pub internal: Vec<IpNet>,
    /// TCP ports that are redirected besides those that domain rules name.
    pub ports: Vec<u16>,
    /// Whether packets that leave a network namespace without a socket are let go.
    pub packet_fence: bool,
    /// Policies, dialer, log, limits.
    pub services: Arc<Services>,
}

/// Programs in force, listeners open, workers running.
#[derive(Debug)]
pub struct Enforcer {
    instance: Instance,
    attachment: Attachment,
    settings: Settings,
    wanted: WantedReader,
    held: HeldReader,
    flows: FlowTable,
    under_way: UnderWay,
    not_settled: Throttle,
    direct: DirectTable,
    sites: Sites,
    fences: Fences,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    roster: Roster,
    control: Control,
    mount: CgroupMount,
    cgroup: PathBuf,
    identities: Arc<Identities>,
    node: Option<Node>,
    changes: IdentityChanges,
    /// The cgroups that the kernel leaves alone now.
    exempted: Vec<u64>,
    /// Who was unknown when the enforcement began.
    strangers: Strangers,
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
    /// The newest policies, if they are not in force because they did not fit: what was in force before takes room for some
    /// seconds more.
    refused: Option<Refused>,
    services: Arc<Services>,
}

/// Policies that did not fit.
#[derive(Debug)]
struct Refused {
    set: Arc<PolicySet>,
    /// What is wrong with files that are not among them.
    file_errors: Option<String>,
    tried: Instant,
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
                wanted = self.wanted.next() => self.open_wanted(&wanted?),
                held = self.held.next() => self.sites.answer_held(held?, &self.workers, &self.identities),
                () = &mut stop => return Ok(Served::Stopped),
                Some(update) = updates.recv() => self.update(update),
                asked = self.control.accept() => control::answer(asked, |question| self.tell(question)).await,
                asked = self.control.successor() => if let Some(channel) = self.hand_over(asked) {
                    return Ok(Served::HandedOver(channel));
                },
                what = self.changes.next() => self.follow_identities(what),
                () = draining(self.predecessor.as_ref()) => self.forget_predecessor(),
                _tick = report.tick() => {
                    self.report();
                    self.settle();
                }
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
        self.sites.stop_accepting();
        // Boxed, as it holds all that this one does.
        let (attachment, instance) = Box::pin(self.wind_up(true)).await?;
        attachment.remove().context("cannot remove the pins")?;
        instance.release().context("cannot remove the state directory")?;
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
        // What is counted and not reported yet is the successor's to tell.
        Box::pin(self.wind_up(false)).await.map(drop)
    }

    /// Waits until the workers have ended and logs the kernel's last reports, with `is_last` also what it has counted and not
    /// reported yet.
    async fn wind_up(self, is_last: bool) -> anyhow::Result<(Attachment, Instance)> {
        let Self {
            workers,
            mut reports,
            roster,
            sites,
            services,
            attachment,
            instance,
            ..
        } = self;
        tokio::task::spawn_blocking(move || workers.join())
            .await
            .context("a worker failed")?;
        let ledger = Ledger {
            identities: roster.identities(),
            sites: &sites,
            set: &services.policy.load(),
        };
        reports.fetch(&ledger, &services.log);
        if is_last {
            reports.sweep(&ledger, &services.log, Due::All);
        }
        drop(sites);
        close(&services.log);
        Ok((attachment, instance))
    }

    /// After a hand-over: lets open connections end by themselves within `grace`, and removes nothing. New policies reach
    /// them still. `stop` returns each time it is asked to stop: the first time changes nothing, because this is how an
    /// update ends every agent that has handed over; the second time nobody waits any longer. Tells whether it was stopped.
    ///
    /// # Errors
    /// A worker failed.
    pub async fn retire(
        mut self,
        grace: Duration,
        successor: Channel,
        updates: &mut mpsc::Receiver<Update>,
        stop: &mut impl AsyncFnMut(),
    ) -> anyhow::Result<bool> {
        self.drain.start(grace);
        self.sites.close_all();
        // The successor's from now on: whoever comes after it must not find our hand on the lock.
        drop((self.instance, self.attachment, self.control, self.wanted));
        let workers = self.workers;
        let mut joined = tokio::task::spawn_blocking(move || workers.join());
        let mut stops = 0;
        let mut stopping = Box::pin(stop());
        loop {
            tokio::select! {
                joined = &mut joined => break joined.context("a worker failed")?,
                Some(update) = updates.recv() => if let Update::Policies(set) = update {
                    self.services.policy.replace(Arc::new(*set));
                },
                () = &mut stopping => {
                    drop(stopping);
                    stops += 1;
                    if stops > 1 {
                        self.drain.start(Duration::ZERO);
                    }
                    stopping = Box::pin(stop());
                }
            }
        }
        drop(stopping);
        close(&self.services.log);
        drop(successor);
        Ok(stops > 0)
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Policies(set) => {
                let file_errors = set.origin().file_errors.clone();
                self.take_in(Arc::new(*set), file_errors);
            }
            // Whoever read them has logged it.
            Update::BrokenPolicies(problem) => {
                if let Some(refused) = &mut self.refused {
                    refused.file_errors = Some(problem.clone());
                }
                self.policy_error = Some(problem);
            }
        }
    }

    fn take_in(&mut self, set: Arc<PolicySet>, file_errors: Option<String>) {
        self.refused = None;
        match self.apply(&set) {
            // What the API server has changed is in force; the files are as broken as before, and that is logged.
            Ok(()) => self.policy_error = file_errors,
            Err(error) => {
                let problem = format!("{error:#}");
                if self.policy_error.as_ref() != Some(&problem) {
                    tracing::error!(problem, "new policies are not in force, the last good ones stay");
                }
                self.policy_error = Some(problem);
                self.refused = Some(Refused {
                    set,
                    file_errors,
                    tried: Instant::now(),
                });
            }
        }
    }

    /// Tries policies again that did not fit, once there is as much room as there will be; after a while also if policies
    /// come and go so fast that this never is.
    fn try_refused(&mut self) {
        let is_due = |refused: &mut Refused| self.roster.is_swept() || refused.tried.elapsed() >= TRY_PERIOD;
        if let Some(refused) = self.refused.take_if(is_due) {
            self.take_in(refused.set, refused.file_errors);
        }
    }

    /// Puts a policy set in force, in the kernel first: what that sends to the proxy is then judged by the same set, or a
    /// moment earlier by the one before.
    fn apply(&mut self, set: &Arc<PolicySet>) -> anyhow::Result<()> {
        let has_news = self.roster.enrol(set)?;
        let counts = set.counts();
        tracing::info!(
            policies = counts.policies,
            rules = counts.rules,
            "policies are in force"
        );
        self.services.policy.replace(Arc::clone(set));
        match self.sites.census() {
            Ok(census) => {
                if has_news {
                    self.purge(census.open_namespaces());
                    self.forget_strangers();
                }
                self.review_fences(&census);
            }
            Err(error) => tracing::error!(
                %error,
                "cannot look at what is open already: it is not judged by the new policies"
            ),
        }
        Ok(())
    }

    /// Opens the namespaces in which somebody waits, and learns whose the cgroups are that have turned up.
    fn open_wanted(&mut self, wanted: &[ListenerWanted]) {
        let cgroups = wanted.iter().map(|wanted| wanted.cgroup);
        let unknown: Vec<u64> = cgroups.filter(|cgroup| !self.roster.knows(*cgroup)).collect();
        self.enrol_those(unknown);
        // Before there are listeners: no packet leaves a namespace before its fence stands.
        self.fences
            .announced(wanted, &mut self.attachment, &self.services.policy);
        self.sites.open_wanted(wanted, &self.workers, &self.identities);
    }

    fn review_fences(&mut self, census: &Census) {
        self.fences
            .review(census, &mut self.attachment, &self.services.policy);
    }

    fn ledger<'a>(&'a self, set: &'a Arc<PolicySet>) -> Ledger<'a> {
        Ledger {
            identities: self.roster.identities(),
            sites: &self.sites,
            set,
        }
    }

    fn report(&mut self) {
        let set = self.services.policy.load();
        let ledger = Ledger {
            identities: self.roster.identities(),
            sites: &self.sites,
            set: &set,
        };
        self.reports.fetch(&ledger, &self.services.log);
    }

    fn settle(&mut self) {
        if let Err(error) = self.under_way.settle()
            && let Some(unsaid) = self.not_settled.pass(Instant::now())
        {
            tracing::error!(%error, unsaid, "cannot tell which connects are under way: workloads with many are refused further ones");
        }
    }

    /// Fills the tables with what this agent is configured to, and reads the reports from where they have been read.
    fn refill(&mut self) -> anyhow::Result<()> {
        self.exempt()?;
        let pins = self.attachment.pin_path();
        self.settings.internal(&self.internal)?;
        self.settings.proxies(self.services.proxy.addresses())?;
        self.roster.reopen(pins)?;
        self.roster.enrol(&self.services.policy.load())?;
        self.direct = DirectTable::open(pins)?;
        self.wanted = WantedReader::open(pins)?;
        self.reports.reopen(pins)?;
        self.control = Control::listen(&self.instance, true)?;
        Ok(())
    }

    fn exempt(&mut self) -> anyhow::Result<()> {
        let predecessor = self.predecessor.as_ref().map(|predecessor| predecessor.pid);
        self.exempted = parts::exempt_cgroups(&self.mount, &self.cgroup, predecessor, &self.identities)?;
        Ok(self.settings.exempt(&self.exempted)?)
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
        let mut repairs = Vec::new();
        let mended = self.attachment.mend(&mut repairs);
        for Repair { name, found } in repairs {
            tracing::error!(
                name,
                found,
                "somebody has interfered with the enforcement: repaired"
            );
            self.repairs += 1;
        }
        let error = mended.err().map(|error| format!("{error:#}"));
        if error != self.repair_error {
            match &error {
                Some(error) => tracing::error!(%error, "the enforcement is damaged and cannot be repaired"),
                None => tracing::info!("the enforcement is whole again"),
            }
            self.repair_error = error;
        }
    }

    fn sweep(&mut self) {
        match self.sites.census() {
            Ok(census) => {
                self.sites.close_abandoned(&census);
                self.review_fences(&census);
            }
            // Nobody is taken for gone: what is open stays so, and fences stand.
            Err(error) => tracing::error!(%error, "cannot tell which network namespaces are in use"),
        }
        self.identities.sweep(Instant::now());
        self.follow_exempt();
        self.enrol();
        if let Err(error) = self.roster.sweep() {
            tracing::warn!(%error, "cannot remove policies that are out of force");
        }
        self.try_refused();
        let set = self.services.policy.load();
        let ledger = Ledger {
            identities: self.roster.identities(),
            sites: &self.sites,
            set: &set,
        };
        self.reports.sweep(&ledger, &self.services.log, Due::Silent);
        self.services.names.sweep(Instant::now());
        match self.flows.sweep_stale() {
            Ok(0) => {}
            Ok(stale) => tracing::debug!(stale, "removed flows that were never accepted"),
            Err(error) => tracing::warn!(%error, "cannot sweep the flow table"),
        }
    }
}

/// Lets the log write what it has.
fn close(log: &AccessLog) {
    if let Err(unwritten) = log.close(LOG_PATIENCE) {
        tracing::error!(error = %unwritten, "the access log did not take everything");
    }
}

/// Waits for the end of a predecessor, for ever if there is none.
async fn draining(predecessor: Option<&Draining>) {
    match predecessor {
        Some(predecessor) => predecessor.ended().await,
        None => std::future::pending().await,
    }
}
