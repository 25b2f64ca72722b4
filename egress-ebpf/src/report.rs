//! Counters and events. Nothing here decides anything, and nothing is lost without being counted.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_get_current_pid_tgid,
    programs::SockAddrContext,
};
use egress_common::{
    address::Endpoint,
    counter::{self, COUNTERS, Counter},
    event::{ListenerWanted, Observed, ObservedKey, REPORT_INTERVAL},
    flow::Flow,
    outcome::Outcome,
};

use crate::{
    context,
    maps::{COUNTS, EVENTS, OBSERVED, WANTED},
};

/// Who is told of.
#[derive(Clone, Copy)]
pub enum By {
    /// The task whose call is running, by its socket.
    Task,
    /// Whoever made the socket of a packet: the task that runs now may be another one, and programs of packets may not ask
    /// for it on Linux 6.1 and 6.12.
    Packet,
}

/// Asks the agent whose cgroup it is.
#[inline(never)]
pub fn unknown(cgroup: u64, netns: u64) {
    let wanted = ListenerWanted {
        netns,
        cgroup,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        reserved: 0,
    };
    if WANTED.output(wanted, u64::from(BPF_RB_FORCE_WAKEUP)).is_err() {
        count_loss(Counter::WantedLost);
    }
}

/// An attempt of the running task.
#[inline(always)]
pub fn attempt(ctx: &SockAddrContext, netns: u64, destination: &Endpoint, protocol: u32, outcome: Outcome) {
    let key = ObservedKey {
        cgroup: context::cgroup_id(),
        destination: *destination,
        protocol: protocol as u16,
        outcome: outcome as u16,
    };
    observed(&key, netns, context::socket_cookie(ctx), By::Task as u32, None);
}

/// Counts an attempt, and reports it if it is the first of its kind or the last report is long ago. `by` is a [`By`], `flow`
/// what is kept with the packet's socket. A function of its own in the kernel, too: inlined, its stack would add up with that
/// of every caller.
#[inline(never)]
pub fn observed(key: &ObservedKey, netns: u64, socket: u64, by: u32, flow: Option<&Flow>) {
    increment(u32::from(key.outcome) & (COUNTERS - 1));
    let now = context::now();
    if let Some(entry) = OBSERVED.get_ptr_mut(key) {
        // SAFETY: an entry of a preallocated map stays readable and writable even if it is removed meanwhile. Two CPUs
        // may both add to it and one addition be lost, which the per-CPU count above is not subject to: this target has
        // no atomic additions. Where both report at once, the agent finds by the total that it has one report twice.
        let entry = unsafe { &mut *entry };
        entry.count += 1;
        if now.wrapping_sub(entry.reported) < REPORT_INTERVAL {
            return;
        }
        entry.reported = now;
        let total = entry.count;
        let pending = total.wrapping_sub(entry.told);
        entry.told = total;
        event(key, netns, socket, (by, flow), (pending, total));
        return;
    }
    let first = Observed {
        count: 1,
        told: 1,
        reported: now,
    };
    if OBSERVED.insert(key, first, 0).is_err() {
        count_loss(Counter::ObservedFull);
    }
    event(key, netns, socket, (by, flow), (1, 1));
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
fn event(
    key: &ObservedKey,
    netns: u64,
    socket: u64,
    (by, flow): (u32, Option<&Flow>),
    (attempts, total): (u64, u64),
) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        count_loss(Counter::EventsLost);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: reserved memory of the ring buffer, all of whose fields are written here. Field by field, because a whole
    // value would first be built on the 512-byte stack.
    unsafe {
        (*event).time = context::now();
        (*event).socket = socket;
        (*event).cgroup = key.cgroup;
        (*event).netns = netns;
        (*event).destination = key.destination;
        (*event).pid = 0;
        (*event).uid = 0;
        (*event).outcome = key.outcome;
        (*event).protocol = key.protocol;
        (*event).count = attempts;
        (*event).total = total;
        (*event).command = [0; 16];
        if by == By::Task as u32 {
            context::identify(&mut (*event).pid, &mut (*event).uid, &mut (*event).command);
        } else if let Some(flow) = flow {
            (*event).pid = flow.pid;
            (*event).uid = flow.uid;
            (*event).command = flow.command;
        }
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
