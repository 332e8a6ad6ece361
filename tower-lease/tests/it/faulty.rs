//! The store that misbehaves, and keepers that live with it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_lease::{
    Acquired, Claim, ClaimId, DocumentStore, Fault, Holder, LeaseStore, Lost, MemoryStore,
    NotHandedOver, Revision, State, Watch, WatchEvent,
    testing::{Conformance, Faults, FaultyStore},
};

use crate::common::{TTL, VALID, builder, key, ms, settle, soon, spawn};

fn faulty(seed: u64) -> FaultyStore<MemoryStore> {
    FaultyStore::new(MemoryStore::new(), seed)
}

fn claim(id: u128) -> Claim {
    Claim::new(key(), Holder::new("h"), ClaimId::from_u128(id), TTL)
}

#[tokio::test(start_paused = true)]
async fn without_faults_and_with_late_or_repeated_calls_it_still_conforms() {
    let store = faulty(1);
    Conformance::new(store.clone(), store.clone()).run().await;
    store.set(Faults::none().delay(ms(40)));
    Conformance::new(store.clone(), store.clone()).run().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_does_nothing_and_a_lost_answer_has_done_it() {
    let store = faulty(1);
    store.set(Faults::unreachable());
    assert!(timeout(ms(5_000), store.acquire(&claim(1))).await.is_err());
    assert!(store.get_ref().inspect(&key()).await.unwrap().is_none());
    store.set(Faults::none().lose_answers(1000));
    assert!(timeout(ms(5_000), store.acquire(&claim(1))).await.is_err());
    assert!(store.get_ref().inspect(&key()).await.unwrap().is_some());
    store.set(Faults::none().answer_unknown(1000));
    assert_eq!(
        store.renew(&claim(1)).await.unwrap_err().fault(),
        Fault::Unknown
    );
    store.set(Faults::none().fail(Fault::NotSent));
    assert_eq!(
        store.release(&claim(1)).await.unwrap_err().fault(),
        Fault::NotSent
    );
    store.set(Faults::none().repeat(1000));
    assert!(
        matches!(
            store.acquire(&claim(1)).await.unwrap(),
            Acquired::Granted(_)
        ),
        "R-15: twice is once"
    );
    let calls = store.calls();
    assert_eq!(
        (calls.acquires, calls.renewals, calls.ends, calls.others),
        (3, 1, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_carried_out_all_the_same() {
    let store = faulty(1);
    store.set(Faults::none().delay(ms(1_000)));
    assert!(
        timeout(Duration::ZERO, store.acquire(&claim(1)))
            .await
            .is_err()
    );
    sleep(ms(2_000)).await;
    assert!(store.get_ref().inspect(&key()).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_paused_store_answers_when_it_goes_on() {
    let store = faulty(1);
    let mut watch = store.watch(&key(), Revision::START);
    assert!(matches!(
        watch.next().await.unwrap(),
        WatchEvent::Vacant(..)
    ));
    store.pause();
    let start = Instant::now();
    let acquiring = tokio::spawn({
        let store = store.clone();
        async move { store.acquire(&claim(1)).await }
    });
    sleep(ms(700)).await;
    assert!(!acquiring.is_finished());
    store.resume();
    assert!(matches!(
        acquiring.await.unwrap().unwrap(),
        Acquired::Granted(_)
    ));
    assert!(matches!(watch.next().await.unwrap(), WatchEvent::Held(..)));
    assert!((ms(700)..ms(710)).contains(&start.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn r31_a_store_that_is_down_fences_an_exclusive_lease_and_not_a_member_that_is_to_go_on() {
    let store = faulty(3);
    let (exclusive, _one) = spawn(builder(&store).reacquire(true));
    let member = tower_lease::Lease::builder(
        store.clone(),
        tower_lease::LeaseKey::new("members/1").unwrap(),
        Holder::new("m"),
    );
    let member = member
        .clock(tower_lease::TokioClock::new())
        .membership(tower_lease::OnStoreOutage::KeepServing);
    let (member, _two) = spawn(member.reacquire(true));
    soon(exclusive.held()).await.unwrap();
    let token = soon(member.held()).await.unwrap();
    store.set(Faults::unreachable());
    sleep(TTL * 10).await;
    assert!(!exclusive.is_held() && member.is_held());
    assert!(matches!(member.state(), State::Jeopardy { .. }) && member.enter(TTL).is_ok());
    assert_eq!(exclusive.snapshot().losses.expired, 1);
    assert!(
        store
            .get_ref()
            .list_prefix("")
            .await
            .unwrap()
            .records
            .is_empty(),
        "the store has forgotten both"
    );
    store.set(Faults::none());
    let mut states = member.subscribe();
    soon(states.wait_for(|state| {
        matches!(
            state,
            State::Fenced {
                cause: Lost::Gone,
                ..
            }
        )
    }))
    .await
    .unwrap();
    let start = Instant::now();
    let again = soon(member.held()).await.unwrap();
    assert!(
        token.compare(&again).unwrap().is_lt() && start.elapsed() <= ms(510),
        "{:?}",
        start.elapsed()
    );
    soon(exclusive.held()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn r33_a_keepers_troubles_are_seen_in_its_snapshot() {
    let store = faulty(5);
    let (lease, keeper) = spawn(builder(&store));
    soon(lease.held()).await.unwrap();
    store.set(Faults::none().delay(ms(200)));
    sleep(TTL * 3).await;
    let calm = lease.snapshot();
    assert!(
        calm.renewals.count() >= 11 && calm.renewals.most().unwrap() <= ms(420),
        "{calm:?}"
    );
    assert!(
        calm.validity.least().unwrap() >= ms(6_000),
        "a period and a delay after the last: {calm:?}"
    );
    store.set(Faults::none().lose_answers(1000));
    soon(keeper).await.unwrap();
    let lost = lease.snapshot();
    assert!(
        lost.failures.timed_out >= 3 && lost.losses.expired == 1 && lost.acquisitions == 1,
        "{lost:?}"
    );
    assert_eq!(lost.remaining, Duration::ZERO);
}

/// a planned cutover, with its claim carried to the holder.
#[tokio::test(start_paused = true)]
async fn r20_a_lease_is_handed_over_to_the_one_that_was_meant() {
    for delay in [ms(0), ms(30)] {
        let store = faulty(7);
        let (holder, _one) = spawn(builder(&store));
        let old = soon(holder.held()).await.unwrap();
        store.set(Faults::none().delay(delay));
        let contenders: Vec<_> = (0..3)
            .map(|_| spawn(builder(&store).lock_delay(TTL)))
            .collect();
        sleep(ms(3_000)).await;
        let meant = &contenders[1].0;
        let mut watch = store
            .get_ref()
            .watch_prefix("", store.get_ref().list_prefix("").await.unwrap().revision);
        let start = Instant::now();
        let guard = holder.enter(Duration::ZERO).unwrap();
        let handing = tokio::spawn({
            let (holder, claim) = (holder.clone(), meant.handover_claim());
            async move { holder.hand_over(&claim).await }
        });
        sleep(ms(500)).await;
        assert!(
            !handing.is_finished() && guard.is_valid(),
            "R-29: it waits for those inside"
        );
        drop(guard);
        let token = soon(handing).await.unwrap().unwrap();
        let new = soon(meant.held()).await.unwrap();
        assert_eq!(new, token);
        assert!(old.compare(&new).unwrap().is_lt());
        assert!(start.elapsed() < ms(750), "{:?}", start.elapsed());
        assert!(meant.remaining() <= VALID);
        assert_eq!(
            contenders
                .iter()
                .filter(|(lease, _)| lease.is_held())
                .count(),
            1
        );
        assert!(
            matches!(watch.next().await.unwrap(), WatchEvent::Held(..)),
            "no vacancy was seen"
        );
        assert_eq!(holder.state(), State::Released);
        // And it keeps it.
        sleep(TTL * 2).await;
        assert_eq!(meant.token(), Some(new));
    }
}

#[tokio::test(start_paused = true)]
async fn r20_a_handover_that_is_not_possible_returns_an_error() {
    let store = faulty(7);
    let (holder, _one) = spawn(builder(&store));
    soon(holder.held()).await.unwrap();
    let elsewhere = Claim::new(
        tower_lease::LeaseKey::new("x").unwrap(),
        Holder::new("h"),
        ClaimId::random(),
        TTL,
    );
    assert_eq!(
        holder.hand_over(&elsewhere).await,
        Err(NotHandedOver::OtherKey)
    );
    let own = holder.handover_claim();
    assert_eq!(
        holder.hand_over(&own).await,
        Err(NotHandedOver::Own),
        "nobody would keep it"
    );
    assert!(holder.is_held());
    store.set(Faults::none().fail(Fault::Refused));
    assert_eq!(
        soon(holder.hand_over(&claim(9))).await,
        Err(NotHandedOver::Released)
    );
    let store = faulty(7);
    let (holder, _one) = spawn(builder(&store));
    soon(holder.held()).await.unwrap();
    let guard = holder.enter(Duration::ZERO).unwrap();
    let to = claim(9);
    let (told, ()) = tokio::join!(holder.hand_over(&to), async {
        sleep(ms(100)).await;
        store.get_ref().revoke(&key(), None).await.unwrap();
        sleep(ms(100)).await;
        drop(guard);
    });
    assert_eq!(told, Err(NotHandedOver::Lost(Lost::Gone)));
}

/// The claim under which it took over is its own though it was used. The store would call that done.
#[tokio::test(start_paused = true)]
async fn r20_a_successor_does_not_hand_over_to_itself() {
    let store = faulty(7);
    let (first, _one) = spawn(builder(&store));
    soon(first.held()).await.unwrap();
    let (second, _two) = spawn(builder(&store));
    let own = second.handover_claim();
    // As it comes to another process.
    let sent: Claim = own.to_string().parse().unwrap();
    soon(first.hand_over(&sent)).await.unwrap();
    soon(second.held()).await.unwrap();
    assert_ne!(second.handover_claim().id(), own.id(), "for one handover");
    let refused = soon(second.hand_over(&own)).await;
    assert_eq!(refused, Err(NotHandedOver::Own));
    assert!(second.is_held(), "and nothing was done");
}

/// What is left of a lost epoch is taken away by its claim, so another's is left alone.
#[tokio::test(start_paused = true)]
async fn r26_a_holder_that_returns_does_not_disturb_its_successor() {
    let store = faulty(7);
    let (first, _one) = spawn(builder(&store).reacquire(true));
    soon(first.held()).await.unwrap();
    store.set(Faults::unreachable());
    let (second, _two) = spawn(builder(store.get_ref()));
    let token = soon(second.held()).await.unwrap();
    assert!(!first.is_held());
    // Until it has asked without an answer: that is to be taken away too.
    sleep(ms(4_000)).await;
    store.set(Faults::none());
    for _ in 0..600 {
        sleep(ms(100)).await;
        assert_eq!(second.token().as_ref(), Some(&token));
    }
    assert!(matches!(first.state(), State::Acquiring));
}

/// It is not known that the old record has gone, so it is taken away again, and its TTL is not waited for.
#[tokio::test(start_paused = true)]
async fn r26_an_old_record_that_could_not_be_taken_away_is_not_forgotten() {
    let store = faulty(7);
    let (lease, _keeper) = spawn(builder(&store).reacquire(true));
    let old = soon(lease.held()).await.unwrap();
    // The store extends, and the answer is lost.
    store.set(Faults::none().lose_answers(1000));
    let mut states = lease.subscribe();
    soon(states.wait_for(|state| matches!(state, State::Fenced { .. })))
        .await
        .unwrap();
    store.set(Faults::none().fail(Fault::Unknown));
    sleep(ms(2_000)).await;
    let record = store.get_ref().inspect(&key()).await.unwrap().unwrap();
    assert_eq!(record.token(), &old);
    assert!(record.expires_in().unwrap() > ms(6_000));
    store.set(Faults::none());
    let start = Instant::now();
    let new = soon(lease.held()).await.unwrap();
    assert!(old.compare(&new).unwrap().is_lt());
    assert!(start.elapsed() < ms(4_000), "{:?}", start.elapsed());
}

/// A caller whose handover to one successor ran into a timeout, for example, and that tries the next one.
#[tokio::test(start_paused = true)]
async fn r20_of_two_handovers_at_once_the_first_decides_and_has_the_token() {
    let store = faulty(7);
    let (holder, _a) = spawn(builder(&store));
    soon(holder.held()).await.unwrap();
    let ((second, _b), (third, _c)) = (spawn(builder(&store)), spawn(builder(&store)));
    sleep(ms(1_000)).await;
    let (to_second, to_third) = (second.handover_claim(), third.handover_claim());
    let guard = holder.enter(Duration::ZERO).unwrap();
    let first = tokio::spawn({
        let (holder, to) = (holder.clone(), to_second.clone());
        async move { holder.hand_over(&to).await }
    });
    settle().await;
    let again = tokio::spawn({
        let (holder, to) = (holder.clone(), to_second.clone());
        async move { holder.hand_over(&to).await }
    });
    settle().await;
    assert_eq!(
        holder.hand_over(&to_third).await,
        Err(NotHandedOver::ToAnother),
        "at once: it would say nothing else later"
    );
    drop(guard);
    let token = soon(first).await.unwrap().unwrap();
    assert_eq!(
        soon(again).await.unwrap(),
        Ok(token.clone()),
        "of one target"
    );
    assert_eq!(soon(second.held()).await, Ok(token.clone()));
    assert!(matches!(third.state(), State::Acquiring));
    assert_eq!(holder.hand_over(&to_second).await, Ok(token));
    assert_eq!(
        holder.hand_over(&to_third).await,
        Err(NotHandedOver::ToAnother)
    );
}

#[tokio::test(start_paused = true)]
async fn r18_a_successor_of_one_that_died_waits_and_of_one_that_left_does_not() {
    let store = faulty(9);
    let (first, keeper) = spawn(builder(&store));
    soon(first.held()).await.unwrap();
    let (second, _two) = spawn(builder(&store).lock_delay(ms(15_000)));
    sleep(ms(1_000)).await;
    keeper.abort();
    let mut states = second.subscribe();
    soon(states.wait_for(|state| matches!(state, State::LockDelay { .. })))
        .await
        .unwrap();
    let start = Instant::now();
    assert!(!second.is_held() && second.token().is_none());
    let refused = second.enter(Duration::ZERO).unwrap_err();
    assert!(
        refused
            .retry_after()
            .is_some_and(|after| after > ms(14_000)),
        "{refused:?}"
    );
    soon(second.held()).await.unwrap();
    assert!(
        (ms(14_990)..ms(15_010)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    let (third, _three) = spawn(builder(&store).lock_delay(ms(15_000)));
    sleep(ms(1_000)).await;
    second.step_down().await;
    let start = Instant::now();
    soon(third.held()).await.unwrap();
    assert!(start.elapsed() <= ms(60), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r32_a_store_whose_tokens_fence_may_be_required() {
    let (lease, _keeper) = spawn(builder(&faulty(1)).require_fencing());
    soon(lease.held()).await.unwrap();
}
