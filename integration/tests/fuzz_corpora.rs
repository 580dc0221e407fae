//! Replays what the fuzzers found interesting: an ordinary test, no libFuzzer needed.

use std::fs;
use std::path::Path;

/// Each of at least one input; a panic names the input that made it.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).expect("a corpus") {
        let path = entry.expect("a readable corpus").path();
        let bytes = fs::read(&path).expect("a readable input");
        println!("{}", path.display());
        run(&bytes);
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", corpus.display());
}

#[test]
fn wire() {
    replay("wire", replicator::wire::fuzz_decode);
}

#[test]
fn descriptors() {
    replay("descriptors", vhost_backend::device::fuzz::fuzz_chain);
}

#[test]
fn recovery() {
    replay("recovery", replicator::store::fuzz_recover);
}

#[test]
fn grants() {
    replay("grants", replicator::net::identity::fuzz_papers);
}

#[test]
fn policy() {
    replay("policy", placement_service::fuzz::fuzz_policy);
}

#[test]
fn api() {
    replay("api", placement_service::fuzz::fuzz_api);
}

#[test]
fn node_protocol() {
    replay("node_protocol", placement_service::fuzz::fuzz_node_protocol);
}

#[test]
fn settings() {
    replay("settings", cli::fuzz_settings);
}
