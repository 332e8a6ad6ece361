//! A lease's readiness: what probes are answered in each state, and when a change is reported.

use std::{
    future::{Future, ready},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Request;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::ServiceExt;
use tower_lease::{Fault, LeaseStore, MemoryStore, State};
use tower_outcome::{Class, Refusal};

use crate::common::{Flaky, VALID, Way, builder, held, key, ms, settle, soon, spawn};

const NOT_HELD: Refusal = Refusal::new(Class::Unavailable, "lease-not-held");

/// Whether a change was reported already.
async fn is_reported(changed: impl Future<Output = ()>) -> bool {
    timeout(Duration::ZERO, changed).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn probes_get_503_until_the_lease_is_held_and_200_then() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let readiness = lease.readiness();
    let probe = || readiness.clone().oneshot(Request::new(()));
    assert_eq!(readiness.check(), Err(NOT_HELD));
    assert_eq!(probe().await.unwrap().status(), 503);
    let changed = readiness.changed();
    tokio::spawn(keeper.run());
    soon(changed).await;
    assert_eq!(readiness.check(), Ok(()));
    assert_eq!(probe().await.unwrap().status(), 200);
    lease.step_down().await;
    assert_eq!(probe().await.unwrap().status(), 503);
}

#[tokio::test(start_paused = true)]
async fn each_transition_between_ready_and_not_is_reported_once() {
    let store = Flaky::new();
    let (lease, keeper) = spawn(builder(&store).reacquire(true));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = reports.clone();
    let follow = tokio::spawn(lease.readiness().follow(move |now| {
        sink.lock().unwrap().push(now.is_ok());
        ready(())
    }));
    let told = || std::mem::take(&mut *reports.lock().unwrap());
    settle().await;
    soon(lease.held()).await.unwrap();
    settle().await;
    assert_eq!(told().last(), Some(&true));
    // Renewals change nothing, and neither does a failure of some.
    sleep(Duration::from_secs(60)).await;
    store.renewals([Way::Fail(Fault::Unknown); 4], Way::Pass);
    let mut states = lease.subscribe();
    let jeopardy = |state: &State| matches!(state, State::Jeopardy { .. });
    soon(states.wait_for(jeopardy)).await.unwrap();
    assert_eq!(lease.readiness().check(), Ok(()), "jeopardy is ready");
    sleep(Duration::from_secs(60)).await;
    assert!(told().is_empty());
    // Lost, and held again as another epoch.
    store.revoke(&key(), None).await.unwrap();
    soon(async {
        while lease.is_held() {
            sleep(ms(1)).await
        }
    })
    .await;
    settle().await;
    assert_eq!(told(), [false]);
    soon(lease.held()).await.unwrap();
    settle().await;
    assert_eq!(told(), [true]);
    // The keeper is gone for good.
    keeper.abort();
    settle().await;
    assert_eq!(told(), [false]);
    sleep(Duration::from_secs(600)).await;
    assert!(told().is_empty());
    assert!(!follow.is_finished());
    follow.abort();
}

/// no task but that of the caller.
#[tokio::test(start_paused = true)]
async fn r6_the_end_of_validity_is_reported_though_no_keeper_runs() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let readiness = lease.readiness();
    assert_eq!(readiness.check(), Ok(()));
    let start = Instant::now();
    soon(readiness.changed()).await;
    assert!(
        (VALID..VALID + ms(5)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(readiness.check(), Err(NOT_HELD));
    assert!(
        !is_reported(readiness.changed()).await,
        "and no second time"
    );
}

/// The timer was set to the end as it was before the renewals.
#[tokio::test(start_paused = true)]
async fn a_renewal_is_no_change_and_the_end_that_it_moves_is_reported() {
    let store = Flaky::new();
    let (lease, _keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    let changed = tokio::spawn(lease.readiness().changed());
    sleep(Duration::from_secs(60)).await;
    assert!(!changed.is_finished());
    store.renewals([], Way::LoseRequest);
    let start = Instant::now();
    soon(changed).await.unwrap();
    assert!(!lease.is_held());
    assert!(start.elapsed() <= VALID, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_is_not_ready_from_the_beginning_of_its_drain() {
    let (_store, (lease, _keeper)) = held().await;
    let guard = lease.enter(Duration::ZERO).unwrap();
    let readiness = lease.readiness();
    let changed = readiness.changed();
    let start = Instant::now();
    tokio::spawn({
        let lease = lease.clone();
        async move { lease.step_down().await }
    });
    soon(changed).await;
    assert_eq!(readiness.check(), Err(NOT_HELD));
    assert!(guard.is_valid() && start.elapsed() < ms(10));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_lock_delay_is_not_ready_and_its_end_is_reported() {
    let (store, (_first, keeper)) = held().await;
    let (second, _keeper) = spawn(builder(&store).lock_delay(ms(5_000)));
    keeper.abort();
    let mut states = second.subscribe();
    let delayed = |state: &State| matches!(state, State::LockDelay { .. });
    soon(states.wait_for(delayed)).await.unwrap();
    let readiness = second.readiness();
    assert_eq!(readiness.check(), Err(NOT_HELD));
    let start = Instant::now();
    soon(readiness.changed()).await;
    assert_eq!(readiness.check(), Ok(()));
    assert!(start.elapsed() >= ms(4_900), "{:?}", start.elapsed());
}

/// What happens between the call and the first poll; also if it is ready both times, in another epoch.
#[tokio::test(start_paused = true)]
async fn a_change_counts_from_the_call_and_not_from_the_first_poll() {
    let store = MemoryStore::new();
    let (lease, _keeper) = spawn(builder(&store).reacquire(true));
    let to_held = lease.readiness().changed();
    soon(lease.held()).await.unwrap();
    assert!(is_reported(to_held).await);
    let (to_lost, unchanged) = (lease.readiness().changed(), lease.readiness());
    store.revoke(&key(), None).await.unwrap();
    soon(async {
        while lease.is_held() {
            sleep(ms(1)).await
        }
    })
    .await;
    soon(lease.held()).await.unwrap();
    assert_eq!(lease.readiness().check(), Ok(()));
    assert!(is_reported(to_lost).await);
    assert!(!is_reported(unchanged.changed()).await);
    // And by the mere passing of time.
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let mut keeper = pin!(keeper.run());
    tokio::select! { biased; _ = &mut keeper => unreachable!(), _ = lease.held() => {} }
    let expired = lease.readiness().changed();
    advance(VALID).await;
    assert!(is_reported(expired).await);
}
