//! What is kept with each socket: its birth, and its last redirected connect.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_setsockopt, bpf_sk_storage_get},
    programs::{SockAddrContext, SockContext},
};
use egress_common::flow::Flow;

use crate::{Verdict, context, maps::SOCKETS};

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

/// The storage of `socket`, made if there is none; `None` if the kernel has no memory for it.
#[inline(always)]
pub fn of(socket: *mut bpf_sock) -> Option<*mut Flow> {
    if socket.is_null() {
        return None;
    }
    lookup(socket.cast(), &raw const EMPTY, BPF_SK_STORAGE_GET_F_CREATE)
}

/// The storage of `socket` if it has one.
#[inline(always)]
pub fn existing(socket: *mut bpf_sock) -> Option<*mut Flow> {
    if socket.is_null() {
        return None;
    }
    lookup(socket.cast(), core::ptr::null(), 0)
}

/// The storage of the socket that is the context of a cgroup_sock program, if it has one.
#[inline(always)]
pub fn of_context(socket: *mut core::ffi::c_void) -> Option<*mut Flow> {
    lookup(socket, core::ptr::null(), 0)
}

/// Notes by whom a socket was made, and in which cgroup: its hooks will always be those of that cgroup, whoever uses it
/// later.
#[inline(always)]
pub fn note_birth(ctx: &SockContext, cgroup: u64) -> Verdict {
    match lookup(ctx.as_ptr(), &raw const EMPTY, BPF_SK_STORAGE_GET_F_CREATE) {
        Some(state) => {
            // SAFETY: the storage of a socket that is being made.
            let flow = unsafe { &mut *state };
            flow.birth_cgroup = cgroup;
            // For what is told of packets. Every connect that is redirected or direct writes it anew.
            context::identify(&mut flow.pid, &mut flow.uid, &mut flow.command);
            Verdict::Proceed
        }
        // Without the note a socket could change hands unseen.
        None => Verdict::Refuse,
    }
}

/// In which cgroup a socket was made; 0 if that is not known.
#[inline(always)]
pub fn birth(socket: *mut bpf_sock) -> u64 {
    match existing(socket) {
        // SAFETY: the storage of a socket that the running call holds.
        Some(state) => unsafe { (*state).birth_cgroup },
        None => 0,
    }
}

/// Clears what an earlier, redirected connect of the socket left.
#[inline(always)]
pub fn forget(socket: *mut bpf_sock) {
    if let Some(state) = existing(socket) {
        // SAFETY: the storage of a socket that the running call holds.
        unsafe {
            (*state).lane = 0;
            (*state).netns = 0;
        }
    }
}

/// Takes SO_BINDTODEVICE off the socket of a connect.
#[inline(always)]
pub fn release_device(ctx: &SockAddrContext) -> Result<(), ()> {
    let mut none = [0_u8; 4];
    // SAFETY: the helper reads four bytes of a live local; an empty name means no device.
    let status = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_BINDTODEVICE,
            none.as_mut_ptr().cast(),
            4,
        )
    };
    if status == 0 { Ok(()) } else { Err(()) }
}

static EMPTY: Flow = Flow::born(0);

#[inline(always)]
fn lookup(socket: *mut core::ffi::c_void, initial: *const Flow, flags: u32) -> Option<*mut Flow> {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: `map` is the storage map (the loader puts its descriptor in), `socket` a socket or the context of a
    // cgroup_sock program as the verifier checks, `initial` null or a Flow that outlives the call.
    let state = unsafe { bpf_sk_storage_get(map, socket, initial.cast_mut().cast(), u64::from(flags)) };
    if state.is_null() { None } else { Some(state.cast()) }
}
