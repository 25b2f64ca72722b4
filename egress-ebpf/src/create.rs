//! socket(2): a protocol that no rule can allow, or whose connects no hook sees, is refused here.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_socket_cookie, programs::SockContext};
use egress_common::{address::Endpoint, decide, event::ObservedKey, outcome::Outcome};

use crate::{
    Verdict, context,
    report::{self, By},
    storage, tables,
};

/// SOCK_RAW.
pub const RAW: u32 = 3;

#[inline(always)]
pub fn judge(ctx: &SockContext) -> Verdict {
    let cgroup = context::cgroup_id();
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each read.
    let (protocol, kind) = unsafe { ((*ctx.sock).protocol, (*ctx.sock).type_) };
    let member = tables::member(cgroup);
    match decide::create(protocol, kind == RAW, member) {
        Some(outcome) if !tables::is_exempt(cgroup) => refuse(ctx, cgroup, protocol, outcome),
        Some(_) | None => storage::note_birth(ctx, cgroup),
    }
}

#[inline(always)]
fn refuse(ctx: &SockContext, cgroup: u64, protocol: u32, outcome: Outcome) -> Verdict {
    if matches!(outcome, Outcome::UnknownCgroup) {
        report::unknown(cgroup, 0);
    }
    let key = ObservedKey {
        cgroup,
        destination: Endpoint::v4([0; 4], 0),
        protocol: protocol as u16,
        outcome: outcome as u16,
    };
    // SAFETY: the helper takes the context of a cgroup_sock program.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    report::observed(&key, 0, socket, By::Task as u32, None);
    Verdict::Refuse
}
