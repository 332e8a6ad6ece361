//! Buckets that are never empty.

use std::time::Duration;

use tower_benches::drive::{self, Bare, Case, Contended, FromClients};
use tower_bucket::{
    BucketLayer, BucketService, ClientIp, Keyed, KeyedLimiter, Limiter, PeerIp, PolicyName, Quota,
};
use tower_layer::Layer;
use tower_outcome::{PeerAddr, refuse::Auto};

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "bucket-shared",
        job: SHARED,
        bare: "bare",
        run: shared,
    },
    Case {
        name: "bucket-shared-respond",
        job: SHARED,
        bare: "bare-http",
        run: shared_respond,
    },
    Case {
        name: "bucket-wait",
        job: SHARED,
        bare: "bare",
        run: wait,
    },
    Case {
        name: "bucket-cost",
        job: SHARED,
        bare: "bare",
        run: cost,
    },
    Case {
        name: "bucket-both",
        job: SHARED,
        bare: "bare",
        run: both,
    },
    Case {
        name: "bucket-fields",
        job: SHARED,
        bare: "bare-http",
        run: fields,
    },
    Case {
        name: "bucket-key/1",
        job: KEYED,
        bare: "bare",
        run: |calls| key(calls, 1),
    },
    Case {
        name: "bucket-key/1000",
        job: KEYED,
        bare: "bare",
        run: |calls| key(calls, 1_000),
    },
    Case {
        name: "bucket-key/100000",
        job: KEYED,
        bare: "bare",
        run: |calls| key(calls, 100_000),
    },
    Case {
        name: "bucket-ip/1",
        job: KEYED,
        bare: "bare-http-peer",
        run: |calls| ip(calls, 1),
    },
    Case {
        name: "bucket-ip/1000",
        job: KEYED,
        bare: "bare-http-peer",
        run: |calls| ip(calls, 1_000),
    },
    Case {
        name: "bucket-ip/100000",
        job: KEYED,
        bare: "bare-http-peer",
        run: |calls| ip(calls, 100_000),
    },
];

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "bucket-shared",
        run: |calls, threads| {
            drive::contend(calls, threads, BucketLayer::new(limiter()).layer(Bare))
        },
    },
    Contended {
        name: "bucket-key/1",
        run: |calls, threads| drive::contend(calls, threads, keyed(1)),
    },
    Contended {
        name: "bucket-key/1000",
        run: |calls, threads| drive::contend(calls, threads, keyed(1_000)),
    },
    Contended {
        name: "bucket-key/100000",
        run: |calls, threads| drive::contend(calls, threads, keyed(100_000)),
    },
    Contended {
        name: "bucket-ip/1",
        run: |calls, threads| contend_ip(calls, threads, 1),
    },
    Contended {
        name: "bucket-ip/1000",
        run: |calls, threads| contend_ip(calls, threads, 1_000),
    },
    Contended {
        name: "bucket-ip/100000",
        run: |calls, threads| contend_ip(calls, threads, 100_000),
    },
];

const SHARED: &str = "rate, one state";
const KEYED: &str = "rate, per client";

/// So much that nothing is ever refused.
const PLENTY: Quota = Quota::per_second(u32::MAX);

fn limiter() -> Limiter {
    Limiter::new(PLENTY)
}

fn shared(calls: u32) {
    drive::calls(calls, BucketLayer::new(limiter()).layer(Bare));
}

fn shared_respond(calls: u32) {
    drive::http_calls(
        calls,
        BucketLayer::new(limiter()).respond().layer(HTTP),
        drive::plain,
    );
}

fn wait(calls: u32) {
    drive::calls(
        calls,
        BucketLayer::new(limiter())
            .wait(Duration::from_secs(1))
            .layer(Bare),
    );
}

fn cost(calls: u32) {
    drive::calls(
        calls,
        BucketLayer::new(limiter())
            .cost(|index: &u32| 1 + index % 2)
            .layer(Bare),
    );
}

fn both(calls: u32) {
    drive::calls(
        calls,
        BucketLayer::new(limiter())
            .and(BucketLayer::new(limiter()))
            .layer(Bare),
    );
}

fn fields(calls: u32) {
    let layer = BucketLayer::new(limiter())
        .rate_limit_headers(PolicyName::default())
        .respond();
    drive::http_calls(calls, layer.layer(HTTP), drive::plain);
}

fn key(calls: u32, keys: u32) {
    drive::calls(calls, keyed(keys));
}

/// All keys are known from the start.
fn keyed(keys: u32) -> BucketService<Bare, Keyed<impl Fn(&u32) -> Option<u32> + Clone, u32>> {
    let limiter = KeyedLimiter::new(PLENTY);
    assert!(
        (0..keys).all(|key| limiter.check_key(&key).is_ok()),
        "there is plenty"
    );
    BucketLayer::keyed(limiter, move |index: &u32| Some(index % keys)).layer(Bare)
}

fn ip(calls: u32, clients: u32) {
    drive::http_calls(
        calls,
        per_client(clients).layer(HTTP),
        drive::from_clients(clients, PeerAddr),
    );
}

fn contend_ip(calls: u32, threads: usize, clients: u32) -> Duration {
    let service = FromClients {
        service: per_client(clients).layer(HTTP),
        clients,
        extension: PeerAddr,
    };
    drive::contend(calls, threads, service)
}

/// All clients are known from the start.
fn per_client(clients: u32) -> BucketLayer<Keyed<PeerIp, ClientIp>, Auto> {
    let layer = BucketLayer::per_client(PLENTY).respond();
    let from = drive::from_clients(clients, PeerAddr);
    for index in 0..clients {
        let PeerAddr(peer) = from(index)
            .extensions()
            .get()
            .copied()
            .expect("from somewhere");
        layer
            .limiter()
            .check_key(&peer.ip().into())
            .expect("there is plenty");
    }
    layer
}
