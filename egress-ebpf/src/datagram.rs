//! sendmsg(2) on datagram sockets without a peer: each datagram is judged as a connect is.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{
    address::Endpoint,
    decide::{self, Attempt, Decision},
    outcome::Outcome,
};

use crate::{
    Answer, connect, context, fence, report,
    tables::{self, Maps},
};

/// A function of its own in the kernel, too: what it puts on the stack is not added to what name service does.
#[inline(never)]
pub fn judge(ctx: &SockAddrContext, destination: &Endpoint) -> Answer {
    let cgroup = context::cgroup_id();
    let netns = context::netns_cookie(ctx);
    let member = tables::member(cgroup);
    let facts = Attempt {
        destination,
        protocol: context::protocol(ctx),
        exempt: tables::is_exempt(cgroup),
        is_foreign: connect::is_foreign(ctx, cgroup, member),
        member,
        is_connect: false,
        spread: 0,
    };
    let (outcome, answer) = match decide::attempt(&facts, &Maps { netns }) {
        Decision::Pass(outcome @ (Outcome::Internal | Outcome::Exempt | Outcome::InboundReply)) => {
            report::count(outcome);
            return Answer::Proceed;
        }
        Decision::Pass(outcome) | Decision::Direct(outcome) => {
            fence::vet_datagram(ctx, destination);
            if let Some(member) = facts.member {
                tables::note_outbound(member.workload, destination);
            }
            (outcome, Answer::Proceed)
        }
        // Only TCP is redirected.
        Decision::Redirect(_, outcome) | Decision::Deny(outcome) => {
            if matches!(outcome, Outcome::UnknownCgroup) {
                report::unknown(cgroup, netns);
            }
            (outcome, Answer::Refuse)
        }
    };
    report::attempt(ctx, netns, destination, facts.protocol, outcome);
    answer
}
