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

use super::{Enforcer, EnforcerSettings, control::Control, reports::Reports, roster::Roster, sites::Sites};
use crate::{
    drain::{self, DrainTrigger},
    identity::Identities,
    instance::{Instance, Traces},
    kernel::{
        self, Attachment, CgroupMount, DirectTable, FlowTable, HeldReader, ListenerTable, Settings,
        WantedReader,
    },
    proxy::{WorkerContext, WorkerCounts, Workers},
};

/// What is made between loading and attaching.
pub(super) struct Parts {
    settings: Settings,
    wanted: WantedReader,
    held: HeldReader,
    flows: FlowTable,
    direct: DirectTable,
    sites: Sites,
    workers: Workers,
    drain: DrainTrigger,
    reports: Reports,
    roster: Roster,
    control: Control,
}

impl Parts {
    pub(super) fn build(
        instance: &Instance,
        attachment: &Attachment,
        settings: &EnforcerSettings,
        predecessor: Option<u32>,
    ) -> anyhow::Result<Self> {
        let pins = attachment.pin_path();
        let mount = kernel::find_mount()?;
        let mut kernel_settings = Settings::open(pins)?;
        kernel_settings.internal(&settings.internal)?;
        kernel_settings.proxies(settings.services.proxy.addresses())?;
        kernel_settings.exempt(&exempt_cgroups(&mount, &settings.cgroup, predecessor)?)?;
        kernel_settings.enforce(fs::metadata(&settings.cgroup)?.ino())?;

        let identities = Arc::new(Identities::new(
            mount.path,
            settings.cgroup.clone(),
            settings.mappings.clone(),
        ));
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
        let workers = Workers::start(count, pins, &context)?;
        let table = Arc::new(Mutex::new(ListenerTable::open(pins)?));
        let legs = settings.services.dialer.settings().legs;
        Ok(Self {
            settings: kernel_settings,
            wanted: WantedReader::open(pins)?,
            held: HeldReader::open(pins)?,
            flows: FlowTable::open(pins)?,
            direct: DirectTable::open(pins)?,
            sites: Sites::new(table, legs, settings.cgroup.clone()),
            workers,
            drain,
            reports: Reports::open(pins)?,
            roster,
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
            direct,
            sites,
            workers,
            drain,
            reports,
            roster,
            control,
        } = self;
        Enforcer {
            instance,
            attachment,
            settings,
            wanted,
            held,
            flows,
            direct,
            sites,
            workers,
            drain,
            reports,
            roster,
            control,
            cgroup: from.cgroup,
            internal: from.internal,
            predecessor: None,
            traces,
            begun: Instant::now(),
            repairs: 0,
            repair_error: None,
            policy_error: None,
            services: from.services,
        }
    }
}

/// The cgroups whose connects are left alone: the agent's own if it is below the cgroup that it enforces, and that of a
/// predecessor that drains. Nobody else may be in it, because whoever shares it would be left alone too.
pub(super) fn exempt_cgroups(
    mount: &CgroupMount,
    enforced: &Path,
    predecessor: Option<u32>,
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
            own != enforced
                && members
                    .lines()
                    .all(|member| agents.iter().any(|agent| agent == member)),
            "the agent is in the enforced cgroup {} together with other processes: start it from another cgroup",
            own.display()
        );
        exempt.push(fs::metadata(&own)?.ino());
    }
    Ok(exempt)
}
