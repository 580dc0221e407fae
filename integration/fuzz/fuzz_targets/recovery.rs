//! What a store's directory holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| replicator::store::fuzz_recover(bytes));
