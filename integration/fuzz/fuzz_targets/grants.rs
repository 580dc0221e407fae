//! What proves an epoch, and which certificates are revoked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| replicator::net::identity::fuzz_papers(bytes));
