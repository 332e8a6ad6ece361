//! The layers of a server over each other, as an app has them: what a request costs that all of them admit.

use std::num::NonZeroU32;

use tower_benches::drive::{self, Case};
use tower_bucket::{BucketLayer, Quota};
use tower_circuit::{Circuit, CircuitLayer};
use tower_drain::{Drain, DrainLayer};
use tower_layer::Layer;
use tower_lease::LeaseLayer;
use tower_outcome::PeerAddr;

use crate::{HTTP, lease::held};

pub(crate) const CASES: &[Case] = &[
    Case { name: "stack", job: JOB, bare: "bare-http-peer", run: stack },
    Case { name: "stack-lease", job: JOB, bare: "bare-http-peer", run: stack_on_lease },
];

const JOB: &str = "full stack";

/// A limit that no call reaches.
const MANY: NonZeroU32 = NonZeroU32::new(1_000_000_000).unwrap();

/// Drain, limit for each client, circuit: the three lines of an axum app.
fn stack(calls: u32) {
    let (drain, circuit) = (Drain::new(), Circuit::new());
    let limit = BucketLayer::per_client(Quota::per_second(MANY)).respond();
    let app = CircuitLayer::new(&circuit).respond().layer(HTTP);
    let app = DrainLayer::new(&drain).layer(limit.layer(app));
    drive::http_calls(calls, app, drive::from_clients(1_000, PeerAddr));
}

/// The same, and a lease with the token in the request's extensions.
fn stack_on_lease(calls: u32) {
    held(|lease| {
        let (drain, circuit) = (Drain::new(), Circuit::new());
        let limit = BucketLayer::per_client(Quota::per_second(MANY)).respond();
        let app = CircuitLayer::new(&circuit).respond().layer(HTTP);
        let app = limit.layer(LeaseLayer::new(lease).respond().layer(app));
        drive::http_calls(calls, DrainLayer::new(&drain).layer(app), drive::from_clients(1_000, PeerAddr));
    });
}
