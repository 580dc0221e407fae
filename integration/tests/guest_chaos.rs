//! A minute of `cargo xtask chaos`: everything that can be done to real processes, drawn from a seed, while a
//! guest writes and verifies. Nothing may be wrong, and in the end all must be well by itself.

use std::time::Duration;

use anyhow::ensure;
use integration::chaos::{Catalog, Chaos, Fault, Plot};
use integration::processes::scenario;

/// Those that are over in ten seconds; the others would leave no time for them.
const FAULTS: [Fault; 15] = [
    Fault::StoreKilled,
    Fault::FarStoreKilled,
    Fault::StoreHangs,
    Fault::FarStoreHangs,
    Fault::LinkCut,
    Fault::HostCutOff,
    Fault::DeafStore,
    Fault::MuteStore,
    Fault::WriterKilled,
    Fault::WriterHangs,
    Fault::PlacementAway,
    Fault::LeaderKilled,
    Fault::EtcdMember,
    Fault::EtcdMajority,
    Fault::AllKilled,
];

#[test]
fn a_minute_of_chaos() {
    scenario("chaos", |scratch| {
        let chaos = Chaos {
            plot: Plot::For(Duration::from_secs(60), FAULTS.to_vec()),
            catalog: Catalog::Etcd,
            seed: rand::random(),
        };
        println!("seed {}", chaos.seed);
        let report = chaos.run(scratch, |line| println!("{line}"))?;
        println!("{}", report.line());
        let wrong = report.wrong();
        ensure!(wrong.is_empty(), "seed {}: {wrong:#?}", chaos.seed);
        Ok(())
    });
}
