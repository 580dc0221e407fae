//! A policy, as an operator writes it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| placement_service::fuzz::fuzz_policy(bytes));
