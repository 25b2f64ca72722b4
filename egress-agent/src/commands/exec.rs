//! `exec`: one command under the enforcer.

pub(super) mod cgroup;
mod child;
mod user;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::runtime;

use crate::{
    access_log::{AccessLog, Output, Target},
    cli::ExecArgs,
    config, console,
    dns::{DnsLog, ForwardSettings, Forwarder, NameTable, names::NameLimits},
    enforcer::{Claim, Enforcer, EnforcerSettings},
    identity::{Mapping, Workload},
    instance::Instance,
    kernel,
    policy::{self, PolicySource, PolicyStore, Unselected},
    proxy::{
        Services,
        dial::{DialSettings, Dialer},
        explicit::ExplicitProxy,
        limits::Limits,
        resolve::{NameServers, ResolveSettings},
    },
};
use cgroup::OwnCgroup;

/// What `env(1)`, `timeout(1)` and their like end with when they themselves fail.
const OWN_FAILURE: u8 = 125;

/// How long connections of an ended command may take to end. Its sockets are closed by then; what is left are answers
/// that nobody reads.
const GRACE: Duration = Duration::from_secs(1);

/// Runs the command and tells its exit status.
#[must_use]
pub(super) fn run(args: &ExecArgs) -> ExitCode {
    match execute(args) {
        Ok(status) => status,
        Err(error) => {
            console::complain(format_args!("egress-agent: {error:#}"));
            ExitCode::from(OWN_FAILURE)
        }
    }
}

fn execute(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    kernel::require()?;
    let identity = user::identity(args.user.as_deref())?;
    // Before any thread exists, so that all inherit the mask.
    let signals = child::block_signals()?;
    let services = services(args)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let instance = Instance::claim(&format!("exec-{}", std::process::id()))?;
        let cgroup = match OwnCgroup::make(instance.name()) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                instance.release()?;
                return Err(error);
            }
        };
        let settings = EnforcerSettings {
            mount: kernel::find_mount()?,
            cgroup: cgroup.path().to_path_buf(),
            owns_cgroup: true,
            may_inherit: false,
            mappings: vec![Mapping {
                path: "".into(),
                workload: workload(args),
            }],
            pods: None,
            node: None,
            internal: args.internal.clone(),
            ports: config::DEFAULT_PORTS.to_vec(),
            // The command is as a rule in the agent's own network namespace, which cannot be fenced.
            packet_fence: false,
            services,
        };
        let mut enforcer = match Enforcer::start(Claim::Free(instance), settings) {
            Ok(enforcer) => enforcer,
            Err(error) => {
                cgroup.remove()?;
                return Err(error);
            }
        };
        let result = child::run(args, identity.as_deref(), cgroup.path(), &mut enforcer, signals).await;
        // What the command left running would otherwise run on unjudged.
        let emptied = cgroup.empty().await;
        enforcer.stop(GRACE).await?;
        emptied.context("processes of the command are left in its cgroup")?;
        cgroup.remove()?;
        result
    })
}

fn services(args: &ExecArgs) -> anyhow::Result<Arc<Services>> {
    let settings = policy::Settings {
        unselected: Unselected::Enforce,
        audit: args.audit,
    };
    let set = PolicySource::new(settings)
        .with_paths(args.policies.iter().cloned())
        .with_patterns(args.allow.iter().cloned())
        .load()?;
    let log = match &args.access_log {
        None => AccessLog::disabled(),
        Some(path) => {
            let target = if path.as_os_str() == "-" {
                Target::Stderr
            } else {
                Target::File(path.clone())
            };
            AccessLog::start(vec![Output {
                format: args.log_format.clone(),
                target,
                opened: false,
            }])
            .with_context(|| format!("cannot open the access log {}", path.display()))?
        }
    };
    let mut resolve = ResolveSettings::default();
    if !args.nameservers.is_empty() {
        resolve.servers = NameServers::List(args.nameservers.clone());
    }
    let forward = ForwardSettings {
        servers: resolve.servers.clone(),
        internal: args.internal.clone(),
        internal_names: args.internal_names.clone(),
        ..ForwardSettings::default()
    };
    let names = Arc::new(NameTable::new(NameLimits::default()));
    let limits = Limits::default();
    let dial = DialSettings {
        mode: args.dial,
        resolve,
        timeout: limits.connect_timeout,
        internal: args.internal.clone(),
        parent: args.parent_proxy.clone(),
        ..DialSettings::default()
    };
    let proxy = ExplicitProxy::new(&args.explicit_proxy, &config::DEFAULT_PORTS)
        .map_err(|problem| anyhow::anyhow!("--explicit-proxy: {problem}"))?;
    let policy = PolicyStore::default();
    policy.replace(Arc::new(set));
    Ok(Arc::new(Services {
        policy,
        dialer: Dialer::new(dial),
        dns: Forwarder::new(forward, Arc::clone(&names), DnsLog::default()),
        names,
        client_first: config::DEFAULT_PORTS.to_vec(),
        proxy,
        log,
        limits,
    }))
}

fn workload(args: &ExecArgs) -> Workload {
    let name = args
        .command
        .first()
        .map(|command| command.to_string_lossy().into_owned());
    Workload {
        namespace: args.namespace.clone(),
        name: name.unwrap_or_default(),
        labels: args.labels.0.clone(),
        ..Workload::default()
    }
}
