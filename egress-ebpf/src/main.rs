//! The kernel programs. For the host the crate is an empty program, so that cargo can walk the whole workspace.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A loop without an end: the verifier refuses any program that could reach it.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
