#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_agent::import::fuzz::squid_conf(bytes));
