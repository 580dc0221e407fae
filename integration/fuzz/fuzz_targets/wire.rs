//! What a peer sends, before and after the hello.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| replicator::wire::fuzz_decode(bytes));
