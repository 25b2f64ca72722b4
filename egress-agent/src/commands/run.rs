//! `run`: the daemon.

mod node;
mod place;
mod policies;

use std::{io, path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use self::policies::Policies;
use crate::{
    access_log::{AccessLog, Options},
    cli::RunArgs,
    config::{Config, OnStop},
    dns::{ForwardSettings, Forwarder, NameTable},
    enforcer::{Claim, Enforcer, EnforcerSettings, Predecessor, Served, Update},
    instance::Instance,
    kernel,
    policy::{self, DenialFeed, PolicySet, PolicySource, PolicyStore, Sources},
    proxy::{
        Services,
        dial::{DialSettings, Dialer},
        resolve::{NameServers, ResolveSettings},
    },
};

/// Updates that may wait for the enforcer: they are rare, and each replaces the one before.
const UPDATES: usize = 4;

/// Has the search list that pods have, which the kubelet writes into it.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What is missing or wrong, in a sentence; nothing has been changed then.
pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (take_over, hold) = (args.take_over, args.hold);
    let config = configuration(args)?;
    kernel::require()?;
    kernel::require_lasting_pins()?;
    raise_descriptor_limit();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon(config, take_over, hold))
}

/// A tunnel takes two descriptors, and the soft limit is 1024 by default, for the sake of programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(descriptors) => tracing::debug!(descriptors, "the limit of open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// The file, overridden by the command line.
fn configuration(args: RunArgs) -> anyhow::Result<Config> {
    let mut config = args
        .config
        .as_deref()
        .map(Config::load)
        .transpose()?
        .unwrap_or_default();
    config.cgroup = args.cgroup.or(config.cgroup);
    config.policy_dir = args.policy_dir.or(config.policy_dir);
    Ok(config)
}

async fn daemon(config: Config, take_over: bool, hold: bool) -> anyhow::Result<ExitCode> {
    let mut stop_signals = StopSignals::listen()?;
    let prepared = async {
        let mut place = place::find(&config).await?;
        let followed = match (&config.kubernetes, place.pods.take()) {
            // At a node's boot there is no API server that would answer.
            (Some(entries), Some(root)) if !hold => {
                Some(node::follow(entries, &config.instance, &place, root).await?)
            }
            _ => None,
        };
        anyhow::Ok((place, followed))
    };
    let (place, followed) = tokio::select! {
        biased;
        () = stop_signals.recv() => return Ok(ExitCode::SUCCESS),
        prepared = prepared => prepared?,
    };
    let cgroup = place.cgroup;
    let mut reload_signal = signal(SignalKind::hangup())?;
    let mut policies = Policies::prepare(&config, followed.as_ref().map(|followed| &followed.node))?;
    let mut sources = Sources::start(&source(&config), policies.published.take())?;
    let first = tokio::select! {
        biased;
        () = stop_signals.recv() => return Ok(ExitCode::SUCCESS),
        // Whoever only holds denies everything: the kernel's tables must not say of anybody that he may pass.
        () = std::future::ready(()), if hold => PolicySet::default(),
        first = sources.first() => first,
    };
    let services = services(&config, first, &policies.denials)?;
    let (log, dns_log) = (services.log.clone(), services.dns.log().clone());
    let claim = claim(&config.instance, &cgroup, take_over)?;
    let settings = EnforcerSettings {
        mount: place.mount,
        cgroup: cgroup.clone(),
        owns_cgroup: false,
        may_inherit: true,
        mappings: config.mappings(),
        pods: followed.as_ref().map(|followed| followed.source.clone()),
        node: followed.as_ref().map(|followed| followed.node.clone()),
        internal: config.internal.clone(),
        ports: config.ports.clone(),
        packet_fence: config.packet_fence,
        services: Arc::clone(&services),
    };
    if !config.packet_fence {
        tracing::warn!(
            "packetFence is switched off: what packet sockets and TUN devices send, and what address translation inside a \
             network namespace makes of a packet, is not seen"
        );
    }
    let mut enforcer = Enforcer::start(claim, settings)?;
    if hold {
        enforcer.leave(Duration::ZERO).await?;
        return Ok(ExitCode::SUCCESS);
    }
    tracing::info!(cgroup = %cgroup.display(), "enforcing");

    let told = policies.tell(services);
    let (updates, mut updated) = mpsc::channel(UPDATES);
    let reload = sources.reload_handle();
    // Follows policies and signals until it is asked to stop.
    let mut stop = async || {
        loop {
            // Room first: what has been read is not to be lost if this is not waited for any longer.
            let next = async {
                let room = updates.reserve().await;
                (room, sources.next().await)
            };
            tokio::select! {
                biased;
                () = stop_signals.recv() => return,
                _hup = reload_signal.recv() => {
                    log.reopen();
                    dns_log.reopen();
                    reload.request();
                }
                (room, loaded) = next => {
                    let update = loaded.map_or_else(
                        |errors| Update::BrokenPolicies(errors.to_string()),
                        |set| Update::Policies(Box::new(set)),
                    );
                    // The receiver lives longer than this.
                    if let Ok(room) = room {
                        room.send(update);
                    }
                }
            }
        }
    };
    let served = {
        let mut stopping = std::pin::pin!(stop());
        enforcer.serve(&mut updated, stopping.as_mut()).await
    };
    let served = served.context("the kernel's side failed")?;
    // A successor speaks for the node from now on.
    drop(told);
    if let Served::HandedOver(successor) = served {
        let grace = config.handover_drain();
        tracing::info!(seconds = grace.as_secs(), "draining");
        let is_stopped = enforcer.retire(grace, successor, &mut updated, &mut stop).await?;
        // Its container would be started again, and take the place back from its successor.
        if config.on_stop == OnStop::Hold && !is_stopped {
            tracing::info!("nothing is left to do: waiting to be stopped");
            stop().await;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let grace = config.drain();
    tracing::info!(seconds = grace.as_secs(), "draining");
    let mut second_signal = StopSignals::listen()?;
    let ending = async {
        match config.on_stop {
            OnStop::Remove => enforcer.stop(grace).await,
            OnStop::Hold => enforcer.leave(grace).await,
        }
    };
    tokio::select! {
        stopped = ending => stopped?,
        // Whoever sends it will not wait.
        () = second_signal.recv() => bail!("stopped before the open connections had ended: run `egress-agent cleanup`"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The name, free or from the agent that has it.
fn claim(name: &str, cgroup: &Path, take_over: bool) -> anyhow::Result<Claim> {
    match Instance::claim(name) {
        Ok(instance) => Ok(Claim::Free(instance)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && take_over => {
            Predecessor::ask(name, cgroup).map(Claim::Handed)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(error).context("start with --take-over to take its place")
        }
        Err(error) => Err(error.into()),
    }
}

fn source(config: &Config) -> PolicySource {
    let settings = policy::Settings {
        unselected: config.unselected,
        audit: config.audit,
    };
    PolicySource::new(settings).with_paths(config.policy_dir.clone())
}

fn services(config: &Config, policies: PolicySet, denials: &DenialFeed) -> anyhow::Result<Arc<Services>> {
    let policy = PolicyStore::default();
    policy.replace(Arc::new(policies));
    let options = Options {
        strip_query_terms: config.strip_query_terms,
        ..Options::default()
    };
    let log = AccessLog::start_with(config.outputs(), &options).context("cannot open the access log")?;
    let log = log.with_denials(denials.clone());
    let mut resolve = ResolveSettings::default();
    if !config.nameservers.is_empty() {
        resolve.servers = NameServers::List(config.nameservers.clone());
    }
    let forward = ForwardSettings {
        servers: resolve.servers.clone(),
        internal: config.internal.clone(),
        internal_names: config.dns.internal_names(),
        ech: config.dns.ech,
        ..ForwardSettings::default()
    };
    let names = Arc::new(NameTable::new(config.dns.name_limits()));
    let limits = config.limits();
    let dial = DialSettings {
        mode: config.dial,
        resolve,
        timeout: limits.connect_timeout,
        internal: config.internal.clone(),
        parent: config.parent_proxy()?,
        ..DialSettings::default()
    };
    Ok(Arc::new(Services {
        policy,
        dialer: Dialer::new(dial),
        dns: Forwarder::new(forward, Arc::clone(&names), config.dns.open_log()?)
            .with_denials(denials.clone(), Path::new(RESOLV_CONF)),
        names,
        client_first: config.ports.clone(),
        proxy: config.explicit_proxy(),
        log,
        limits,
    }))
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _term = self.terminate.recv() => {}
            _int = self.interrupt.recv() => {}
        }
    }
}
