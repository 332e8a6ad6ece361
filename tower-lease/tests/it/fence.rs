//! The resource's side: what a fence lets pass, over restarts, failures of its mark, and everything at once.

use std::{
    convert::Infallible,
    future::pending,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use testkit::{Answer, Probe, contract};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_lease::{
    FencingToken, LeaseKey, LeaseStore, MemoryStore, PropagateLayer,
    fence::{
        Fence, FenceLayer, FencePass, HighWaterCache, HighWaterMark, MemoryMark, StaleToken,
        StoreMark,
    },
};
use tower_outcome::{BoxError, Class, Refusal, Refused};

use crate::common::{builder, held, key, ms, settle, soon, spawn};

fn named(key: &str, epoch: u64) -> FencingToken {
    FencingToken::new(LeaseKey::new(key).unwrap(), NonZeroU64::new(epoch).unwrap())
}

fn token(epoch: u64) -> FencingToken {
    FencingToken::new(key(), NonZeroU64::new(epoch).unwrap())
}

fn bearing(token: impl ToString) -> Request<String> {
    Request::builder()
        .header("x-lease-token", token.to_string())
        .body(String::new())
        .unwrap()
}

fn code(error: &BoxError) -> &'static str {
    Refusal::find(&**error).expect("a refusal").code()
}

async fn ask<S, Req>(service: &mut S, request: Req) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
{
    soon(async { service.ready().await?.call(request).await }).await
}

/// A mark that answers as the test sets it, and counts.
#[derive(Clone, Default)]
struct Moody {
    inner: MemoryMark,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Default)]
enum Mood {
    #[default]
    Well,
    Slow(Duration),
    Fails,
    Hangs,
}

impl Moody {
    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

impl HighWaterMark for Moody {
    fn cache(&self) -> &HighWaterCache {
        self.inner.cache()
    }

    async fn raise(&self, token: &FencingToken) -> Result<Option<NonZeroU64>, BoxError> {
        self.asked.fetch_add(1, SeqCst);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => {}
            Mood::Slow(time) => sleep(time).await,
            Mood::Fails => return Err("the disk is full".into()),
            Mood::Hangs => pending().await,
        }
        self.inner.raise(token).await
    }
}

// === the contract ===

#[tokio::test(start_paused = true)]
async fn the_contract_holds() {
    let (_store, (lease, _keeper)) = held().await;
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let layer = FenceLayer::new(&fence);
    contract::check(|probe| layer.clone().allow_missing().layer(probe));
    contract::check(|probe| layer.clone().allow_missing().respond().layer(probe));
    contract::check(|probe| PropagateLayer::new(&lease).layer(probe));
    // With a token; in the first of these calls it is new, and the mark is asked.
    let fence = Fence::of_key(key(), StoreMark::new(_store)).build();
    contract::check(|probe| {
        PropagateLayer::new(&lease).layer(FenceLayer::new(&fence).layer(probe))
    });
    contract::check(|probe| {
        PropagateLayer::new(&lease).layer(FenceLayer::new(&fence).respond().layer(probe))
    });
    assert_eq!(fence.counts().asked, 1);
}

// === I2, R-21 ===

#[tokio::test(start_paused = true)]
async fn i2_a_lower_token_than_the_highest_seen_is_refused() {
    let (probe, handle) = Probe::new();
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let mut resource = FenceLayer::new(&fence).layer(probe);
    assert!(ask(&mut resource, bearing(token(7))).await.is_ok());
    assert!(ask(&mut resource, bearing(token(7))).await.is_ok());
    assert!(ask(&mut resource, bearing(token(9))).await.is_ok());
    let error = ask(&mut resource, bearing(token(7))).await.unwrap_err();
    let refused = error.downcast_ref::<StaleToken>().unwrap();
    assert_eq!(
        (refused.refusal().class(), refused.refusal().code()),
        (Class::Stale, "token-stale")
    );
    assert_eq!(refused.floor(), NonZeroU64::new(9));
    assert_eq!(
        refused.to_string(),
        "the fencing token (epoch 7) is older than the highest seen (epoch 9)"
    );
    assert_eq!(handle.calls(), 3);
    assert_eq!(fence.floor(&key()), Some(token(9)));
    let counts = fence.counts();
    assert_eq!(
        (
            counts.stale,
            counts.bad,
            counts.unknown,
            counts.asked,
            counts.keys
        ),
        (1, 0, 0, 2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn r21_a_restart_loads_the_floor_and_an_empty_memory_is_none() {
    let mark = MemoryMark::new();
    let before = Fence::of_key(key(), mark.clone()).build();
    before.admit(&token(9)).await.unwrap();
    drop(before);
    let after = Fence::of_key(key(), mark).build();
    assert_eq!(after.floor(&key()), None, "it has not asked yet");
    assert_eq!(
        after.admit(&token(7)).await.unwrap_err().floor(),
        NonZeroU64::new(9)
    );
    assert!(after.admit(&token(9)).await.is_ok());
    // What the rule is about: without its durable state it lets pass what it must not.
    let forgetful = Fence::of_key(key(), MemoryMark::new()).build();
    assert!(forgetful.admit(&token(7)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn r21_the_store_supplies_the_floor() {
    let (store, (first, keeper)) = held().await;
    let old = first.token().unwrap();
    first.step_down().await;
    soon(keeper).await.unwrap();
    // Vacant: no token is valid.
    let fence = Fence::of_key(key(), StoreMark::new(store.clone())).build();
    let refused = fence.admit(&old).await.unwrap_err();
    assert_eq!(
        (refused.refusal().code(), refused.floor()),
        ("token-stale", None)
    );
    let (second, _keeper) = spawn(builder(&store));
    let new = soon(second.held()).await.unwrap();
    // The fence was made anew and has seen neither.
    let fence = Fence::of_key(key(), StoreMark::new(store)).build();
    assert_eq!(
        fence.admit(&old).await.unwrap_err().floor(),
        Some(new.epoch())
    );
    assert!(fence.admit(&new).await.is_ok());
    // One that was never given out would lock every holder out, if it passed.
    let forged = fence.admit(&token(u64::MAX)).await.unwrap_err();
    assert_eq!(
        (forged.refusal().class(), forged.refusal().code()),
        (Class::Stale, "token-ahead")
    );
    assert!(fence.admit(&new).await.is_ok());
}

/// a store that was restored gives out tokens that went back. That shows as refusals.
#[tokio::test(start_paused = true)]
async fn r24_after_a_restore_of_the_store_tokens_are_refused_and_nothing_is_corrupted() {
    let restored = |epoch: u64| async move {
        let store = MemoryStore::new();
        for _ in 1..epoch {
            let (lease, keeper) = spawn(builder(&store));
            soon(lease.held()).await.unwrap();
            lease.step_down().await;
            soon(keeper).await.unwrap();
        }
        let kept = spawn(builder(&store));
        (soon(kept.0.held()).await.unwrap(), kept, store)
    };
    let (before, _kept, _store) = restored(4).await;
    let (rewound, _rewound_kept, rewound_store) = restored(2).await;
    assert!(before.epoch() > rewound.epoch());
    // A separate mark.
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    fence.admit(&before).await.unwrap();
    assert_eq!(
        fence.admit(&rewound).await.unwrap_err().refusal().code(),
        "token-stale"
    );
    // A fence that asks the store, which has forgotten: the old holder's token is ahead of it.
    let fence = Fence::of_key(key(), StoreMark::new(rewound_store)).build();
    assert_eq!(
        fence.admit(&before).await.unwrap_err().refusal().code(),
        "token-ahead"
    );
}

/// F-08: a holder that was stopped sends what it was about to send, after its successor has.
#[tokio::test(start_paused = true)]
async fn f08_a_holder_that_slept_through_its_end_is_refused_by_the_resource() {
    let store = MemoryStore::new();
    let fence = Fence::of_key(key(), StoreMark::new(store.clone())).build();
    let written = Arc::new(Mutex::new(Vec::new()));
    let resource = service_fn(|request: Request<String>| {
        let written = written.clone();
        async move {
            written.lock().unwrap().push(
                request
                    .extensions()
                    .get::<FencePass>()
                    .unwrap()
                    .token()
                    .epoch()
                    .get(),
            );
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let mut resource = FenceLayer::new(&fence).respond().layer(resource);
    let (sleeper, keeper) = spawn(builder(&store));
    let old = soon(sleeper.held()).await.unwrap();
    assert_eq!(
        ask(&mut resource, bearing(&old)).await.unwrap().status(),
        200
    );
    // Its keeper stands still; its record expires; another one takes over.
    keeper.abort();
    let (successor, _keeper) = spawn(builder(&store));
    let new = soon(successor.held()).await.unwrap();
    assert_eq!(
        ask(&mut resource, bearing(&new)).await.unwrap().status(),
        200
    );
    let refused = ask(&mut resource, bearing(&old)).await.unwrap();
    assert_eq!(refused.status(), 412);
    assert_eq!(
        *written.lock().unwrap(),
        [old.epoch().get(), new.epoch().get()]
    );
}

/// One process with a fence in its HTTP server and one in its gRPC server, for example, and one file for both.
#[tokio::test(start_paused = true)]
async fn i2_fences_over_clones_of_one_mark_have_one_floor() {
    async fn check<M: HighWaterMark + Clone>(
        mark: M,
        old: &FencingToken,
        new: impl AsyncFnOnce() -> FencingToken,
    ) {
        let http = Fence::of_key(key(), mark.clone()).build();
        let grpc = Fence::of_prefix("svc/", mark.clone()).build();
        let passes = [
            http.admit(old).await.unwrap(),
            grpc.admit(old).await.unwrap(),
        ];
        let new = new().await;
        http.admit(&new).await.unwrap();
        let refused = grpc.admit(old).await.unwrap_err();
        assert_eq!(
            (refused.refusal().code(), refused.floor()),
            ("token-stale", Some(new.epoch()))
        );
        assert!(passes.iter().all(|pass| !pass.is_current()));
        // The answer is the other one's, too.
        grpc.admit(&new).await.unwrap();
        assert_eq!(grpc.counts().asked + http.counts().asked, 2);
        // One that was made later, and one whose other has gone.
        drop(http);
        let later = Fence::of_key(key(), mark).build();
        assert!(later.admit(old).await.is_err() && grpc.admit(old).await.is_err());
    }

    check(MemoryMark::new(), &token(7), async || token(9)).await;
    check(Moody::default(), &token(7), async || token(9)).await;
    let (store, (first, _one)) = held().await;
    let old = first.token().unwrap();
    let (second, _two) = spawn(builder(&store));
    check(StoreMark::new(store), &old, async || {
        first.step_down().await;
        soon(second.held()).await.unwrap()
    })
    .await;
    #[cfg(feature = "file")]
    {
        let path = std::env::temp_dir().join(format!("tower-lease-fences-{}", std::process::id()));
        let mark = tower_lease::fence::FileMark::open(&path).unwrap();
        check(mark, &token(7), async || token(9)).await;
        for ending in ["", ".lock"] {
            std::fs::remove_file(format!("{}{ending}", path.display())).unwrap();
        }
    }
}

/// I2 over 200 random histories: tokens of three keys in any order, through two fences over one mark that forget (capacity
/// for two keys) and are restarted, with requests at once. What passes never goes down.
#[tokio::test(start_paused = true)]
async fn i2_what_passes_never_goes_down_over_random_histories() {
    let mut passed_in_all = 0;
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mark = Moody::default();
        let build = || {
            Fence::of_prefix("k", mark.clone())
                .capacity(NonZeroUsize::new(2).unwrap())
                .build()
        };
        let (mut fences, mut highest) = ([build(), build()], [0_u64; 3]);
        for _ in 0..30 {
            mark.be(*[Mood::Well, Mood::Slow(ms(3)), Mood::Fails]
                .get(random.usize(0..3))
                .unwrap());
            if random.u8(0..8) == 0 {
                fences[random.usize(0..2)] = build();
            }
            let at_once: Vec<_> = (0..random.usize(1..4))
                .map(|_| (random.usize(0..3), random.u64(1..12)))
                .collect();
            let before = highest;
            let asked: Vec<_> = at_once
                .iter()
                .map(|&(key, epoch)| {
                    let fence = fences[random.usize(0..2)].clone();
                    tokio::spawn(async move {
                        fence.admit(&named(&format!("k{key}"), epoch)).await.is_ok()
                    })
                })
                .collect();
            for (asked, (key, epoch)) in asked.into_iter().zip(at_once) {
                if soon(asked).await.unwrap() {
                    assert!(
                        epoch >= before[key],
                        "seed {seed}: {epoch} of k{key} passed behind {}",
                        before[key]
                    );
                    highest[key] = highest[key].max(epoch);
                    passed_in_all += 1;
                }
            }
            assert!(fences.iter().all(|fence| fence.counts().keys <= 2));
        }
    }
    assert!(passed_in_all > 1_000, "{passed_in_all}");
}

// === R-25 ===

#[tokio::test(start_paused = true)]
async fn r25_a_token_of_another_lease_is_no_right_to_this_resource() {
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let refused = fence.admit(&named("other", 9)).await.unwrap_err();
    assert_eq!(
        (refused.refusal().class(), refused.refusal().code()),
        (Class::BadRequest, "token-of-another-key")
    );
    assert_eq!(fence.counts().keys, 0, "and takes no room");
    let fence = Fence::of_prefix("shard/", MemoryMark::new()).build();
    assert!(fence.admit(&named("shard/1", 9)).await.is_ok());
    assert!(
        fence.admit(&named("shard/2", 3)).await.is_ok(),
        "each key has a floor of its own"
    );
    assert!(fence.admit(&named("shard/2", 2)).await.is_err());
    assert!(fence.admit(&named("shards", 9)).await.is_err());
}

// === what comes in ===

#[tokio::test(start_paused = true)]
async fn a_request_without_a_token_is_refused_or_let_pass_by_choice() {
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    let layer = FenceLayer::new(&fence);
    let (probe, handle) = Probe::new();
    let mut strict = layer.clone().layer(probe);
    assert_eq!(
        code(
            &ask(&mut strict, Request::new(String::new()))
                .await
                .unwrap_err()
        ),
        "token-missing"
    );
    assert_eq!(handle.calls(), 0);
    let (probe, handle) = Probe::new();
    let mut lenient = layer.allow_missing().layer(probe);
    assert!(ask(&mut lenient, Request::new(String::new())).await.is_ok());
    assert!(
        handle
            .last_head()
            .unwrap()
            .extensions
            .get::<FencePass>()
            .is_none()
    );
    assert!(ask(&mut lenient, bearing(token(2))).await.is_ok());
    assert_eq!(
        code(&ask(&mut lenient, bearing(token(1))).await.unwrap_err()),
        "token-stale"
    );
}

#[tokio::test(start_paused = true)]
async fn a_malformed_token_is_rejected_in_every_mode() {
    let fence = Fence::of_prefix("", MemoryMark::new()).build();
    let (probe, handle) = Probe::new();
    let mut resource = FenceLayer::new(&fence).allow_missing().layer(probe);
    for nonsense in [
        "",
        "a",
        "a;",
        ";1",
        "a;0",
        "a;-1",
        "a;+1",
        "a;1;2",
        "a b;1",
        "a;18446744073709551616",
    ] {
        assert_eq!(
            code(&ask(&mut resource, bearing(nonsense)).await.unwrap_err()),
            "token-malformed",
            "{nonsense:?}"
        );
    }
    let two = Request::builder()
        .header("x-lease-token", "a;1")
        .header("x-lease-token", "a;2");
    assert_eq!(
        code(
            &ask(&mut resource, two.body(String::new()).unwrap())
                .await
                .unwrap_err()
        ),
        "token-malformed"
    );
    let binary = Request::builder()
        .header("x-lease-token", &b"\xff;1"[..])
        .body(String::new())
        .unwrap();
    assert_eq!(
        code(&ask(&mut resource, binary).await.unwrap_err()),
        "token-malformed"
    );
    assert_eq!((handle.calls(), fence.counts().bad), (0, 12));
}

#[tokio::test(start_paused = true)]
async fn respond_answers_in_the_requests_protocol_and_keeps_the_error_type() {
    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    fence.admit(&token(9)).await.unwrap();
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let mut resource = FenceLayer::new(&fence).respond().layer(inner);
    let Ok(response) = ask(&mut resource, bearing(token(7))).await;
    assert_eq!(response.status(), 412);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        text,
        "the fencing token (epoch 7) is older than the highest seen (epoch 9)\n"
    );
    let mut grpc = bearing(token(7));
    *grpc.method_mut() = Method::POST;
    grpc.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let Ok(response) = ask(&mut resource, grpc).await;
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["grpc-status"]
        ),
        (200, &"9".parse().unwrap())
    );
    let Ok(response) = ask(&mut resource, Request::new(String::new())).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_can_check_again_before_the_effect() {
    let fence = Fence::of_prefix("", MemoryMark::new())
        .capacity(NonZeroUsize::new(2).unwrap())
        .build();
    let pass = fence.admit(&token(7)).await.unwrap();
    assert!(pass.is_current());
    assert_eq!(pass.token(), token(7));
    let next = fence.admit(&token(8)).await.unwrap();
    assert!(!pass.is_current() && next.is_current());
    // For want of room the key is forgotten, sooner or later.
    for other in 0..10 {
        fence
            .admit(&named(&format!("other/{other}"), 1))
            .await
            .unwrap();
    }
    assert!(fence.counts().keys <= 2);
    assert!(next.is_current());
    assert!(
        fence.admit(&token(7)).await.is_err(),
        "the mark has not forgotten"
    );
    fence.admit(&token(9)).await.unwrap();
    assert!(
        !next.is_current(),
        "what passed hears of it though the key was forgotten meanwhile"
    );
}

// === the mark ===

#[tokio::test(start_paused = true)]
async fn while_the_floor_is_unknown_no_new_token_passes() {
    let mark = Moody::default();
    let fence = Fence::of_key(key(), mark.clone()).build();
    let mut resource = FenceLayer::new(&fence).respond().layer(Probe::new().0);
    assert_eq!(
        ask(&mut resource, bearing(token(7)))
            .await
            .unwrap()
            .status(),
        200
    );
    mark.be(Mood::Fails);
    let refused = ask(&mut resource, bearing(token(8))).await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert_eq!(
        ask(&mut resource, bearing(token(7)))
            .await
            .unwrap()
            .status(),
        200,
        "it is known"
    );
    mark.be(Mood::Hangs);
    let start = Instant::now();
    assert_eq!(
        ask(&mut resource, bearing(token(8)))
            .await
            .unwrap()
            .status(),
        503
    );
    assert_eq!(start.elapsed().as_secs(), 1);
    mark.be(Mood::Well);
    assert_eq!(
        ask(&mut resource, bearing(token(8)))
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        ask(&mut resource, bearing(token(7)))
            .await
            .unwrap()
            .status(),
        412
    );
    assert_eq!((fence.counts().unknown, fence.counts().stale), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_with_a_new_token_asks_once() {
    let mark = Moody::default();
    mark.be(Mood::Slow(ms(100)));
    let fence = Fence::of_key(key(), mark.clone()).build();
    let crowd: Vec<_> = (0..200)
        .map(|index| {
            let fence = fence.clone();
            tokio::spawn(async move { fence.admit(&token(5 + index % 2)).await.is_ok() })
        })
        .collect();
    let start = Instant::now();
    let mut passed = 0;
    for asked in crowd {
        passed += usize::from(soon(asked).await.unwrap());
    }
    assert!(mark.asked.load(SeqCst) <= 2, "{:?}", mark.asked);
    assert!(
        passed >= 100 && start.elapsed() < ms(300),
        "{passed} in {:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_while_it_asks_lets_the_next_one_ask() {
    let mark = Moody::default();
    mark.be(Mood::Hangs);
    let (probe, handle) = Probe::new();
    let fence = Fence::of_key(key(), mark.clone()).build();
    let mut resource = FenceLayer::new(&fence).layer(probe);
    let hung = tokio::spawn(resource.ready().await.unwrap().call(bearing(token(3))));
    settle().await;
    let waiting = tokio::spawn(resource.ready().await.unwrap().call(bearing(token(3))));
    settle().await;
    assert_eq!(mark.asked.load(SeqCst), 1);
    mark.be(Mood::Well);
    hung.abort();
    assert!(soon(waiting).await.unwrap().is_ok());
    assert_eq!((handle.calls(), handle.in_flight()), (1, 0));
    drop(resource);
    assert_eq!(handle.clones(), 0, "nothing keeps the service");
}

/// A request that waits for the mark has polled the very clone of the inner service that it calls.
#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_the_mark_calls_the_service_that_was_ready() {
    let mark = Moody::default();
    mark.be(Mood::Slow(ms(50)));
    let (probe, handle) = Probe::new();
    handle.answer(Answer::Status(201));
    let fence = Fence::of_key(key(), mark).build();
    let mut resource = FenceLayer::new(&fence).layer(probe);
    // The strict probe panics if the wrong one is called.
    let waiting = tokio::spawn(resource.ready().await.unwrap().call(bearing(token(3))));
    settle().await;
    assert_eq!(handle.calls(), 0);
    assert!(
        ask(&mut resource, bearing(token(2))).await.is_err(),
        "it came later and is lower"
    );
    assert_eq!(soon(waiting).await.unwrap().unwrap().status(), 201);
}

/// A store that may return stale reads has no floor.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_not_linearizable_is_no_mark() {
    #[derive(Clone)]
    struct Sloppy(MemoryStore);

    impl LeaseStore for Sloppy {
        type Watch = <MemoryStore as LeaseStore>::Watch;
        type Fencing = <MemoryStore as LeaseStore>::Fencing;

        fn capabilities(&self) -> tower_lease::Capabilities {
            self.0.capabilities().with_linearizable(false)
        }
        async fn acquire(
            &self,
            claim: &tower_lease::Claim,
        ) -> Result<tower_lease::Acquired, tower_lease::StoreError> {
            self.0.acquire(claim).await
        }
        async fn renew(
            &self,
            claim: &tower_lease::Claim,
        ) -> Result<Duration, tower_lease::StoreError> {
            self.0.renew(claim).await
        }
        async fn release(&self, claim: &tower_lease::Claim) -> Result<(), tower_lease::StoreError> {
            self.0.release(claim).await
        }
        async fn revoke(
            &self,
            key: &LeaseKey,
            guard: Option<&FencingToken>,
        ) -> Result<(), tower_lease::StoreError> {
            self.0.revoke(key, guard).await
        }
        async fn inspect(
            &self,
            key: &LeaseKey,
        ) -> Result<Option<tower_lease::Record>, tower_lease::StoreError> {
            self.0.inspect(key).await
        }
        fn watch(&self, key: &LeaseKey, from: tower_lease::Revision) -> Self::Watch {
            self.0.watch(key, from)
        }
    }

    let (store, (lease, _keeper)) = held().await;
    let fence = Fence::of_key(key(), StoreMark::new(Sloppy(store))).build();
    let refused = fence.admit(&lease.token().unwrap()).await.unwrap_err();
    assert_eq!(refused.refusal().code(), "floor-unknown");
}

/// The bounds of axum's `Router::layer` and of a client's stack.
#[test]
fn the_layers_fit_where_they_are_to_be_used() {
    type Inner = tower::util::BoxCloneSyncService<Request<String>, Response<String>, Infallible>;

    fn router_layer<L>(_: &L)
    where
        L: Layer<Inner> + Clone + Send + Sync + 'static,
        L::Service: Service<Request<String>, Error = Infallible> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<String>>>::Future: Send + 'static,
        <L::Service as Service<Request<String>>>::Response: 'static,
    {
    }
    fn client<L>(_: &L)
    where
        L: Layer<Inner> + Clone + Send + Sync + 'static,
        L::Service:
            Service<Request<String>, Error = BoxError> + Clone + Send + Sync + Unpin + 'static,
        <L::Service as Service<Request<String>>>::Future: Send + 'static,
    {
    }
    fn handle<T: Clone + Send + Sync + Unpin + 'static>(_: &T) {}

    let fence = Fence::of_key(key(), MemoryMark::new()).build();
    handle(&fence);
    router_layer(&FenceLayer::new(&fence).respond());
    client(&FenceLayer::new(&fence));
    let holder = tower_lease::Holder::new("a");
    let (lease, _keeper) = tower_lease::Lease::builder(MemoryStore::new(), key(), holder)
        .build()
        .unwrap();
    client(&PropagateLayer::new(&lease));
}
