#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_agent::proxy::fuzz::detect_protocol(bytes));
