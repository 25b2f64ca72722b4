//! execve(2) in the enforced cgroup: the agent is told, so that it can open the name service of a new network namespace
//! before the program that begins there asks its first question. A convenience: whatever comes too early is held.

use aya_ebpf::{
    bindings::BPF_RB_FORCE_WAKEUP,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_ancestor_cgroup_id},
};
use egress_common::{counter::Counter, event::ListenerWanted};

use crate::{
    context,
    maps::{ANNOUNCED, ENFORCED, WANTED},
    report,
};

/// Nanoseconds in which a cgroup is announced once: a shell script may start a thousand programs a second.
const PAUSE: u64 = 10_000_000;

/// How deep below the root the enforced cgroup can be.
const DEPTH: i32 = 12;

#[inline(always)]
pub fn announce() {
    if !is_enforced() {
        return;
    }
    let (cgroup, now) = (context::cgroup_id(), context::now());
    // SAFETY: a torn value at worst announces once more or less.
    if let Some(last) = unsafe { ANNOUNCED.get(cgroup) }
        && now.wrapping_sub(*last) < PAUSE
    {
        return;
    }
    // Without room it is announced each time.
    let _announced_again = ANNOUNCED.insert(cgroup, now, 0);
    let wanted = ListenerWanted {
        // The kernel tells no namespace's cookie here: the agent asks.
        netns: 0,
        cgroup,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        reserved: 0,
    };
    if WANTED.output(wanted, u64::from(BPF_RB_FORCE_WAKEUP)).is_err() {
        report::count_loss(Counter::WantedLost);
    }
}

#[inline(always)]
fn is_enforced() -> bool {
    for level in 0..=DEPTH {
        // SAFETY: no pointers.
        let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if ancestor == 0 {
            return false;
        }
        // SAFETY: only presence counts.
        if unsafe { ENFORCED.get(ancestor) }.is_some() {
            return true;
        }
    }
    false
}
