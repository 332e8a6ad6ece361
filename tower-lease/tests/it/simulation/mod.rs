//! Keepers, gates and a store on simulated hosts, with drifting clocks and a network that fails: the fault scenarios
//! F-01 to F-05, F-08 to F-12 and F-19, as far as this crate goes.
//!
//! Each scenario runs over as many seeds as `LEASE_SIM_SEEDS` sets; a failure prints the seed, and `LEASE_SIM_SEED` runs
//! that one alone. By default that is 14, so 170 in all: without optimization a seed costs about 0.1 s of processor time
//! per scenario. `.ci/long simulation` runs 20 000, optimized.

mod net;
mod scenarios;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs a scenario over the seeds.
fn over_seeds(scenario: fn(u64)) {
    for seed in seeds() {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed with LEASE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number of seeds, or a seed"))
    };
    match number("LEASE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LEASE_SIM_SEEDS").unwrap_or(14),
    }
}
