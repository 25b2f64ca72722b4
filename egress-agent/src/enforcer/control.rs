//! The control socket: whoever may connect to it (root) says in a line what it wants to know, and is told that as one JSON
//! document.

use std::{collections::BTreeMap, io, time::Duration};

use egress_common::names::map;
use socket2::Socket;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
};

use super::{Enforcer, Node, handover::Channel};
use crate::{
    instance::Instance,
    kernel,
    policy::{InForce, Knowledge, ObjectFact, Origin, shortened},
    readiness,
    status::{
        ASK_HEALTH, Connections, DnsStatus, Health, KubernetesStatus, LogStatus, MOST_ERROR_BYTES,
        MOST_OBJECT_BYTES, MOST_OBJECT_ERROR_BYTES, MOST_OBJECTS, PolicyObject, PolicySource, Status,
        TableStatus,
    },
};

/// An asker that does not read must not keep the enforcer from its work.
const PATIENCE: Duration = Duration::from_millis(500);
/// Who has not said by then what it wants to know, as earlier versions never do, is told everything.
const QUESTION_PATIENCE: Duration = Duration::from_millis(100);
/// Longest question.
const QUESTION_BYTES: usize = 16;

/// What somebody wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Everything.
    Status,
    /// Whether the agent serves.
    Health,
}

/// The socket.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    /// Where a successor calls; an agent that must not be succeeded has none.
    successors: Option<AsyncFd<Socket>>,
}

impl Control {
    /// Listens in the instance's directory, which only root can enter.
    pub(super) fn listen(instance: &Instance, may_be_succeeded: bool) -> io::Result<Self> {
        let successors = may_be_succeeded
            .then(|| readiness::watch(instance.listen_for_successor()?, Interest::READABLE))
            .transpose()?;
        Ok(Self {
            listener: UnixListener::from_std(instance.listen()?)?,
            successors,
        })
    }

    /// Waits for a successor.
    pub(super) async fn successor(&self) -> io::Result<Channel> {
        let Some(successors) = &self.successors else {
            return std::future::pending().await;
        };
        loop {
            let mut guard = successors.readable().await?;
            if let Ok(accepted) = guard.try_io(|socket| socket.get_ref().accept()) {
                return Channel::new(accepted?.0);
            }
        }
    }

    /// Waits for somebody to ask.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

/// Tells what is asked for. Failures concern the asker alone.
pub(super) async fn answer(
    asked: io::Result<UnixStream>,
    tell: impl FnOnce(Question) -> serde_json::Result<Vec<u8>>,
) {
    let told = async {
        let mut stream = asked?;
        let text = tell(question(&mut stream).await)?;
        stream.write_all(&text).await
    };
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the status could not be told"),
        Err(_late) => tracing::debug!("the asker does not read its status"),
    }
}

async fn question(stream: &mut UnixStream) -> Question {
    let mut line = [0; QUESTION_BYTES];
    let mut length = 0;
    let read = async {
        while let Some(rest @ [_, ..]) = line.get_mut(length..) {
            match stream.read(rest).await {
                Ok(more @ 1..) => length += more,
                Ok(_) | Err(_) => break,
            }
            if line.get(..length).is_some_and(|line| line.contains(&b'\n')) {
                break;
            }
        }
    };
    drop(tokio::time::timeout(QUESTION_PATIENCE, read).await);
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line == ASK_HEALTH.as_bytes() {
        Question::Health
    } else {
        Question::Status
    }
}

/// An error as a status tells it.
fn told(error: Option<&String>) -> Option<String> {
    error.map(|error| shortened(error, MOST_ERROR_BYTES).into_owned())
}

fn kubernetes(node: &Node) -> KubernetesStatus {
    let (contact, counts) = (node.cluster.contact().status(), node.directory.counts());
    KubernetesStatus {
        node: node.cluster.node().to_owned(),
        api_server: contact.is_answered,
        api_server_seconds: contact.lasts.as_secs(),
        api_server_error: told(contact.error.as_ref()),
        pods_listed: counts.is_listed,
        pods_recalled_from: counts.recalled_from.map(|from| from.to_string()),
        pods: counts.pods as u64,
        exempt_pods: counts.exempt as u64,
    }
}

fn policy_source(origin: &Origin) -> PolicySource {
    let (knowledge, recalled_from) = match origin.knowledge {
        Knowledge::NotAsked => ("not_asked", None),
        Knowledge::Unknown => ("unknown", None),
        Knowledge::Recalled(saved) => ("recalled", Some(saved.to_string())),
        Knowledge::Followed => ("followed", None),
    };
    let (good, broken): (Vec<_>, Vec<_>) = origin
        .objects
        .iter()
        .partition(|fact| fact.in_force == InForce::Newest);
    let object = |fact: &ObjectFact| PolicyObject {
        policy: fact.key.to_string(),
        generation: fact.generation,
        in_force: fact.in_force == InForce::Newest,
        error: match (&fact.error, fact.in_force) {
            (None, InForce::Newest) => None,
            (None, in_force) => Some(in_force.to_string()),
            (Some(error), in_force) => Some(format!(
                "{}; {in_force}",
                shortened(error, MOST_OBJECT_ERROR_BYTES)
            )),
        },
    };
    let mut bytes = 0;
    let list: Vec<_> = broken
        .into_iter()
        .chain(good)
        .take(MOST_OBJECTS)
        .map(object)
        .take_while(|object| {
            bytes += serde_json::to_vec(object).map_or(0, |text| text.len());
            bytes <= MOST_OBJECT_BYTES
        })
        .collect();
    PolicySource {
        files: origin.files as u64,
        objects: origin.objects.len() as u64,
        knowledge: knowledge.to_owned(),
        recalled_from,
        not_listed: (origin.objects.len() - list.len()) as u64,
        list,
    }
}

impl Enforcer {
    fn dns_status(&self) -> DnsStatus {
        let dns = &self.services.dns;
        let (counts, names) = (dns.counts(), self.services.names.counts());
        let (logged, log_lost) = dns.log().counts();
        DnsStatus {
            queries: counts.queries,
            denied: counts.denied,
            failed: counts.failed,
            observed: counts.observed,
            dropped: counts.dropped,
            names: names.entries,
            names_lost: names.evicted + names.refused,
            logged,
            log_lost,
        }
    }

    /// The tables at whose end something is refused. Those that forget the least recently used are not among them.
    fn tables(&self) -> BTreeMap<String, TableStatus> {
        let fenced = self.roster.counts();
        let counts = [
            (map::MEMBERS, fenced.members),
            (map::BLOCKS, fenced.blocks),
            (map::PORTS, fenced.ports),
            (map::EXEMPT, self.exempted.len()),
            (map::LISTENERS, self.sites.len()),
            (map::FENCES, self.attachment.fences().count()),
            (map::FLOWS, self.flows.count()),
            (map::DIRECT, self.direct.count()),
            (map::OBSERVED, self.reports.observed()),
        ];
        let told = counts.into_iter().filter_map(|(name, entries)| {
            let most = kernel::most_entries(self.attachment.pin_path(), name);
            let most = most
                .inspect_err(|error| tracing::warn!(%error, "cannot tell how much fits into a table"))
                .ok()?;
            let status = TableStatus {
                entries: entries as u64,
                most: most.into(),
            };
            Some((name.to_lowercase(), status))
        });
        told.collect()
    }

    /// What is asked for, as JSON.
    pub(super) fn tell(&self, question: Question) -> serde_json::Result<Vec<u8>> {
        match question {
            Question::Status => serde_json::to_vec(&self.status()),
            Question::Health => serde_json::to_vec(&self.health()),
        }
    }

    fn health(&self) -> Health {
        Health {
            repair_error: told(self.repair_error.as_ref()),
            programs: self.attachment.programs(),
            listeners: self.sites.at_home(),
        }
    }

    fn status(&self) -> Status {
        use std::sync::atomic::Ordering::Relaxed;
        let counts = self.workers.counts();
        let log = self.services.log.status();
        let policies = self.services.policy.load();
        let kernel = self.reports.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the kernel's counters");
            BTreeMap::new()
        });
        Status {
            instance: self.instance.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            generation: self.traces.generation,
            predecessor: self.predecessor.as_ref().map(|predecessor| predecessor.pid),
            uptime_seconds: self.begun.elapsed().as_secs(),
            repairs: self.repairs,
            repair_error: told(self.repair_error.as_ref()),
            cgroup: self.cgroup.clone(),
            pins: self.attachment.pin_path().to_path_buf(),
            programs: self.attachment.programs(),
            policies: policies.counts().policies as u64,
            policy_source: policy_source(policies.origin()),
            policy_error: told(self.policy_error.as_ref()),
            namespaces: self.sites.len() as u64,
            listeners: self.sites.at_home(),
            fences: self.fences.status(),
            kubernetes: self.node.as_ref().map(kubernetes),
            fence_policies: self.roster.counts().policies as u64,
            tables: self.tables(),
            connections: Connections {
                open: counts.open.load(Relaxed),
                accepted: counts.accepted.load(Relaxed),
                no_flow: counts.no_flow.load(Relaxed),
                unknown_workload: counts.unknown_workload.load(Relaxed),
                overloaded: counts.overloaded.load(Relaxed),
            },
            dns: self.dns_status(),
            kernel: kernel
                .into_iter()
                .map(|(word, count)| (word.to_owned(), count))
                .collect(),
            access_log: LogStatus {
                written: log.outputs.iter().map(|output| output.written).sum(),
                lost: log.dropped + log.outputs.iter().map(|output| output.lost).sum::<u64>(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
