//! Operators' calls, with what their bodies say.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| placement_service::fuzz::fuzz_api(bytes));
