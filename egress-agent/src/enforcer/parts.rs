//! What an enforcer is made of besides programs and pins: tables, workers, readers, the control socket.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use anyhow::ensure;
use egress_common::listener::LISTENERS_PER_FAMILY;

use super::{
    Enforcer, EnforcerSettings, control::Control, fences::Fences, members::IdentityChanges, reports::Reports,
    roster::Roster, sites::Sites, strangers::Strangers,
};
use crate::{
    drain::{self, DrainTrigger},
    identity::Identities,
    instance::{Instance, Traces},
    kernel::{
        self, Attachment, CgroupMount, DirectTable, FlowTable, HeldReader, ListenerTable, Settings, UnderWay,
        VettedTable, WantedReader,
    },
    proxy::{WorkerContext, WorkerCounts, Workers},
    telemetry::Throttle,
};

/// What is made between loading and attaching.
pub(super) struct Parts {
    settings: Settings,
    wanted: WantedReader,
    held: HeldReader,
    flows: FlowTable,
    under_way: UnderWay,
    direct: DirectTable,
    sites: Sites,
    fences: Fences,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    roster: Roster,
    control: Control,
    identities: Arc<Identities>,
    changes: IdentityChanges,
    exempted: Vec<u64>,
}

impl Parts {
    pub(super) fn build(
        instance: &Instance,
        attachment: &Attachment,
        settings: &EnforcerSettings,
        predecessor: Option<u32>,
    ) -> anyhow::Result<Self> {
        let pins = attachment.pin_path();
        let mount = settings.mount.clone();
        let identities = Arc::new(Identities::new(
            mount.path.clone(),
            settings.cgroup.clone(),
            settings.mappings.clone(),
            settings.pods.clone(),
        )?);
        identities.refresh()?;
        let changes = IdentityChanges::of(&identities);
        let mut kernel_settings = Settings::open(pins)?;
        kernel_settings.internal(&settings.internal)?;
        kernel_settings.proxies(settings.services.proxy.addresses())?;
        let exempted = exempt_cgroups(&mount, &settings.cgroup, predecessor, &identities)?;
        kernel_settings.exempt(&exempted)?;
        kernel_settings.enforce(fs::metadata(&settings.cgroup)?.ino())?;

        let mut roster = Roster::open(pins, Arc::clone(&identities), &settings.ports)?;
        roster.enrol(&settings.services.policy.load())?;
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
        settings.services.dialer.pass_fences(VettedTable::open(pins)?);
        let workers = Workers::start(count, pins, &context)?;
        let table = Arc::new(Mutex::new(ListenerTable::open(pins)?));
        let legs = settings.services.dialer.settings().legs;
        Ok(Self {
            settings: kernel_settings,
            wanted: WantedReader::open(pins)?,
            held: HeldReader::open(pins)?,
            flows: FlowTable::open(pins)?,
            under_way: UnderWay::open(pins)?,
            direct: DirectTable::open(pins)?,
            sites: Sites::new(table, legs, settings.cgroup.clone()),
            fences: Fences::new(!settings.packet_fence, Arc::clone(&identities))?,
            workers,
            drain,
            reports: Reports::open(pins)?,
            roster,
            identities,
            changes,
            exempted,
            control: Control::listen(instance, settings.may_inherit)?,
        })
    }

    pub(super) fn into_enforcer(
        self,
        instance: Instance,
        attachment: Attachment,
        traces: Traces,
        from: EnforcerSettings,
    ) -> Enforcer {
        let Self {
            settings,
            wanted,
            held,
            flows,
            under_way,
            direct,
            sites,
            fences,
            workers,
            drain,
            reports,
            roster,
            control,
            identities,
            changes,
            exempted,
        } = self;
        Enforcer {
            instance,
            attachment,
            settings,
            wanted,
            held,
            flows,
            under_way,
            not_settled: Throttle::default(),
            direct,
            sites,
            fences,
            workers,
            drain,
            reports,
            roster,
            control,
            mount: from.mount,
            cgroup: from.cgroup,
            identities,
            node: from.node,
            changes,
            exempted,
            strangers: Strangers::default(),
            internal: from.internal,
            predecessor: None,
            traces,
            begun: Instant::now(),
            repairs: 0,
            repair_error: None,
            policy_error: None,
            refused: None,
            services: from.services,
        }
    }
}

/// Cgroups that the kernel's table can hold, with room for agents that come and go. Exempt ones beyond are redirected
/// and pass through the proxy, which is slower.
const MOST_EXEMPT: usize = kernel::MOST_EXEMPT - 8;

/// The cgroups whose connects are left alone: the agent's own if it is below the cgroup that it enforces, that of a
/// predecessor that drains, and those of exempt pods. Nobody else may be in an agent's, because whoever shares it would be
/// left alone too; in a pod it is the container's, which is the agent's alone but for probes.
pub(super) fn exempt_cgroups(
    mount: &CgroupMount,
    enforced: &Path,
    predecessor: Option<u32>,
    identities: &Identities,
) -> anyhow::Result<Vec<u64>> {
    let agents: Vec<String> = predecessor
        .into_iter()
        .chain([std::process::id()])
        .map(|pid| pid.to_string())
        .collect();
    let mut exempt = Vec::new();
    for agent in &agents {
        let own = match kernel::cgroup_of(mount, agent) {
            Ok(own) => own,
            // A predecessor that has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if !own.starts_with(enforced) {
            continue;
        }
        let members = fs::read_to_string(own.join("cgroup.procs"))?;
        ensure!(
            identities.is_container(&own)
                || own != enforced
                    && members
                        .lines()
                        .all(|member| agents.iter().any(|agent| agent == member)),
            "the agent is in the enforced cgroup {} together with other processes: start it from another cgroup",
            own.display()
        );
        exempt.push(fs::metadata(&own)?.ino());
    }
    let all = identities.all().into_iter();
    let mut pods: Vec<u64> = all
        .filter(|(_, workload)| workload.is_exempt())
        .map(|(cgroup, _)| cgroup)
        .filter(|cgroup| !exempt.contains(cgroup))
        .collect();
    pods.sort_unstable();
    if pods.len() > MOST_EXEMPT {
        tracing::warn!(
            cgroups = pods.len(),
            most = MOST_EXEMPT,
            "too many exempt cgroups for the kernel's table"
        );
        pods.truncate(MOST_EXEMPT);
    }
    exempt.extend(pods);
    Ok(exempt)
}
