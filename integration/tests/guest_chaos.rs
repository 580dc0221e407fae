//! A minute of `cargo xtask chaos`: everything that can be done to real processes, drawn from a seed, while a
//! guest writes and verifies. Nothing may be wrong, and in the end all must be well by itself.

use std::time::Duration;

use anyhow::ensure;
use integration::chaos::{Chaos, Plot};
use integration::processes::scenario;

#[test]
fn a_minute_of_chaos() {
    scenario("chaos", |scratch| {
        let chaos = Chaos {
            plot: Plot::For(Duration::from_secs(60)),
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
