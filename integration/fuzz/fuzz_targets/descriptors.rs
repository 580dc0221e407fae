//! A guest's memory, with its ring in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhost_backend::device::fuzz::fuzz_chain(bytes));
