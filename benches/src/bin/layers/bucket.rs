//! Buckets that are never empty.

use std::num::NonZeroU32;

use tower_benches::drive::{self, Bare, Case};
use tower_bucket::{BucketLayer, KeyedLimiter, Limiter, Quota};
use tower_layer::Layer;
use tower_outcome::PeerAddr;

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case { name: "bucket-shared", job: SHARED, bare: "bare", run: shared },
    Case { name: "bucket-shared-respond", job: SHARED, bare: "bare-http", run: shared_respond },
    Case { name: "bucket-key/1", job: KEYED, bare: "bare", run: |calls| key(calls, 1) },
    Case { name: "bucket-key/1000", job: KEYED, bare: "bare", run: |calls| key(calls, 1_000) },
    Case { name: "bucket-ip/1", job: KEYED, bare: "bare-http-peer", run: |calls| ip(calls, 1) },
    Case { name: "bucket-ip/1000", job: KEYED, bare: "bare-http-peer", run: |calls| ip(calls, 1_000) },
];

const SHARED: &str = "rate, one state";
const KEYED: &str = "rate, per client";

/// So much that nothing is ever refused.
const PLENTY: Quota = Quota::per_second(NonZeroU32::MAX);

fn shared(calls: u32) {
    drive::calls(calls, BucketLayer::new(Limiter::new(PLENTY)).layer(Bare));
}

fn shared_respond(calls: u32) {
    drive::http_calls(calls, BucketLayer::new(Limiter::new(PLENTY)).respond().layer(HTTP), drive::plain);
}

fn key(calls: u32, keys: u32) {
    let layer = BucketLayer::keyed(KeyedLimiter::new(PLENTY), move |index: &u32| Some(index % keys));
    drive::calls(calls, layer.layer(Bare));
}

fn ip(calls: u32, clients: u32) {
    let layer = BucketLayer::per_client(PLENTY).respond();
    drive::http_calls(calls, layer.layer(HTTP), drive::from_clients(clients, PeerAddr));
}
