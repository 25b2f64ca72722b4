#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_agent::policy::fuzz::fuzz_host_pattern(bytes));
