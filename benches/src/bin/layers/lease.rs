//! A lease that is held, and a fence whose floor is known.

use std::time::Duration;

use http::{HeaderValue, Request};
use tokio::runtime;
use tower_benches::drive::{self, Bare, Case};
use tower_layer::Layer;
use tower_lease::{
    FencingToken, Holder, Lease, LeaseKey, LeaseLayer, MemoryStore, TokenIn,
    fence::{Fence, FenceLayer, MemoryMark},
};

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "lease",
        job: JOB,
        bare: "bare",
        run: reject,
    },
    Case {
        name: "lease-gate",
        job: JOB,
        bare: "bare",
        run: gate,
    },
    Case {
        name: "lease-http",
        job: JOB,
        bare: "bare-http",
        run: |calls| http(calls, TokenIn::Nowhere),
    },
    Case {
        name: "lease-respond",
        job: JOB,
        bare: "bare-http",
        run: |calls| http(calls, TokenIn::Extensions),
    },
    Case {
        name: "bare-token",
        job: FENCE,
        bare: "bare-token",
        run: |calls| drive::http_calls(calls, HTTP, bearing()),
    },
    Case {
        name: "fence",
        job: FENCE,
        bare: "bare-token",
        run: fence,
    },
];

const JOB: &str = "lease";
const FENCE: &str = "fence";

fn reject(calls: u32) {
    held(|lease| drive::calls(calls, LeaseLayer::new(lease).layer(Bare)));
}

fn gate(calls: u32) {
    held(|lease| drive::calls(calls, LeaseLayer::new(lease).gate().layer(Bare)));
}

/// With bodies that end with the lease, and the token where it is wanted.
fn http(calls: u32, token: TokenIn) {
    held(|lease| {
        let layer = LeaseLayer::new(lease).respond().token_in(token);
        drive::http_calls(calls, layer.layer(HTTP), drive::plain);
    });
}

/// The mark is asked once, before the loop.
fn fence(calls: u32) {
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let token = FencingToken::new(key(), 7.try_into().expect("not zero"));
    runtime()
        .block_on(fence.admit(&token))
        .expect("the first one");
    drive::http_calls(calls, FenceLayer::new(&fence).layer(HTTP), bearing());
}

fn bearing() -> impl Fn(u32) -> Request<()> {
    |_| {
        let mut request = Request::new(());
        request
            .headers_mut()
            .insert("x-lease-token", HeaderValue::from_static("benches/lease;7"));
        request
    }
}

/// Holds a lease that outlasts the loop, in which no keeper runs.
fn held(calls: impl FnOnce(&Lease)) {
    let runtime = runtime();
    let built = Lease::builder(MemoryStore::new(), key(), Holder::new("benches"))
        .ttl(Duration::from_secs(600))
        .build();
    let (lease, keeper) = built.expect("durations that fit together");
    runtime.spawn(keeper.run());
    runtime.block_on(lease.held()).expect("a keeper that runs");
    calls(&lease);
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

fn key() -> LeaseKey {
    LeaseKey::new("benches/lease").expect("a valid key")
}
