//! A workload's query from its bytes to the bytes of its answer: judge, ask a name server that we trust, clean, learn,
//! log.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library has dozens of record types and codes, of which few concern us"
)]

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use egress_common::outcome::{Class, Outcome};
use hickory_proto::op::{Message, ResponseCode};
use ipnet::IpNet;

use super::{
    answer::{self, Altered, Ech},
    log::{DnsLog, Entry},
    message::{Extended, Incoming, Question, Transport},
    names::NameTable,
    private::is_private,
    search_list::SearchList,
    upstream::{AskError, NameServers, Upstream},
};
use crate::{
    identity::{Process, Shares, Workload},
    policy::{DenialFeed, DomainName, HostPattern, PolicyView, Verdict},
};

/// Addresses in one line of the log.
const LOGGED_ADDRESSES: usize = 16;

/// How queries are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSettings {
    /// Who is asked.
    pub servers: NameServers,
    /// How long one query may take. Below the five seconds after which glibc asks again.
    pub timeout: Duration,
    /// A server that has not answered for so long is overtaken by the next one in the list.
    pub patience: Duration,
    /// Names that everybody may look up, and whose addresses may be private: the cluster's and the network's own.
    pub internal_names: Vec<HostPattern>,
    /// Networks that are internal: their reverse names may be looked up, and names may lead to them.
    pub internal: Vec<IpNet>,
    /// What becomes of Encrypted ClientHello keys.
    pub ech: Ech,
    /// Queries that may wait for name servers at a time, a quarter of them of one workload; those beyond it fail at once.
    pub most_waiting: usize,
}

/// Answers queries. Shared by all threads.
#[derive(Debug)]
pub struct Forwarder {
    settings: ForwardSettings,
    upstream: Upstream,
    names: Arc<NameTable>,
    log: DnsLog,
    denials: DenialFeed,
    /// What is not worth telling; read only where denials are told.
    search_list: Option<SearchList>,
    waiting: Shares,
    counts: Counts,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The workload.
    pub workload: &'a Workload,
    /// The process, for the log.
    pub process: &'a Process,
    /// The workload's policies.
    pub view: &'a PolicyView,
    /// The workload's end.
    pub client: SocketAddr,
    /// The name server that it asked.
    pub resolver: SocketAddr,
    /// How.
    pub transport: Transport,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForwardCounts {
    /// Queries of enforced workloads.
    pub queries: u64,
    /// Refused: by policy, or because they are not to be forwarded.
    pub denied: u64,
    /// Allowed, and not answered by any name server.
    pub failed: u64,
    /// Queries of observed workloads, passed on to the server that was asked.
    pub observed: u64,
    /// Datagrams that no workload's redirected query explains, or that are no query.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counts {
    queries: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    observed: AtomicU64,
    dropped: AtomicU64,
}

/// What became of a query.
struct Fate {
    verdict: Verdict,
    code: ResponseCode,
    answers: Vec<IpAddr>,
    altered: Altered,
}

impl Default for ForwardSettings {
    fn default() -> Self {
        Self {
            servers: NameServers::File("/etc/resolv.conf".into()),
            timeout: Duration::from_millis(4500),
            patience: Duration::from_secs(1),
            internal_names: Vec::new(),
            internal: Vec::new(),
            ech: Ech::default(),
            most_waiting: 1024,
        }
    }
}

impl Forwarder {
    /// Answers are noted in `names`, queries in `log`. Nothing is asked yet.
    #[must_use]
    pub fn new(settings: ForwardSettings, names: Arc<NameTable>, log: DnsLog) -> Self {
        Self {
            upstream: Upstream::new(&settings.servers, settings.timeout, settings.patience),
            names,
            waiting: Shares::new(settings.most_waiting),
            log,
            denials: DenialFeed::default(),
            search_list: None,
            counts: Counts::default(),
            settings,
        }
    }

    /// The same, that tells `denials` of names that are refused, but not of what the search list of a resolv.conf(5) has
    /// made of others.
    #[must_use]
    pub fn with_denials(mut self, denials: DenialFeed, resolv_conf: &Path) -> Self {
        self.search_list = denials.is_open().then(|| SearchList::of_file(resolv_conf));
        self.denials = denials;
        self
    }

    /// Answers the query of an enforced workload; `None` for what is no query.
    pub async fn answer(&self, bytes: &[u8], asking: &Asking<'_>) -> Option<Vec<u8>> {
        let begun = Instant::now();
        match Question::read(bytes) {
            Incoming::Ignored => {
                self.drop_one();
                None
            }
            Incoming::Error(reply, code) => {
                self.note(None, asking, &Fate::not_forwarded(code), begun);
                Some(reply)
            }
            Incoming::Question(question) => {
                let (reply, fate) = self.resolve(&question, asking).await;
                self.note(Some(&question), asking, &fate, begun);
                Some(question.encode(&reply, asking.transport))
            }
        }
    }

    /// Notes a query of a workload that is only observed, and what the server that it asked said.
    pub fn observe(&self, bytes: &[u8], reply: Option<&[u8]>, asking: &Asking<'_>, begun: Instant) {
        self.counts.observed.fetch_add(1, Ordering::Relaxed);
        if !self.log.wants(true) {
            return;
        }
        let Incoming::Question(question) = Question::read(bytes) else {
            return;
        };
        let told = reply.and_then(|reply| Message::from_vec(reply).ok());
        let fate = Fate {
            verdict: self.judge(&question, asking.view),
            code: told
                .as_ref()
                .map_or(ResponseCode::ServFail, |told| told.metadata.response_code),
            answers: told.map_or_else(Vec::new, |told| {
                let addresses = answer::addresses(&question, &told).into_iter();
                addresses.map(|(address, _)| address).collect()
            }),
            altered: Altered::default(),
        };
        self.write(Some(&question), asking, &fate, begun, false);
    }

    /// Counts a datagram that belongs to nobody.
    pub fn drop_one(&self) {
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// What answers have taught.
    #[must_use]
    pub const fn names(&self) -> &Arc<NameTable> {
        &self.names
    }

    /// The log.
    #[must_use]
    pub const fn log(&self) -> &DnsLog {
        &self.log
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> ForwardCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ForwardCounts {
            queries: get(&self.counts.queries),
            denied: get(&self.counts.denied),
            failed: get(&self.counts.failed),
            observed: get(&self.counts.observed),
            dropped: get(&self.counts.dropped),
        }
    }

    async fn resolve(&self, question: &Question, asking: &Asking<'_>) -> (Message, Fate) {
        let verdict = self.judge(question, asking.view);
        if !verdict.is_allow() {
            return fail(question, verdict, ResponseCode::NXDomain, Extended::Blocked);
        }
        let Some(_seat) = self.waiting.enter(asking.workload) else {
            let verdict = Verdict::without_rule(Outcome::Overload);
            return fail(question, verdict, ResponseCode::ServFail, Extended::NotReady);
        };
        match self.upstream.ask(&question.anew()).await {
            Ok(told) => self.pass_on(question, told, verdict, asking),
            Err(error) => {
                tracing::debug!(%error, name = %question.name(), "a query was not answered");
                let why = match error {
                    AskError::Timeout => Extended::NoReachableAuthority,
                    AskError::Network(_) => Extended::NetworkError,
                };
                let verdict = Verdict {
                    outcome: Outcome::LookupFailed,
                    rule: verdict.rule,
                };
                fail(question, verdict, ResponseCode::ServFail, why)
            }
        }
    }

    /// A name server's answer as it reaches the workload: without what the name has no business to say, and learned.
    fn pass_on(
        &self,
        question: &Question,
        mut told: Message,
        verdict: Verdict,
        asking: &Asking<'_>,
    ) -> (Message, Fate) {
        let may_be_private = verdict.outcome == Outcome::Internal
            || question
                .host()
                .is_some_and(|name| asking.view.private_answers_allowed(name));
        let is_internal = |address: IpAddr| {
            self.settings
                .internal
                .iter()
                .any(|net| net.contains(&address.to_canonical()))
        };
        let altered = answer::clean(&mut told, self.settings.ech, |address| {
            !may_be_private && is_private(address) && !is_internal(address)
        });
        let addresses = answer::addresses(question, &told);
        let mut fate = Fate {
            verdict,
            code: told.metadata.response_code,
            answers: addresses.iter().map(|(address, _)| *address).collect(),
            altered,
        };
        if altered.private && addresses.is_empty() {
            fate.verdict.outcome = Outcome::PrivateAnswer;
            let reply = question.refusal(ResponseCode::NoError, Extended::Private);
            return (reply, fate);
        }
        // Service labels are stripped from the host: an answer to them is not one about the host's own addresses.
        if let Some(name) = question.host().filter(|name| question.is_about(name)) {
            self.names.learn(asking.workload, name, addresses, Instant::now());
        }
        (question.pass_on(told), fate)
    }

    /// Whether the name may be looked up.
    fn judge(&self, question: &Question, view: &PolicyView) -> Verdict {
        if let Ok(net) = question.name().parse_arpa_name()
            && net.prefix_len() == net.max_prefix_len()
            && self.is_own(net.addr())
        {
            return Verdict::without_rule(Outcome::Internal);
        }
        question.host().map_or_else(
            || Verdict::without_rule(Outcome::NoRule),
            |name| self.judge_name(name, view),
        )
    }

    fn judge_name(&self, name: &DomainName, view: &PolicyView) -> Verdict {
        let verdict = view.could_allow(name);
        let internal = &self.settings.internal_names;
        if !verdict.is_allow() && internal.iter().any(|pattern| pattern.matches(name)) {
            return Verdict::without_rule(Outcome::Internal);
        }
        verdict
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.settings.internal.iter().any(|net| net.contains(&address))
    }

    fn note(&self, question: Option<&Question>, asking: &Asking<'_>, fate: &Fate, begun: Instant) {
        self.counts.queries.fetch_add(1, Ordering::Relaxed);
        match fate.verdict.outcome.class() {
            Class::Allow => {}
            Class::Deny => {
                self.counts.denied.fetch_add(1, Ordering::Relaxed);
            }
            Class::Fail => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.denials.tell(asking.workload, &fate.verdict, true, || {
            let name = question?.host()?;
            let is_wanted = |stem: &DomainName| self.judge_name(stem, asking.view).is_allow();
            let list = self.search_list.as_ref();
            let is_made = list.is_some_and(|list| list.has_made(name, is_wanted));
            (!is_made).then(|| (name.to_string(), None, false))
        });
        if self.log.wants(fate.verdict.is_allow()) {
            self.write(question, asking, fate, begun, true);
        }
    }

    fn write(
        &self,
        question: Option<&Question>,
        asking: &Asking<'_>,
        fate: &Fate,
        begun: Instant,
        enforced: bool,
    ) {
        let altered = fate.altered;
        let stripped = [(altered.ech, "ech"), (altered.private, "private")];
        self.log.record(Entry {
            time: jiff::Timestamp::now().to_string(),
            namespace: asking.workload.namespace.clone(),
            workload: asking.workload.name.clone(),
            cgroup: asking.workload.cgroup.clone(),
            pid: asking.process.pid,
            command: asking.process.command.clone(),
            client: asking.client,
            resolver: asking.resolver,
            transport: match asking.transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            },
            name: question
                .map(|question| question.name().to_ascii())
                .unwrap_or_default(),
            kind: question
                .map(|question| question.kind().to_string())
                .unwrap_or_default(),
            outcome: fate.verdict.outcome.as_str(),
            rule: fate.verdict.rule.as_ref().map(ToString::to_string),
            enforced,
            rcode: rcode(fate.code),
            answers: fate.answers.iter().copied().take(LOGGED_ADDRESSES).collect(),
            stripped: stripped
                .into_iter()
                .filter_map(|(was, what)| was.then_some(what))
                .collect(),
            milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
}

impl Fate {
    fn not_forwarded(code: ResponseCode) -> Self {
        let outcome = if code == ResponseCode::FormErr {
            Outcome::MalformedDns
        } else {
            Outcome::UnsupportedQuery
        };
        Self::without_answer(Verdict::without_rule(outcome), code)
    }

    fn without_answer(verdict: Verdict, code: ResponseCode) -> Self {
        Self {
            verdict,
            code,
            answers: Vec::new(),
            altered: Altered::default(),
        }
    }
}

fn fail(question: &Question, verdict: Verdict, code: ResponseCode, why: Extended) -> (Message, Fate) {
    (question.refusal(code, why), Fate::without_answer(verdict, code))
}

/// The mnemonic of the IANA registry, as every DNS tool prints it.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::BADVERS => "BADVERS".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

#[cfg(test)]
mod tests;
