#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_agent::access_log::fuzz::log_format(bytes));
