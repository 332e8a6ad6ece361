//! The keeper against a store that misbehaves, in paused time. Each test names the rule it holds to.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, advance, sleep, timeout};
use tower_lease::{
    BootInstant, Clock, DocumentStore, Fault, Holder, Lease, LeaseStore, Lost, MemoryStore,
    Revision, State, TokioClock, Watch, WatchEvent,
};

use crate::common::{
    Flaky, Suspending, TTL, VALID, Way, builder, held, key, ms, settle, soon, spawn,
};

/// Runs a keeper just until its lease is held, and then never again.
async fn held_and_then_stuck<F: Future<Output = State>>(
    lease: &Lease<impl Clock>,
    mut keeper: std::pin::Pin<&mut F>,
) {
    tokio::select! {
        biased;
        _ = &mut keeper => panic!("the keeper ended"),
        token = lease.held() => drop(token.unwrap()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_acquired_and_kept() {
    let store = MemoryStore::new();
    let (lease, _keeper) = spawn(builder(&store));
    assert_eq!(
        (lease.state(), lease.token(), lease.is_held()),
        (State::Idle, None, false)
    );
    let token = soon(lease.held()).await.unwrap();
    assert_eq!((token.key(), token.epoch().get()), (&key(), 1));
    assert_eq!(lease.remaining(), VALID);
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        assert!(lease.is_held() && lease.remaining() > VALID / 2);
    }
    assert_eq!(lease.token(), Some(token), "renewing changes no token");
    let record = store.inspect(&key()).await.unwrap().unwrap();
    assert_eq!(record.holder().name(), "echo-0");
}

#[tokio::test(start_paused = true)]
async fn r1_validity_counts_from_before_the_request() {
    let store = Flaky::new();
    store.acquires([Way::Delay(ms(900))], Way::Pass);
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    assert_eq!(lease.remaining(), VALID - ms(900));
    store.renewals([], Way::Delay(ms(800)));
    for _ in 0..30 {
        sleep(ms(500)).await;
        assert!(
            lease.remaining() <= VALID - ms(100),
            "no renewal is counted from its answer"
        );
    }
    assert!(lease.is_held());
}

#[tokio::test(start_paused = true)]
async fn r2_the_ttl_in_the_answer_counts() {
    for (ttl, valid) in [(TTL * 3, ms(27_900)), (ms(3_000), ms(2_690))] {
        let store = Flaky::new();
        store.acquires([], Way::Ttl(ttl));
        let (lease, _keeper) = spawn(builder(&store));
        soon(lease.held()).await.unwrap();
        assert_eq!(lease.remaining(), valid);
    }
}

#[tokio::test(start_paused = true)]
async fn r2_the_ttl_in_a_renewals_answer_counts() {
    for (ttl, valid, period) in [
        (TTL * 3, ms(27_900), ms(7_500)),
        (ms(3_000), ms(2_690), ms(750)),
    ] {
        let store = Flaky::new();
        let (lease, _keeper) = spawn(builder(&store));
        soon(lease.held()).await.unwrap();
        store.renewals([], Way::Ttl(ttl));
        // The first grant has ended by then, so what is left is a renewal's.
        for _ in 0..400 {
            sleep(ms(50)).await;
        }
        let (before, start) = (store.sent().renewals, Instant::now());
        assert!(lease.remaining() <= valid && lease.remaining() >= valid - period);
        while store.sent().renewals < before + 4 {
            sleep(ms(10)).await;
            assert!(lease.remaining() <= valid && lease.remaining() + ms(20) >= valid - period);
        }
        let took = start.elapsed();
        assert!(took >= 3 * period * 4 / 5 && took <= 4 * period, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r3_a_machine_that_slept_past_the_end_finds_its_gate_closed_at_the_first_look() {
    let store = MemoryStore::new();
    let clock = Suspending::new();
    let (lease, keeper) = builder(&store).clock(clock.clone()).build().unwrap();
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    clock.suspend(Duration::from_secs(10));
    assert!(
        !lease.is_held(),
        "Tokio's clock has not moved, and nobody has run"
    );
    assert!(lease.enter(Duration::ZERO).is_err());
    assert_eq!(lease.token(), None);
}

#[tokio::test(start_paused = true)]
async fn r6_the_gate_closes_in_time_though_the_keeper_does_not_run() {
    let store = MemoryStore::new();
    let (lease, keeper) = builder(&store).build().unwrap();
    let mut keeper = pin!(keeper.run());
    held_and_then_stuck(&lease, keeper.as_mut()).await;
    let guard = lease.enter(Duration::ZERO).unwrap();
    advance(VALID - ms(1)).await;
    assert!(lease.is_held() && guard.is_valid());
    advance(ms(1)).await;
    assert!(!lease.is_held() && !guard.is_valid());
    assert_eq!((lease.token(), lease.remaining()), (None, Duration::ZERO));
    assert!(matches!(
        lease.state(),
        State::Fenced {
            cause: Lost::Expired,
            ..
        }
    ));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn r7_renewals_whose_answers_are_lost_extend_nothing_here() {
    let store = Flaky::new();
    let (lease, keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    let start = Instant::now();
    store.renewals([], Way::LoseAnswer);
    assert!(matches!(
        soon(keeper).await.unwrap(),
        State::Fenced {
            cause: Lost::Expired,
            ..
        }
    ));
    assert!(
        (VALID..VALID + ms(2)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert!(
        store.record().await.is_some(),
        "though the store extended it"
    );
}

#[tokio::test(start_paused = true)]
async fn r7_failures_of_every_kind_leave_the_validity_alone() {
    for fault in [Fault::NotSent, Fault::Refused, Fault::Unknown] {
        let store = Flaky::new();
        let (lease, keeper) = spawn(builder(&store));
        soon(lease.held()).await.unwrap();
        let start = Instant::now();
        store.renewals([], Way::Fail(fault));
        soon(keeper).await.unwrap();
        assert!(
            (VALID..VALID + ms(2)).contains(&start.elapsed()),
            "{fault:?}: {:?}",
            start.elapsed()
        );
        let retries = store.sent().renewals;
        assert!((14..80).contains(&retries), "{retries} attempts in 7 s");
    }
}

#[tokio::test(start_paused = true)]
async fn r8_answers_later_than_an_attempt_still_keep_the_lease() {
    let store = Flaky::new();
    let (lease, keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.renewals([], Way::Delay(ms(2_500)));
    for step in 0..120 {
        sleep(ms(500)).await;
        assert!(lease.is_held());
        assert!(
            step < 10 || lease.remaining() <= VALID - ms(2_500),
            "no answer counts from its arrival"
        );
    }
    assert!(!keeper.is_finished());
}

#[tokio::test(start_paused = true)]
async fn r11_r12_a_lease_taken_away_by_hand_closes_the_gate_at_once() {
    let (store, (lease, keeper)) = held().await;
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    store.revoke(&key(), None).await.unwrap();
    assert!(matches!(
        soon(keeper).await.unwrap(),
        State::Fenced {
            cause: Lost::Gone,
            ..
        }
    ));
    assert!(
        start.elapsed() < ms(10),
        "within the watch's latency: {:?}",
        start.elapsed()
    );
    assert!(!lease.is_held());
}

#[tokio::test(start_paused = true)]
async fn r12_a_watch_that_cannot_be_kept_open_is_jeopardy() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    sleep(ms(100)).await;
    assert!(matches!(lease.state(), State::Held { .. }));
    store.watches_break(true);
    sleep(Duration::from_secs(1)).await;
    assert!(matches!(lease.state(), State::Jeopardy { .. }) && lease.is_held());
    store.watches_break(false);
    sleep(Duration::from_secs(1)).await;
    assert!(matches!(lease.state(), State::Held { .. }));
}

/// the next holder is known by a revision from before the grant. That is no old news, and no sign of health.
#[tokio::test(start_paused = true)]
async fn r24_the_holder_is_fenced_at_the_first_report_of_a_store_that_was_restored() {
    for is_taken in [false, true] {
        let store = Flaky::new();
        for _ in 0..3 {
            let (lease, _keeper) = spawn(builder(&store));
            soon(lease.held()).await.unwrap();
            lease.step_down().await;
        }
        let (lease, keeper) = spawn(builder(&store));
        soon(lease.held()).await.unwrap();
        sleep(ms(100)).await;
        let mut states = lease.subscribe();
        states.mark_unchanged();
        let told = tokio::spawn(async move {
            let mut told = Vec::new();
            while states.changed().await.is_ok() {
                told.push(states.borrow_and_update().to_string());
            }
            told
        });
        store.restore();
        let restored = Instant::now();
        let (other, _other) = spawn(builder(&store));
        if is_taken {
            soon(other.held()).await.unwrap();
        } else {
            store.acquires([], Way::LoseRequest);
        }
        assert!(matches!(
            soon(keeper).await.unwrap(),
            State::Fenced {
                cause: Lost::Rewound,
                ..
            }
        ));
        assert!(
            restored.elapsed() < ms(600),
            "long before a renewal: {:?}",
            restored.elapsed()
        );
        assert_eq!(lease.snapshot().losses.rewound, 1);
        assert_eq!(soon(told).await.unwrap(), ["jeopardy", "fenced"]);
    }
}

#[tokio::test(start_paused = true)]
async fn r13_jeopardy_is_seen_and_ends_with_a_success() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    let mut states = lease.subscribe();
    store.renewals([Way::Fail(Fault::Unknown); 3], Way::Pass);
    let jeopardy = soon(states.wait_for(|state| matches!(state, State::Jeopardy { .. })))
        .await
        .is_ok();
    assert!(jeopardy && lease.is_held());
    assert!(
        soon(states.wait_for(|state| matches!(state, State::Held { .. })))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn r14_a_grant_that_comes_too_late_is_released_and_not_used() {
    let store = Flaky::new();
    // Each answer outlives the promise in it.
    store.acquires([Way::Ttl(ms(100))], Way::Ttl(ms(100)));
    let (lease, _keeper) = spawn(builder(&store));
    sleep(ms(50)).await;
    assert!(!lease.is_held());
    assert!(store.record().await.is_none(), "taken away again");
    store.acquires([], Way::LoseAnswer);
    sleep(Duration::from_secs(30)).await;
    assert!(!lease.is_held());
    store.acquires([], Way::Pass);
    let token = soon(lease.held()).await.unwrap();
    assert_eq!(store.record().await.unwrap().token(), &token);
}

#[tokio::test(start_paused = true)]
async fn r15_an_acquire_whose_answer_is_lost_is_resolved_and_written_once() {
    for way in [Way::LoseAnswer, Way::DoneButUnknown, Way::LoseRequest] {
        let store = Flaky::new();
        store.acquires([way], Way::Pass);
        let (lease, _keeper) = spawn(builder(&store));
        let token = soon(lease.held()).await.unwrap();
        let record = store.record().await.unwrap();
        assert_eq!(record.token(), &token, "{way:?}");
        let revision = store.inner().list_prefix("").await.unwrap().revision;
        assert_eq!(revision, Revision::new(1), "{way:?}: exactly one write");
        assert_eq!(store.sent().acquires, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn r16_a_restart_inside_the_ttl_waits_and_gets_a_higher_token() {
    let (store, (lease, keeper)) = held().await;
    let old = lease.token().unwrap();
    keeper.abort();
    let _ = soon(keeper).await;
    let killed = Instant::now();
    let (revived, _keeper) = spawn(builder(&store));
    let new = soon(revived.held()).await.unwrap();
    assert!(old.compare(&new).unwrap().is_lt(), "{old} then {new}");
    assert!(
        (TTL..TTL + ms(60)).contains(&killed.elapsed()),
        "{:?}",
        killed.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn r16_a_holder_that_was_cloned_by_mistake_does_not_hold_twice() {
    let store = MemoryStore::new();
    let holder = Holder::new("echo-0");
    let spawn_one =
        || spawn(Lease::builder(store.clone(), key(), holder.clone()).clock(TokioClock::new()));
    let (one, _one) = spawn_one();
    let (two, _two) = spawn_one();
    for _ in 0..100 {
        sleep(ms(300)).await;
        assert!(!(one.is_held() && two.is_held()));
    }
    assert!(one.is_held() || two.is_held());
}

#[tokio::test(start_paused = true)]
async fn r17_a_contender_takes_over_milliseconds_after_a_release() {
    let (store, (lease, _keeper)) = held().await;
    let (successor, _successor) = spawn(builder(&store));
    sleep(Duration::from_secs(30)).await;
    assert!(!successor.is_held());
    let old = lease.token().unwrap();
    let start = Instant::now();
    assert_eq!(lease.step_down().await, State::Released);
    let new = soon(successor.held()).await.unwrap();
    assert!(start.elapsed() <= ms(60), "{:?}", start.elapsed());
    assert!(old.compare(&new).unwrap().is_lt());
}

#[tokio::test(start_paused = true)]
async fn r26_a_lost_lease_comes_back_only_as_a_new_epoch() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store).reacquire(true));
    let first = soon(lease.held()).await.unwrap();
    store.revoke(&key(), None).await.unwrap();
    settle().await;
    assert!(!lease.is_held());
    let second = soon(lease.held()).await.unwrap();
    assert!(first.compare(&second).unwrap().is_lt());
    // Lost for want of renewals, while the store still has the record: it does not wait for itself.
    store.renewals([], Way::LoseAnswer);
    let mut states = lease.subscribe();
    soon(states.wait_for(|state| matches!(state, State::Fenced { .. })))
        .await
        .unwrap();
    assert!(store.record().await.is_some());
    let start = Instant::now();
    let third = soon(lease.held()).await.unwrap();
    assert!(start.elapsed() < ms(600), "{:?}", start.elapsed());
    assert!(second.compare(&third).unwrap().is_lt());
}

#[tokio::test(start_paused = true)]
async fn r29_stepping_down_waits_for_requests_in_flight_and_admits_no_new_ones() {
    let (store, (lease, keeper)) = held().await;
    let guard = lease.enter(Duration::ZERO).unwrap();
    let stepping = tokio::spawn({
        let lease = lease.clone();
        async move { lease.step_down().await }
    });
    sleep(Duration::from_secs(5)).await;
    assert!(matches!(lease.state(), State::Closing { .. }));
    assert!(!lease.is_held() && lease.enter(Duration::ZERO).is_err());
    assert!(
        guard.is_valid() && lease.token().is_some(),
        "who is inside has the lease still"
    );
    assert!(store.inspect(&key()).await.unwrap().is_some());
    drop(guard);
    assert_eq!(soon(stepping).await.unwrap(), State::Released);
    assert_eq!(soon(keeper).await.unwrap(), State::Released);
    assert!(store.inspect(&key()).await.unwrap().is_none());
}

/// Sees how many are inside whenever the time is read, which a refusal does.
#[derive(Clone)]
struct Spy {
    clock: TokioClock,
    lease: Arc<OnceLock<Lease<Self>>>,
    most: Arc<AtomicUsize>,
}

impl Clock for Spy {
    fn now(&self) -> BootInstant {
        if let Some(lease) = self.lease.get() {
            self.most
                .fetch_max(lease.requests().inside, Ordering::SeqCst);
        }
        self.clock.now()
    }
}

/// Threads that ask again and again would keep the count above zero, and the drain would never end.
#[tokio::test(start_paused = true)]
async fn r29_a_request_rejected_while_closing_does_not_count_as_in_flight() {
    let spy = Spy {
        clock: TokioClock::new(),
        lease: Arc::default(),
        most: Arc::default(),
    };
    let (lease, keeper) = builder(&MemoryStore::new())
        .clock(spy.clone())
        .build()
        .unwrap();
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    let guard = lease.enter(Duration::ZERO).unwrap();
    tokio::spawn({
        let lease = lease.clone();
        async move { lease.step_down().await }
    });
    settle().await;
    assert!(matches!(lease.state(), State::Closing { .. }));
    assert!(spy.lease.set(lease.clone()).is_ok());
    for _ in 0..3 {
        assert!(lease.enter(Duration::ZERO).is_err());
    }
    assert_eq!(spy.most.load(Ordering::SeqCst), 1, "the one that is");
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn r29_a_request_that_stays_too_long_is_cancelled_before_the_release() {
    let store = MemoryStore::new();
    let (lease, _keeper) = spawn(builder(&store).drain_within(Duration::from_secs(15)));
    soon(lease.held()).await.unwrap();
    let guard = lease.enter(Duration::ZERO).unwrap();
    let start = Instant::now();
    assert_eq!(lease.step_down().await, State::Released);
    assert!(!guard.is_valid());
    let waited = start.elapsed();
    assert!(
        (ms(15_000)..ms(16_100)).contains(&waited),
        "longer than the TTL, renewing meanwhile: {waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn r30_a_release_that_is_never_answered_is_a_release() {
    let store = Flaky::new();
    store.releases(Way::LoseRequest);
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    let start = Instant::now();
    assert_eq!(lease.step_down().await, State::Released);
    assert!(start.elapsed() < ms(1_100));
    assert!(store.record().await.is_some(), "the TTL cleans up");
    sleep(TTL).await;
    assert!(store.record().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn r30_a_killed_keeper_closes_the_gate_and_the_ttl_cleans_up() {
    let (store, (lease, keeper)) = held().await;
    let mut watch = store.watch_prefix("svc/", Revision::START);
    assert!(matches!(watch.next().await.unwrap(), WatchEvent::Held(..)));
    let old = lease.token().unwrap();
    sleep(Duration::from_secs(7)).await;
    keeper.abort();
    let killed = Instant::now();
    settle().await;
    assert!(!lease.is_held() && lease.token().is_none());
    assert!(matches!(
        lease.state(),
        State::Fenced {
            cause: Lost::KeeperGone,
            ..
        }
    ));
    assert!(lease.held().await.is_err(), "nobody is left to get it");
    // The watcher sees the expiry though no call reaches the store.
    let event = soon(watch.next()).await.unwrap();
    assert!(matches!(event, WatchEvent::Vacant(vacant, _) if vacant == key()));
    assert!(
        killed.elapsed() > ms(7_000) && killed.elapsed() <= TTL,
        "{:?}",
        killed.elapsed()
    );
    let (revived, _keeper) = spawn(builder(&store));
    assert!(
        old.compare(&soon(revived.held()).await.unwrap())
            .unwrap()
            .is_lt()
    );
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_is_dropped_unspawned_leaves_no_one_waiting() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let waiting = tokio::spawn({
        let lease = lease.clone();
        async move { soon(lease.held()).await }
    });
    settle().await;
    drop(keeper);
    assert!(soon(waiting).await.unwrap().is_err());
    assert_eq!(
        (lease.state(), lease.step_down().await),
        (State::Released, State::Released)
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_takes_the_keeper_down_and_closes_the_gate() {
    let store = Flaky::new();
    let (lease, keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.renewals([], Way::Panic);
    assert!(soon(keeper).await.unwrap_err().is_panic());
    assert!(!lease.is_held() && lease.has_ended());
}

#[tokio::test(start_paused = true)]
async fn stepping_down_goes_on_after_its_future_is_dropped() {
    let (_store, (lease, keeper)) = held().await;
    assert!(timeout(Duration::ZERO, lease.step_down()).await.is_err());
    assert_eq!(soon(keeper).await.unwrap(), State::Released);
}

#[tokio::test(start_paused = true)]
async fn states_are_published_in_order_and_end_with_the_keeper() {
    let store = MemoryStore::new();
    let (lease, keeper) = builder(&store).build().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut states = lease.subscribe();
    let listener = tokio::spawn({
        let told = told.clone();
        async move {
            while states.changed().await.is_ok() {
                told.lock()
                    .unwrap()
                    .push(states.borrow_and_update().to_string());
            }
        }
    });
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    settle().await;
    lease.step_down().await;
    soon(listener).await.unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told.last().unwrap(), "released");
    assert!(told.contains(&"held".to_owned()), "{told:?}");
}

/// I1 with true keepers: three of them on a network that loses and delays, for ten minutes.
#[tokio::test(start_paused = true)]
async fn i1_no_two_keepers_hold_at_once() {
    let store = Flaky::new();
    let keepers: Vec<_> = (0..3)
        .map(|_| spawn(builder(&store).reacquire(true)))
        .collect();
    let over = AtomicBool::new(false);
    let check = async {
        let mut held = 0;
        for step in 0..60_000_u32 {
            sleep(ms(10)).await;
            let open = keepers.iter().filter(|(lease, _)| lease.is_held()).count();
            assert!(open <= 1, "at {step}");
            held += open;
        }
        over.store(true, Ordering::SeqCst);
        held
    };
    let trouble = async {
        let mut rng = fastrand::Rng::with_seed(11);
        let ways = [
            Way::Pass,
            Way::LoseAnswer,
            Way::LoseRequest,
            Way::DoneButUnknown,
            Way::Delay(ms(3_000)),
        ];
        while !over.load(Ordering::SeqCst) {
            store.renewals([], ways[rng.usize(..ways.len())]);
            store.acquires([], ways[rng.usize(..ways.len())]);
            store.releases(ways[rng.usize(..ways.len())]);
            sleep(Duration::from_millis(rng.u64(1_000..20_000))).await;
        }
    };
    let (held, ()) = tokio::join!(check, trouble);
    assert!(held > 10_000, "held in {held} of 60 000 looks");
    let revision = store.inner().list_prefix("").await.unwrap().revision;
    assert!(
        revision > Revision::new(20),
        "and it changed hands: {revision:?}"
    );
}
