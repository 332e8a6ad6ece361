//! Rate and concurrency limits that no call reaches.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::extract::ConnectInfo;
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter, clock::QuantaInstant,
    middleware::NoOpMiddleware,
};
use tower::{
    Layer,
    buffer::Buffer,
    limit::{ConcurrencyLimit, RateLimit, rate::Rate},
    load_shed::LoadShed,
};
use tower_governor::{
    GovernorLayer,
    governor::{GovernorConfig, GovernorConfigBuilder},
    key_extractor::{GlobalKeyExtractor, PeerIpKeyExtractor},
};
use tower_resilience_ratelimiter::RateLimiterLayer;
use tower_service::Service;

use crate::{
    AXUM,
    drive::{self, Bare, Case, Contended, FromClients},
};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "governor-check",
        job: SHARED,
        bare: "peers-bare",
        run: check,
    },
    Case {
        name: "tower_governor-global",
        job: SHARED,
        bare: "peers-bare-axum",
        run: governor_global,
    },
    Case {
        name: "tower-rate",
        job: SHARED,
        bare: "peers-bare",
        run: rate,
    },
    Case {
        name: "tower-resilience-rate",
        job: SHARED,
        bare: "peers-bare",
        run: resilience,
    },
    Case {
        name: "governor-check_key/1",
        job: KEYED,
        bare: "peers-bare",
        run: |calls| check_key(calls, 1),
    },
    Case {
        name: "governor-check_key/1000",
        job: KEYED,
        bare: "peers-bare",
        run: |calls| check_key(calls, 1_000),
    },
    Case {
        name: "governor-check_key/100000",
        job: KEYED,
        bare: "peers-bare",
        run: |calls| check_key(calls, 100_000),
    },
    Case {
        name: "tower_governor-ip/1",
        job: KEYED,
        bare: "peers-bare-axum-peer",
        run: |calls| governor_ip(calls, 1),
    },
    Case {
        name: "tower_governor-ip/1000",
        job: KEYED,
        bare: "peers-bare-axum-peer",
        run: |calls| governor_ip(calls, 1_000),
    },
    Case {
        name: "tower_governor-ip/100000",
        job: KEYED,
        bare: "peers-bare-axum-peer",
        run: |calls| governor_ip(calls, 100_000),
    },
    Case {
        name: "tower-concurrency",
        job: CONCURRENCY,
        bare: "peers-bare",
        run: concurrency,
    },
    Case {
        name: "tower-load-shed",
        job: CONCURRENCY,
        bare: "peers-bare",
        run: load_shed,
    },
    Case {
        name: "tower-load-shed+concurrency",
        job: CONCURRENCY,
        bare: "peers-bare",
        run: load_shed_concurrency,
    },
];

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "governor-check",
        run: |calls, threads| drive::contend(calls, threads, checked()),
    },
    Contended {
        name: "governor-check_key/1",
        run: |calls, threads| drive::contend(calls, threads, checked_key(1)),
    },
    Contended {
        name: "governor-check_key/1000",
        run: |calls, threads| drive::contend(calls, threads, checked_key(1_000)),
    },
    Contended {
        name: "governor-check_key/100000",
        run: |calls, threads| drive::contend(calls, threads, checked_key(100_000)),
    },
    Contended {
        name: "tower_governor-ip/1",
        run: |calls, threads| contend_governor_ip(calls, threads, 1),
    },
    Contended {
        name: "tower_governor-ip/1000",
        run: |calls, threads| contend_governor_ip(calls, threads, 1_000),
    },
    Contended {
        name: "tower_governor-ip/100000",
        run: |calls, threads| contend_governor_ip(calls, threads, 100_000),
    },
    Contended {
        name: "tower-resilience-rate",
        run: contend_resilience,
    },
    Contended {
        name: "tower-rate-buffer",
        run: contend_rate,
    },
];

const SHARED: &str = "rate, one state";
const KEYED: &str = "rate, per client";
const CONCURRENCY: &str = "concurrency";

/// So much that nothing is ever refused.
const PLENTY: NonZeroU32 = NonZeroU32::MAX;

fn check(calls: u32) {
    drive::calls(calls, checked());
}

fn checked() -> Checked {
    Checked {
        inner: Bare,
        limiter: Arc::new(RateLimiter::direct(Quota::per_second(PLENTY))),
    }
}

fn check_key(calls: u32, keys: u32) {
    drive::calls(calls, checked_key(keys));
}

/// All keys are known from the start.
fn checked_key(keys: u32) -> CheckedKey {
    let limiter = RateLimiter::keyed(Quota::per_second(PLENTY));
    (0..keys).for_each(|key| limiter.check_key(&key).expect("there is plenty"));
    CheckedKey {
        inner: Bare,
        limiter: Arc::new(limiter),
        keys,
    }
}

/// Its timer wants a runtime.
fn rate(calls: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    drive::calls(
        calls,
        RateLimit::new(Bare, Rate::new(PLENTY.get().into(), Duration::from_secs(1))),
    );
}

fn resilience(calls: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    drive::calls(calls, resilient().layer(Bare));
}

fn contend_resilience(calls: u32, threads: usize) -> Duration {
    drive::contend(calls, threads, resilient().layer(Bare))
}

fn resilient() -> RateLimiterLayer {
    RateLimiterLayer::builder()
        .limit_for_period(u32::MAX as usize)
        .refresh_period(Duration::from_secs(3600))
        .timeout_duration(Duration::ZERO)
        .build()
        .expect("a valid limit")
}

/// Which is not `Clone`, and so has a buffer before it and a thread of its own.
fn contend_rate(calls: u32, threads: usize) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let entered = runtime.enter();
    let rate = RateLimit::new(Bare, Rate::new(PLENTY.get().into(), Duration::from_secs(1)));
    drop(entered);
    let (buffer, worker) = Buffer::pair(rate, 1_024);
    std::thread::spawn(move || runtime.block_on(worker));
    drive::contend(calls, threads, buffer)
}

fn governor_global(calls: u32) {
    let mut builder = GovernorConfigBuilder::default();
    let config = builder
        .key_extractor(GlobalKeyExtractor)
        .per_nanosecond(1)
        .burst_size(u32::MAX)
        .finish();
    drive::http_calls(
        calls,
        GovernorLayer::new(config.expect("a valid quota")).layer(AXUM),
        drive::plain,
    );
}

fn governor_ip(calls: u32, clients: u32) {
    let service = GovernorLayer::new(known(clients)).layer(AXUM);
    drive::http_calls(calls, service, drive::from_clients(clients, ConnectInfo));
}

/// All clients are known from the start.
fn known(clients: u32) -> GovernorConfig<PeerIpKeyExtractor, NoOpMiddleware<QuantaInstant>> {
    let config = GovernorConfigBuilder::default()
        .per_nanosecond(1)
        .burst_size(u32::MAX)
        .finish()
        .expect("a valid quota");
    for index in 0..clients {
        let client = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + index);
        config
            .limiter()
            .check_key(&IpAddr::V4(client))
            .expect("there is plenty");
    }
    config
}

fn contend_governor_ip(calls: u32, threads: usize, clients: u32) -> Duration {
    let service = FromClients {
        service: GovernorLayer::new(known(clients)).layer(AXUM),
        clients,
        extension: ConnectInfo,
    };
    drive::contend(calls, threads, service)
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

#[derive(Clone)]
struct Checked {
    inner: Bare,
    limiter: Arc<DefaultDirectRateLimiter>,
}

#[derive(Clone)]
struct CheckedKey {
    inner: Bare,
    limiter: Arc<DefaultKeyedRateLimiter<u32>>,
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
        self.limiter
            .check_key(&(request % self.keys))
            .expect("there is plenty");
        self.inner.call(request)
    }
}
