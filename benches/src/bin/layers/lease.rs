//! A lease that is held.

use std::time::Duration;

use tokio::runtime;
use tower_benches::drive::{self, Bare, Case};
use tower_layer::Layer;
use tower_lease::{Holder, Lease, LeaseKey, LeaseLayer, MemoryStore, TokioClock};

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case { name: "lease", job: JOB, bare: "bare", run: reject },
    Case { name: "lease-respond", job: JOB, bare: "bare-http", run: respond },
    Case { name: "lease-gate", job: JOB, bare: "bare", run: gate },
];

const JOB: &str = "lease";

fn reject(calls: u32) {
    held(|lease| drive::calls(calls, LeaseLayer::new(lease).layer(Bare)));
}

/// With the token in the request's extensions, and bodies that end with the lease.
fn respond(calls: u32) {
    held(|lease| drive::http_calls(calls, LeaseLayer::new(lease).respond().layer(HTTP), drive::plain));
}

fn gate(calls: u32) {
    held(|lease| drive::calls(calls, LeaseLayer::new(lease).gate().layer(Bare)));
}

/// Holds a lease that outlasts the loop, in which no keeper runs.
///
/// By Tokio's clock and not the default one: that one is read through rustix, which valgrind cannot run (rustix#1559).
fn held(calls: impl FnOnce(&Lease<TokioClock>)) {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let key = LeaseKey::new("benches/lease").expect("a valid key");
    let built = Lease::builder(MemoryStore::new(), key, Holder::new("benches"))
        .ttl(Duration::from_secs(600))
        .clock(TokioClock::new())
        .build();
    let (lease, keeper) = built.expect("durations that fit together");
    runtime.spawn(keeper.run());
    runtime.block_on(lease.held()).expect("a keeper that runs");
    calls(&lease);
}
