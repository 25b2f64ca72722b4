//! connect(2): gather the facts, ask egress-common, carry the decision out.

use aya_ebpf::{helpers::bpf_get_prandom_u32, programs::SockAddrContext};
use aya_log_ebpf::error;
use egress_common::{
    address::Endpoint,
    counter::Counter,
    decide::{self, Attempt, Decision},
    flow::{self, DIRECT, REDIRECTED},
    member::{Member, Transport},
    outcome::Outcome,
};

use crate::{
    Answer, account, context, report, storage,
    tables::{self, Maps},
};

/// Judges a connect to `destination`; where to send it instead is written to `to`. A function of its own in the kernel, too:
/// what it puts on the stack is not added to what name service does.
#[inline(never)]
pub fn judge(ctx: &SockAddrContext, destination: &Endpoint, to: &mut Endpoint) -> Answer {
    let cgroup = context::cgroup_id();
    let maps = Maps {
        netns: context::netns_cookie(ctx),
    };
    let member = tables::member(cgroup);
    let facts = Attempt {
        destination,
        protocol: context::protocol(ctx),
        exempt: tables::is_exempt(cgroup),
        is_foreign: is_foreign(ctx, cgroup, member),
        member,
        is_connect: true,
        // SAFETY: no arguments.
        spread: unsafe { bpf_get_prandom_u32() },
    };
    // Whatever it was connected to before.
    account::close(ctx);
    let refused = match decide::attempt(&facts, &maps) {
        Decision::Redirect(listener, outcome) => {
            *to = listener;
            match redirect(ctx, destination, maps.netns, to, outcome) {
                Ok(()) => {
                    if facts.member.is_none() {
                        report::unknown(cgroup, maps.netns);
                    }
                    return Answer::Redirect;
                }
                Err(outcome) => outcome,
            }
        }
        Decision::Pass(outcome) => {
            // A socket that was redirected and now connects elsewhere must not answer with the old peer's name.
            storage::forget(context::socket(ctx));
            pass(ctx, &facts, maps.netns, outcome);
            return Answer::Proceed;
        }
        Decision::Direct(outcome) => match direct(ctx, &facts, maps.netns, outcome) {
            Ok(()) => return Answer::Proceed,
            Err(outcome) => outcome,
        },
        Decision::Deny(outcome) => outcome,
    };
    if matches!(refused, Outcome::UnknownCgroup) {
        report::unknown(cgroup, maps.netns);
    }
    report::attempt(ctx, maps.netns, destination, facts.protocol, refused);
    Answer::Refuse
}

/// Internal and exempt ones are counted, the rest is reported.
#[inline(always)]
fn pass(ctx: &SockAddrContext, facts: &Attempt<'_>, netns: u64, outcome: Outcome) {
    if matches!(
        outcome,
        Outcome::Internal | Outcome::Exempt | Outcome::InboundReply | Outcome::DatagramConnect
    ) {
        report::count(outcome);
    } else {
        report::attempt(ctx, netns, facts.destination, facts.protocol, outcome);
    }
}

/// Whether the socket was made in another workload than the one that uses it now: its hooks, and its packets', are those of
/// where it was made.
#[inline(always)]
pub fn is_foreign(ctx: &SockAddrContext, cgroup: u64, member: Option<&Member>) -> bool {
    let birth = storage::birth(context::socket(ctx));
    if birth == 0 || birth == cgroup {
        return false;
    }
    match (tables::member(birth), member) {
        (Some(born), Some(member)) => born.workload != member.workload,
        // A cgroup that is gone, as far as the agent knows.
        _ => true,
    }
}

/// Lets a connect go where it wants to, and opens an account.
#[inline(always)]
fn direct(ctx: &SockAddrContext, facts: &Attempt<'_>, netns: u64, outcome: Outcome) -> Result<(), Outcome> {
    let Some(state) = storage::of(context::socket(ctx)) else {
        return Err(Outcome::NoStorage);
    };
    // SAFETY: as in `redirect`.
    let flow = unsafe { &mut *state };
    flow.destination = *facts.destination;
    flow.lane = DIRECT;
    flow.released = 0;
    flow.outcome = outcome as u32;
    flow.protocol = facts.protocol;
    flow.sent = 0;
    flow.received = 0;
    flow.policy = 0;
    if let Some(member) = facts.member {
        if member.is_enforced() {
            flow.policy = member.policy;
        }
        if matches!(Transport::of(facts.protocol), Some(Transport::Udp)) {
            tables::note_outbound(member.workload, facts.destination);
        }
    }
    flow.cgroup = context::cgroup_id();
    flow.socket = context::socket_cookie(ctx);
    flow.time = context::now();
    context::identify(&mut flow.pid, &mut flow.uid, &mut flow.command);
    flow.netns = netns;
    match account::open(flow) {
        Ok(()) => {}
        // Nothing is enforced here: it goes on without an account.
        Err(_) if flow.policy == 0 => report::count_loss(Counter::AccountsFull),
        Err(outcome) => return Err(outcome),
    }
    report::count(outcome);
    Ok(())
}

#[inline(always)]
pub fn redirect(
    ctx: &SockAddrContext,
    destination: &Endpoint,
    netns: u64,
    to: &Endpoint,
    outcome: Outcome,
) -> Result<(), Outcome> {
    let device = context::bound_device(ctx);
    if device != 0 {
        // The device would keep the SYN from reaching the loopback address; the agent binds it on the upstream socket.
        storage::release_device(ctx).map_err(|()| Outcome::BoundDevice)?;
    }
    let Some(state) = storage::of(context::socket(ctx)) else {
        no_memory(ctx);
        return Err(Outcome::NoStorage);
    };
    // SAFETY: the storage belongs to a socket that the running connect holds; the agent does not write it. Field by
    // field, because a whole value would first be built on the 512-byte stack.
    let flow = unsafe { &mut *state };
    flow.destination = *destination;
    flow.redirect = *to;
    flow.lane = REDIRECTED;
    flow.released = u32::from(matches!(
        outcome,
        Outcome::Redirected | Outcome::Query | Outcome::QueryHeld
    ));
    flow.device = device;
    flow.cgroup = context::cgroup_id();
    flow.share = flow::share(flow.cgroup, tables::member(flow.cgroup));
    // Datagrams are never under way: the agent finds them by their socket.
    if context::protocol(ctx) == decide::TCP && tables::has_full_share(&flow.share) {
        flow.lane = 0;
        return Err(Outcome::ShareFull);
    }
    flow.socket = context::socket_cookie(ctx);
    flow.time = context::now();
    context::identify(&mut flow.pid, &mut flow.uid, &mut flow.command);
    flow.netns = netns;
    report::count(outcome);
    Ok(())
}

#[inline(never)]
fn no_memory(ctx: &SockAddrContext) {
    error!(ctx, "no memory for the storage of a socket: connect refused");
}
