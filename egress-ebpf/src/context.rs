//! Reads and writes of the kernel's context structs, and the facts about the current task.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm as bpf_get_current_comm_into,
            bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
        },
    },
    programs::SockAddrContext,
};
use egress_common::address::Endpoint;

/// The address argument of an IPv4 hook.
#[inline(always)]
pub fn destination_v4(ctx: &SockAddrContext) -> Endpoint {
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each read.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    Endpoint::v4(address.to_ne_bytes(), port_from_kernel(port))
}

/// The address argument of an IPv6 hook.
///
/// Word by word: reading the array at once becomes a memcpy from a moved pointer, refused on 6.1 as "dereference of
/// modified ctx ptr".
#[inline(always)]
pub fn destination_v6(ctx: &SockAddrContext) -> Endpoint {
    let addr = ctx.sock_addr;
    // SAFETY: as in `destination_v4`.
    let (a, b, c, d, port) = unsafe {
        (
            (*addr).user_ip6[0],
            (*addr).user_ip6[1],
            (*addr).user_ip6[2],
            (*addr).user_ip6[3],
            (*addr).user_port,
        )
    };
    Endpoint::v6(join(a, b, c, d), port_from_kernel(port))
}

/// Replaces the address and port of an IPv4 hook; those of an IPv6 endpoint cannot be written there and are refused.
#[inline(always)]
pub fn set_v4(ctx: &SockAddrContext, to: &Endpoint) -> Result<(), ()> {
    let Some(octets) = to.octets_v4() else {
        return Err(());
    };
    let addr = ctx.sock_addr;
    // SAFETY: writes of these two fields are allowed in connect, getpeername and getsockname hooks. Volatile, because
    // LLVM merges neighbouring stores into one of 8 bytes, refused as "invalid bpf_context access".
    unsafe {
        (&raw mut (*addr).user_ip4).write_volatile(u32::from_ne_bytes(octets));
        (&raw mut (*addr).user_port).write_volatile(port_to_kernel(to.port()));
    }
    Ok(())
}

/// Replaces the address and port of an IPv6 hook; IPv4 goes in as a mapped address.
#[inline(always)]
pub fn set_v6(ctx: &SockAddrContext, to: &Endpoint) {
    let [a, b, c, d] = split(to.octets());
    let addr = ctx.sock_addr;
    // SAFETY: as in `set_v4`.
    unsafe {
        (&raw mut (*addr).user_ip6[0]).write_volatile(a);
        (&raw mut (*addr).user_ip6[1]).write_volatile(b);
        (&raw mut (*addr).user_ip6[2]).write_volatile(c);
        (&raw mut (*addr).user_ip6[3]).write_volatile(d);
        (&raw mut (*addr).user_port).write_volatile(port_to_kernel(to.port()));
    }
}

/// The protocol number of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as in `destination_v4`.
    unsafe { (*ctx.sock_addr).protocol }
}

/// The socket of the call.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: as in `destination_v4`.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The device the socket is bound to, 0 for none.
#[inline(always)]
pub fn bound_device(ctx: &SockAddrContext) -> u32 {
    let socket = socket(ctx);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked not null; the verifier knows the pointer as a socket.
    unsafe { (*socket).bound_dev_if }
}

#[inline(always)]
pub fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of a sock_addr program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of a sock_addr program.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub fn cgroup_id() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Nanoseconds of CLOCK_BOOTTIME.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Writes who makes the call where it is kept, which is not the stack.
#[inline(always)]
pub fn identify(pid: &mut u32, uid: &mut u32, command: &mut [u8; 16]) {
    *pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    *uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the helper writes at most 16 bytes to a live place, and zeros where it fails.
    let _zeros = unsafe { bpf_get_current_comm_into(command.as_mut_ptr().cast(), 16) };
}

/// Four words of a context (each in network order) to 16 bytes.
#[inline(always)]
pub fn join(a: u32, b: u32, c: u32, d: u32) -> [u8; 16] {
    let [a0, a1, a2, a3] = a.to_ne_bytes();
    let [b0, b1, b2, b3] = b.to_ne_bytes();
    let [c0, c1, c2, c3] = c.to_ne_bytes();
    let [d0, d1, d2, d3] = d.to_ne_bytes();
    [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
}

#[inline(always)]
fn split(octets: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// `user_port` holds 16 bits in network order in a 32-bit field.
#[inline(always)]
fn port_from_kernel(port: u32) -> u16 {
    u16::from_be(port as u16)
}

#[inline(always)]
fn port_to_kernel(port: u16) -> u32 {
    u32::from(port.to_be())
}
