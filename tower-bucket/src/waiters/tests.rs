use super::*;

fn key(number: u64) -> Vec<LimiterKey> {
    vec![LimiterKey(0, BucketId::Key(number.into()))]
}

/// Takes as many places as it can get.
fn fill(waiters: &WaiterLimit, keys: &[LimiterKey], kept: &mut Vec<WaiterPermit>) -> usize {
    let before = kept.len();
    while let Some(mut permit) = waiters.take()
        && permit.enter(keys.to_vec())
    {
        kept.push(permit);
    }
    kept.len() - before
}

#[test]
fn one_key_takes_half_of_what_is_left_and_another_always_finds_a_place() {
    let (waiters, mut kept) = (WaiterLimit::new(100), Vec::new());
    assert_eq!(fill(&waiters, &key(1), &mut kept), 50);
    assert_eq!(fill(&waiters, &key(2), &mut kept), 25);
    assert_eq!(fill(&waiters, &key(3), &mut kept), 13);
    for number in 4..=7 {
        assert!(fill(&waiters, &key(number), &mut kept) > 0, "{number}");
    }
    assert_eq!((waiters.taken() as usize, kept.len()), (100, 100));
    kept.clear();
    assert_eq!((waiters.taken(), waiters.taken.lock().len()), (0, 0));
}

#[test]
fn keys_that_want_all_end_with_the_same_number() {
    for (keys, each) in [(1, 50), (2, 33), (4, 20), (9, 10)] {
        let (waiters, mut kept) = (WaiterLimit::new(100), Vec::new());
        // They come by turns.
        loop {
            let before = kept.len();
            for number in 1..=keys {
                let mut permit = waiters.take().unwrap();
                if permit.enter(key(number)) {
                    kept.push(permit);
                }
            }
            if kept.len() == before {
                break;
            }
        }
        for number in 1..=keys {
            let own = waiters.taken.lock()[&key(number)[0]];
            assert!((each..=each + 1).contains(&own), "{own} for each of {keys}");
        }
        assert!(waiters.taken() < 100, "one more finds a place");
    }
}

#[test]
fn a_share_of_all_is_no_bound_and_one_of_few_places_is_at_least_one() {
    let mut waiters = WaiterLimit::new(3);
    waiters.per_key(Share::ALL);
    assert_eq!(fill(&waiters, &key(1), &mut Vec::new()), 3);
    waiters.per_key(Share::one_in(1_000));
    let mut kept = Vec::new();
    for number in 1..=3 {
        assert_eq!(fill(&waiters, &key(number), &mut kept), 1);
    }
    assert!(waiters.take().is_none());
}

#[test]
fn requests_without_a_key_share_all_places() {
    let (waiters, mut kept) = (WaiterLimit::new(10), Vec::new());
    assert_eq!(fill(&waiters, &[], &mut kept), 10);
}

#[test]
fn a_request_of_two_keys_counts_for_both() {
    let (waiters, mut kept) = (WaiterLimit::new(8), Vec::new());
    let (one, two) = (key(1)[0], LimiterKey(1, BucketId::Keyless));
    assert_eq!(fill(&waiters, &[one, two], &mut kept), 4);
    assert_eq!(fill(&waiters, &[two], &mut kept), 0);
    assert_eq!(fill(&waiters, &[one], &mut kept), 0);
    assert_eq!(
        fill(&waiters, &[LimiterKey(1, one.1)], &mut kept),
        2,
        "another limiter's"
    );
}
