//! Counters and events. Nothing here decides anything, and nothing is lost without being counted.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, programs::SockAddrContext};
use egress_common::{
    address::Endpoint,
    counter::{self, Counter},
    decide::ConnectFacts,
    event::{Observed, ObservedKey, REPORT_INTERVAL},
    outcome::Outcome,
};

use crate::{
    connect,
    context::{self, Task},
    maps::{COUNTS, EVENTS, OBSERVED},
};

/// Whose attempt is reported.
pub struct Sender {
    pub cgroup: u64,
    pub netns: u64,
    pub socket: u64,
    pub pid: u32,
    pub uid: u32,
    pub command: [u8; 16],
}

impl Sender {
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext, task: &Task, netns: u64) -> Self {
        Self {
            cgroup: task.cgroup,
            netns,
            socket: context::socket_cookie(ctx),
            pid: task.pid,
            uid: task.uid,
            command: task.command,
        }
    }
}

/// A refused connect: always one event of its own.
#[inline(always)]
pub fn refused(ctx: &SockAddrContext, task: &Task, netns: u64, facts: &ConnectFacts<'_>, outcome: Outcome) {
    count(outcome);
    event(
        &Sender::of(ctx, task, netns),
        facts.destination,
        facts.protocol,
        outcome,
        1,
    );
}

/// As [`refused`], for what was judged without the facts of a connect.
#[inline(always)]
pub fn refused_endpoint(
    ctx: &SockAddrContext,
    task: &Task,
    netns: u64,
    destination: Endpoint,
    protocol: u32,
    outcome: Outcome,
) {
    count(outcome);
    event(&Sender::of(ctx, task, netns), destination, protocol, outcome, 1);
}

/// A connect that goes where it wants to: internal and exempt ones are counted, the rest is reported.
#[inline(always)]
pub fn passed(ctx: &SockAddrContext, task: &Task, netns: u64, facts: &ConnectFacts<'_>, outcome: Outcome) {
    if matches!(outcome, Outcome::Internal | Outcome::Exempt) {
        count(outcome);
        return;
    }
    let sender = Sender::of(ctx, task, netns);
    if connect::is_tcp(facts.protocol) {
        count(outcome);
        event(&sender, facts.destination, facts.protocol, outcome, 1);
    } else {
        observed(&sender, facts.destination, facts.protocol, outcome);
    }
}

/// Counts an attempt, and reports it if it is the first of its kind or the last report is long ago.
#[inline(always)]
pub fn observed(sender: &Sender, destination: Endpoint, protocol: u32, outcome: Outcome) {
    count(outcome);
    let key = ObservedKey {
        cgroup: sender.cgroup,
        destination,
        protocol,
    };
    let now = context::now();
    if let Some(entry) = OBSERVED.get_ptr_mut(key) {
        // SAFETY: an entry of a preallocated map stays readable and writable even if it is evicted meanwhile; two CPUs
        // may both add to it and one addition be lost, which the per-CPU count above is not subject to.
        let entry = unsafe { &mut *entry };
        entry.count += 1;
        if now.wrapping_sub(entry.reported) < REPORT_INTERVAL {
            return;
        }
        let pending = entry.count;
        entry.count = 0;
        entry.reported = now;
        event(sender, destination, protocol, outcome, pending);
        return;
    }
    if OBSERVED
        .insert(
            key,
            Observed {
                count: 0,
                reported: now,
            },
            0,
        )
        .is_err()
    {
        count_loss(Counter::ObservedFull);
    }
    event(sender, destination, protocol, outcome, 1);
}

/// Counts an outcome of this CPU.
#[inline(always)]
pub fn count(outcome: Outcome) {
    increment(counter::outcome_index(outcome));
}

/// Counts a loss of this CPU.
#[inline(always)]
pub fn count_loss(counter: Counter) {
    increment(counter.index());
}

#[inline(always)]
fn increment(index: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(index) {
        // SAFETY: the slot of this CPU; programs of one CPU do not run at the same time as each other here.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn event(sender: &Sender, destination: Endpoint, protocol: u32, outcome: Outcome, attempts: u64) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        count_loss(Counter::EventsLost);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: reserved memory of the ring buffer, all of whose fields are written here. Field by field, because a whole
    // value would first be built on the 512-byte stack.
    unsafe {
        (*event).time = context::now();
        (*event).socket = sender.socket;
        (*event).cgroup = sender.cgroup;
        (*event).netns = sender.netns;
        (*event).destination = destination;
        (*event).pid = sender.pid;
        (*event).uid = sender.uid;
        (*event).outcome = outcome as u16;
        (*event).protocol = protocol as u16;
        (*event).count = attempts;
        (*event).command = sender.command;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
