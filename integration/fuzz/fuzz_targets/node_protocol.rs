//! What nodes and the placement service say to one another.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| placement_service::fuzz::fuzz_node_protocol(bytes));
