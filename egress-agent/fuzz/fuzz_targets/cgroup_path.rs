#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_agent::identity::fuzz::cgroup_path(bytes));
