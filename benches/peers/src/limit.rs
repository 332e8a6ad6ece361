//! Rate and concurrency limits that no call reaches.

use std::{
    convert::Infallible,
    num::NonZeroU32,
    task::{Context, Poll},
};

use axum::extract::ConnectInfo;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tower::{Layer, limit::ConcurrencyLimit, load_shed::LoadShed};
use tower_governor::{
    GovernorLayer,
    governor::GovernorConfigBuilder,
    key_extractor::{GlobalKeyExtractor, KeyExtractor, PeerIpKeyExtractor},
};
use tower_service::Service;

use crate::{
    AXUM,
    drive::{self, Bare, Case},
};

pub(crate) const CASES: &[Case] = &[
    Case { name: "governor-check", job: SHARED, bare: "peers-bare", run: check },
    Case { name: "tower_governor-global", job: SHARED, bare: "peers-bare-axum", run: governor_global },
    Case { name: "governor-check_key/1", job: KEYED, bare: "peers-bare", run: |calls| check_key(calls, 1) },
    Case { name: "governor-check_key/1000", job: KEYED, bare: "peers-bare", run: |calls| check_key(calls, 1_000) },
    Case { name: "tower_governor-ip/1", job: KEYED, bare: "peers-bare-axum-peer", run: |calls| governor_ip(calls, 1) },
    Case {
        name: "tower_governor-ip/1000",
        job: KEYED,
        bare: "peers-bare-axum-peer",
        run: |calls| governor_ip(calls, 1_000),
    },
    Case { name: "tower-concurrency", job: CONCURRENCY, bare: "peers-bare", run: concurrency },
    Case { name: "tower-load-shed", job: CONCURRENCY, bare: "peers-bare", run: load_shed },
    Case { name: "tower-load-shed+concurrency", job: CONCURRENCY, bare: "peers-bare", run: load_shed_concurrency },
];

const SHARED: &str = "rate, one state";
const KEYED: &str = "rate, per client";
const CONCURRENCY: &str = "concurrency";

/// So much that nothing is ever refused.
const PLENTY: NonZeroU32 = NonZeroU32::MAX;

fn check(calls: u32) {
    drive::calls(calls, Checked { inner: Bare, limiter: RateLimiter::direct(Quota::per_second(PLENTY)) });
}

fn check_key(calls: u32, keys: u32) {
    let limiter = RateLimiter::keyed(Quota::per_second(PLENTY));
    drive::calls(calls, CheckedKey { inner: Bare, limiter, keys });
}

fn governor_global(calls: u32) {
    drive::http_calls(calls, governed(GlobalKeyExtractor), drive::plain);
}

fn governor_ip(calls: u32, clients: u32) {
    drive::http_calls(calls, governed(PeerIpKeyExtractor), drive::from_clients(clients, ConnectInfo));
}

fn concurrency(calls: u32) {
    drive::calls(calls, ConcurrencyLimit::new(Bare, 1_000));
}

fn load_shed(calls: u32) {
    drive::calls(calls, LoadShed::new(Bare));
}

fn load_shed_concurrency(calls: u32) {
    drive::calls(calls, LoadShed::new(ConcurrencyLimit::new(Bare, 1_000)));
}

fn governed<K>(
    key: K,
) -> impl Service<http::Request<()>, Response = http::Response<axum::body::Body>, Error = Infallible>
where
    K: KeyExtractor<Key: Clone + std::hash::Hash + Eq>,
{
    let config = GovernorConfigBuilder::default().key_extractor(key).per_nanosecond(1).burst_size(u32::MAX).finish();
    GovernorLayer::new(config.expect("a valid quota")).layer(AXUM)
}

struct Checked {
    inner: Bare,
    limiter: DefaultDirectRateLimiter,
}

struct CheckedKey {
    inner: Bare,
    limiter: DefaultKeyedRateLimiter<u32>,
    keys: u32,
}

impl Service<u32> for Checked {
    type Response = u32;
    type Error = Infallible;
    type Future = <Bare as Service<u32>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.limiter.check().expect("there is plenty");
        self.inner.call(request)
    }
}

impl Service<u32> for CheckedKey {
    type Response = u32;
    type Error = Infallible;
    type Future = <Bare as Service<u32>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.limiter.check_key(&(request % self.keys)).expect("there is plenty");
        self.inner.call(request)
    }
}
