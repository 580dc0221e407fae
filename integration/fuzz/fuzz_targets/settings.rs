//! The settings of daemons: files, and values that are text.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cli::fuzz_settings(bytes));
