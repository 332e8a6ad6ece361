use std::num::NonZeroU32;

use std::{sync::atomic::AtomicBool, time::Duration};

use governor::{RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;

use super::*;
use crate::Quota;
use crate::slot::CLAIMED;

const SECOND: u64 = 1_000_000_000;

fn quota(interval: u64, burst: u32) -> Quota {
    let quota = Quota::every(Duration::from_nanos(interval)).unwrap();
    quota.burst(burst)
}

/// One token, counted as the limiter does it.
fn take(store: &Store, key: Fingerprint, now: u64, quota: Quota) -> Result<u64, u64> {
    let decision = store
        .take(BucketKey::Key(key), &Charge::one(now, quota))
        .map(|debit| debit.debt);
    store.count(
        BucketKey::Key(key),
        if decision.is_ok() {
            Decision::Allowed
        } else {
            Decision::Refused
        },
    );
    decision
}

/// For one that took at once.
fn give_back(store: &Store, bucket_key: BucketKey, charge: &Charge, debit: Debit, now: u64) {
    let refund = Refund::of(charge.ahead(charge.now, now));
    store.refund(debit.bucket(bucket_key), refund, now);
}

/// A good hash of a small number (SplitMix64), the same in each run.
fn key(number: u64) -> Fingerprint {
    let mixed = number.wrapping_add(1).wrapping_mul(GOLDEN);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    Fingerprint::from(mixed ^ (mixed >> 31))
}

#[test]
fn each_key_has_its_bucket() {
    let (store, quota) = (Store::new(100), quota(10, 2));
    for number in 0..100 {
        let decisions = [(); 3].map(|()| take(&store, key(number), 5, quota));
        assert_eq!(decisions, [Ok(10), Ok(20), Err(10)], "{number}");
    }
    let snapshot = store.snapshot();
    assert_eq!(
        (snapshot.allowed, snapshot.refused, snapshot.keys),
        (200, 100, 100)
    );
    assert_eq!((snapshot.evictions, snapshot.overflowed), (0, 0));
}

#[test]
fn a_store_finds_room_for_nearly_all_the_keys_it_was_made_for() {
    for (capacity, homeless) in [(1, 0), (8, 0), (12, 0), (100, 0), (1_000, 1), (100_000, 10)] {
        let store = Store::new(capacity);
        for number in 0..capacity as u64 {
            let _ = take(&store, key(number), 0, quota(SECOND, 1));
        }
        let snapshot = store.snapshot();
        assert!(snapshot.overflowed <= homeless, "{capacity}: {snapshot:?}");
        assert_eq!(snapshot.keys + snapshot.overflowed, capacity as u64);
        let slots = store.sets.len() * WAYS;
        assert!(
            capacity < 100 || slots * size_of::<Slot>() < capacity * 24,
            "{slots} slots for {capacity}"
        );
    }
}

#[test]
fn a_flood_of_keys_takes_no_memory_and_nobodys_bucket() {
    let (store, quota) = (Store::new(1_000), quota(SECOND, 2));
    let known: Vec<_> = (0..500).map(key).collect();
    let mut now = 0;
    for &key in &known {
        assert!(take(&store, key, now, quota).is_ok());
        assert!(take(&store, key, now, quota).is_ok());
    }
    for stranger in 0..300_000 {
        now += 1;
        let _ = take(&store, key(1_000_000 + stranger), now, quota);
        assert!(store.keys.load(Relaxed) <= 1_000);
    }
    assert!(store.snapshot().overflowed > 290_000);
    for &key in &known {
        assert_eq!(take(&store, key, now, quota), Err(SECOND - now));
        assert!(
            take(&store, key, SECOND, quota).is_ok(),
            "and gets what is due, though the store is full"
        );
    }
}

/// Half of the new keys are IPv4 addresses and half are IPv6 networks; the store has places for one in a hundred. Without
/// optimization ten million of them take half a minute, so there are fewer then; `.ci/long flood` is the whole of it.
#[test]
#[ignore = "takes some seconds"]
fn a_flood_of_new_keys_leaves_memory_bounded_and_known_keys_unchanged() {
    use crate::{ClientIp, hash::Seed};

    const FLOOD: u32 = if cfg!(debug_assertions) {
        1_000_000
    } else {
        10_000_000
    };

    let (store, quota, seed) = (Store::new(100_000), quota(60 * SECOND, 2), Seed::random());
    let memory = store.sets.len() * size_of::<Set>() + size_of::<Store>();
    assert!(memory < 22 * 100_000, "{memory} bytes");
    let address = |number: u32| match number % 2 {
        0 => ClientIp::from(std::net::IpAddr::from(
            (0x0A00_0000 + number / 2).to_be_bytes(),
        )),
        _ => {
            let net = (0x2001_0DB8 << 96) | (u128::from(number / 2) << 64);
            ClientIp::from(std::net::IpAddr::from(net.to_be_bytes()))
        }
    };
    let known: Vec<_> = (0..50_000)
        .map(|number| seed.fingerprint(&address(number)))
        .collect();
    for &key in &known {
        assert!(take(&store, key, 0, quota).is_ok() && take(&store, key, 0, quota).is_ok());
    }
    let counted = allocation_counter::measure(|| {
        for number in 0..FLOOD {
            let _ = take(
                &store,
                seed.fingerprint(&address(50_000 + number)),
                number.into(),
                quota,
            );
        }
    });
    assert_eq!(
        (counted.count_total, store.keys.load(Relaxed)),
        (0, 100_000)
    );
    for &key in &known {
        assert!(
            take(&store, key, FLOOD.into(), quota).is_err(),
            "a known client got more because of the flood"
        );
    }
    for &key in &known {
        assert!(
            take(&store, key, 60 * SECOND, quota).is_ok(),
            "a known client got less because of the flood"
        );
    }
    let snapshot = store.snapshot();
    assert_eq!((snapshot.keys, snapshot.evictions), (100_000, 0));
    assert!(
        snapshot.overflowed > u64::from(FLOOD - 100_000),
        "{snapshot:?}"
    );
}

#[test]
fn what_is_given_back_goes_to_the_bucket_it_came_from() {
    let (store, quota) = (Store::new(8), quota(SECOND, 1));
    let charge = Charge::one(5, quota);
    for number in 0..8 {
        assert!(take(&store, key(number), 5, quota).is_ok());
    }
    for bucket_key in [BucketKey::Key(key(100)), BucketKey::Keyless] {
        let debit = store.take(bucket_key, &charge).unwrap();
        give_back(&store, bucket_key, &charge, debit, 5);
        assert_eq!(store.debt(bucket_key, 5), 0);
        assert!(
            store.take(bucket_key, &charge).is_ok() && store.take(bucket_key, &charge).is_err()
        );
    }
    assert_eq!(
        take(&store, key(3), 5, quota),
        Err(SECOND),
        "a neighbour's is not touched"
    );
    give_back(
        &store,
        BucketKey::Key(key(3)),
        &charge,
        Debit::from(SECOND),
        5,
    );
    assert_eq!(
        store.debt(BucketKey::Key(key(3)), 5),
        1,
        "all but the nanosecond that marks the slot"
    );
    give_back(
        &store,
        BucketKey::Key(key(3)),
        &charge,
        Debit::from(SECOND),
        6 + SECOND,
    );
    assert_eq!(take(&store, key(3), 6 + SECOND, quota), Ok(SECOND));
}

#[test]
fn newcomers_share_one_bucket_when_all_keys_are_active() {
    let (store, quota) = (Store::new(8), quota(SECOND, 2));
    for number in 0..8 {
        assert!(take(&store, key(number), 0, quota).is_ok());
    }
    assert_eq!(take(&store, key(8), 0, quota), Ok(SECOND));
    assert_eq!(take(&store, key(9), 0, quota), Ok(2 * SECOND));
    assert_eq!(take(&store, key(10), 0, quota), Err(SECOND));
    assert_eq!(
        take(&store, key(0), 0, quota),
        Ok(2 * SECOND),
        "a known key has its own"
    );
    let snapshot = store.snapshot();
    assert_eq!(
        (snapshot.keys, snapshot.overflowed, snapshot.evictions),
        (8, 3, 0)
    );
}

#[test]
fn the_idle_make_room_and_the_active_stay() {
    let (store, quota) = (Store::new(1_000), quota(SECOND, 1));
    for number in 0..1_000 {
        let _ = take(&store, key(number), number, quota);
    }
    let half_are_idle = SECOND + 500;
    for number in 2_000..2_400 {
        assert!(take(&store, key(number), half_are_idle, quota).is_ok());
    }
    for number in 501..1_000 {
        assert!(
            take(&store, key(number), half_are_idle, quota).is_err(),
            "{number} was forgotten"
        );
    }
    let snapshot = store.snapshot();
    assert_eq!((snapshot.evictions, snapshot.overflowed), (400, 0));
    assert!(snapshot.keys <= 1_000);
}

#[test]
fn an_idle_key_is_not_forgotten_while_there_is_room() {
    let (store, quota) = (Store::new(10_000), quota(1, 1));
    for round in 0..3 {
        for number in 0..9_000 {
            assert!(
                take(
                    &store,
                    key(number),
                    10 * (1 + number + 10_000 * round),
                    quota
                )
                .is_ok()
            );
        }
    }
    let snapshot = store.snapshot();
    assert_eq!(
        (snapshot.keys, snapshot.evictions, snapshot.overflowed),
        (9_000, 0, 0)
    );
}

/// A slot seems empty. Then a key takes it, and is idle at once by the clock of the thread that looked. If the slot were
/// claimed all
/// the same, and given back, the key would not be found for a moment, and would move in elsewhere as well. Loom does not
/// try that order.
#[test]
fn a_slot_is_claimed_for_what_it_is_or_left_alone() {
    let (slot, quota, is_over) = (Slot::default(), quota(1, 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                if let Some(claim) = slot.claim(CLAIMED - 1, Idle::Empty) {
                    assert!(!claim.is_occupied());
                    claim.give_back();
                }
            }
        });
        let lost = (1..3_000_000).map(|turn| 10 * turn).filter(|&now| {
            let Some(claim) = slot.claim(now, Idle::Empty) else {
                return false;
            };
            let (key, charge) = (key(now), Charge::one(now, quota));
            claim.insert(key, &charge);
            let is_lost = slot.take(key, &charge) != Some(Err(1));
            is_lost || !slot.evict(now + 1)
        });
        let lost = lost.count();
        is_over.store(true, Relaxed);
        assert_eq!(lost, 0);
    });
}

#[test]
fn an_idle_key_elsewhere_is_evicted_where_the_sets_are_empty() {
    let (store, quota) = (
        Store {
            capacity: 1,
            ..Store::new(16)
        },
        quota(SECOND, 1),
    );
    let lives_in = |key, set: &Set| {
        store
            .candidate_sets(key)
            .iter()
            .any(|candidate| std::ptr::eq(*candidate, set))
    };
    assert_eq!(take(&store, key(0), 0, quota), Ok(SECOND));
    let set = store.sets.iter().find(|set| set.occupied() == 1).unwrap();
    let newcomer = (1..).map(key).find(|&key| !lives_in(key, set)).unwrap();
    assert_eq!(take(&store, newcomer, 0, quota), Ok(SECOND));
    assert_eq!(
        store.snapshot().overflowed,
        1,
        "one key is all it may hold, and that one is active"
    );
    assert_eq!(take(&store, newcomer, SECOND, quota), Ok(SECOND));
    assert_eq!(take(&store, newcomer, SECOND, quota), Err(SECOND));
    let snapshot = store.snapshot();
    assert_eq!(
        (snapshot.keys, snapshot.evictions, snapshot.overflowed),
        (1, 1, 1)
    );
    assert!(take(&store, key(0), 2 * SECOND - 1, quota).is_ok());
    assert_eq!(
        store.snapshot().overflowed,
        2,
        "the first one was forgotten, and is a newcomer again"
    );
}

#[test]
fn threads_that_bring_the_same_new_key_agree_on_its_slot() {
    const KEYS: u64 = 5_000;
    let (store, quota) = (Store::new(2 * KEYS as usize), quota(SECOND, 1));
    let at = [const { AtomicU64::new(0) }; 2];
    let bring_all = |me: usize| {
        let bring = |number| {
            // In step with the other thread, so that both find the key missing.
            at[me].store(number, Relaxed);
            for spins in 0.. {
                match at[1 - me].load(Relaxed) < number {
                    true if spins % 1_000 == 999 => std::thread::yield_now(),
                    true => std::hint::spin_loop(),
                    false => break,
                }
            }
            take(&store, key(number), 0, quota).is_ok()
        };
        (1..=KEYS).filter(|&number| bring(number)).count() as u64
    };
    let both = std::thread::scope(|scope| {
        let other = scope.spawn(|| bring_all(1));
        bring_all(0) + other.join().unwrap()
    });
    assert_eq!(
        (both, store.snapshot().allowed, store.snapshot().keys),
        (KEYS, KEYS, KEYS)
    );
}

#[test]
fn an_active_key_keeps_its_bucket_while_slots_change_owners_around_it() {
    let (store, once_a_second, often) = (Store::new(32), quota(SECOND, 1), quota(1, 1));
    assert!(take(&store, key(0), 10, once_a_second).is_ok());
    std::thread::scope(|scope| {
        // Each other key is idle again at the next turn, so every turn evicts.
        scope.spawn(|| {
            (0..200_000).all(|turn| take(&store, key(100 + turn), 10 + turn, often).is_ok())
        });
        let admitted = (0..200_000)
            .filter(|turn| take(&store, key(0), 10 + turn, once_a_second).is_ok())
            .count();
        assert_eq!(admitted, 0, "more than one in less than a second");
    });
    assert!(store.snapshot().evictions > 100_000);
    assert!(store.snapshot().keys <= 32);
}

proptest! {
    /// Of each bucket: that of a key, regardless of other keys and of the size of the store, and the overflow bucket.
    #[test]
    fn no_bucket_gives_more_than_burst_and_rate(
        interval in 1_u64..500,
        burst in 1_u32..5,
        capacity in 1_usize..20,
        requests in prop::collection::vec((0_u64..40, 1_u32..4, any::<bool>(), prop_oneof![Just(0), 0_u64..50, 0_u64..2_000]), 1..300),
    ) {
        let (store, quota) = (Store::new(capacity), quota(interval, burst));
        let (mut now, mut served) = (0, vec![Vec::new(); 41]);
        for (number, tokens, gives_back, step) in requests {
            now += step;
            let Some(charge) = Charge::tokens(now, quota, tokens) else { continue };
            let bucket_key = BucketKey::Key(key(number));
            match store.take(bucket_key, &charge) {
                Ok(debit) if gives_back => give_back(&store, bucket_key, &charge, debit, now),
                Ok(debit) => served[if debit.overflowed { 40 } else { number as usize }].push((now, charge.cost())),
                Err(_) => {}
            }
            prop_assert!(store.keys.load(Relaxed) <= capacity);
        }
        for served in served {
            for (first, &(from, _)) in served.iter().enumerate() {
                let mut cost = 0;
                for &(to, more) in &served[first..] {
                    cost += more;
                    prop_assert!(cost <= quota.depth() + (to - from));
                }
            }
        }
    }

    #[test]
    fn governor_decides_the_same_for_many_keys(
        interval in 1_u64..1_000,
        burst in 1_u32..5,
        capacity in 1_usize..20,
        requests in prop::collection::vec((0_u64..40, prop_oneof![Just(0), 0_u64..50, 0_u64..2_000]), 1..300),
    ) {
        let (store, ours) = (Store::new(capacity), quota(interval, burst));
        let theirs = governor::Quota::with_period(ours.interval()).unwrap().allow_burst(NonZeroU32::new(ours.burst_size()).unwrap());
        let clock = FakeRelativeClock::default();
        let oracle = RateLimiter::hashmap_with_clock(theirs, clock.clone());
        let mut now = 0;
        for (number, step) in requests {
            now += step;
            clock.advance(Duration::from_nanos(step));
            let overflowed = store.snapshot().overflowed;
            let decision = take(&store, key(number), now, ours).is_ok();
            // Keys without a slot share one bucket, here and there.
            let number = if store.snapshot().overflowed > overflowed { u64::MAX } else { number };
            prop_assert_eq!(decision, oracle.check_key(&number).is_ok());
            prop_assert!(store.keys.load(Relaxed) <= capacity);
        }
    }
}
