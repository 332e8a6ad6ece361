//! The layers of a server over each other, as an app has them: what a request costs that all of them admit.
//!
//! A separate program, because another use of a layer changes what the compiler inlines where it is measured alone
//! (`layers`). `layers.py` runs both.
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use tokio::runtime::Builder;
use tower_benches::drive::{self, BareHttp, Case};
use tower_bucket::{BucketLayer, Quota};
use tower_circuit::{Circuit, CircuitLayer};
use tower_drain::{Drain, DrainLayer};
use tower_layer::Layer;
use tower_lease::{Holder, Lease, LeaseKey, LeaseLayer, MemoryStore};
use tower_outcome::PeerAddr;

const CASES: &[Case] = &[
    Case {
        name: "bare-http-clients",
        job: JOB,
        bare: "bare-http-clients",
        run: |calls| drive::http_calls(calls, HTTP, clients()),
    },
    Case {
        name: "stack",
        job: JOB,
        bare: "bare-http-clients",
        run: stack,
    },
    Case {
        name: "stack-lease",
        job: JOB,
        bare: "bare-http-clients",
        run: stack_on_lease,
    },
];

const JOB: &str = "full stack";

/// The no-op service under every stack.
const HTTP: BareHttp<Full<Bytes>> = BareHttp(|| Full::new(Bytes::from_static(b"ok")));

/// A limit that no call reaches.
const MANY: u32 = 1_000_000_000;

fn main() -> ExitCode {
    drive::main(CASES, &[])
}

fn clients() -> impl Fn(u32) -> http::Request<()> {
    drive::from_clients(1_000, PeerAddr)
}

/// Drain, limit for each client, circuit: the three lines of an axum app.
fn stack(calls: u32) {
    let (drain, circuit) = (Drain::new(), Circuit::new());
    let limit = BucketLayer::per_client(Quota::per_second(MANY)).respond();
    let app = CircuitLayer::new(&circuit).respond().layer(HTTP);
    drive::http_calls(
        calls,
        DrainLayer::new(&drain).layer(limit.layer(app)),
        clients(),
    );
}

/// The same, and a lease with the token in the request's extensions. It outlasts the loop, in which no keeper runs.
fn stack_on_lease(calls: u32) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let key = LeaseKey::new("benches/stack").expect("a valid key");
    let built = Lease::builder(MemoryStore::new(), key, Holder::new("benches"))
        .ttl(Duration::from_secs(600))
        .build();
    let (lease, keeper) = built.expect("durations that fit together");
    runtime.spawn(keeper.run());
    runtime.block_on(lease.held()).expect("a keeper that runs");

    let (drain, circuit) = (Drain::new(), Circuit::new());
    let limit = BucketLayer::per_client(Quota::per_second(MANY)).respond();
    let app = CircuitLayer::new(&circuit).respond().layer(HTTP);
    let app = limit.layer(LeaseLayer::new(&lease).respond().layer(app));
    drive::http_calls(calls, DrainLayer::new(&drain).layer(app), clients());
}
