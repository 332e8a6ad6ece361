use std::time::Duration;

use loom::{model::Builder, sync::Arc, thread};

use super::*;
use crate::Quota;

const FIVE: u64 = 5;

fn quota(burst: u32) -> Quota {
    Quota::every(Duration::from_nanos(FIVE))
        .unwrap()
        .burst(burst)
}

fn take(store: &Store, number: u64, now: u64, quota: Quota) -> Result<u64, u64> {
    store
        .take(
            BucketKey::Key(Fingerprint::from(number)),
            &Charge::one(now, quota),
        )
        .map(|debit| debit.debt)
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn two_threads_that_bring_the_same_new_key_get_one_burst() {
    check(|| {
        let store = Arc::new(Store::new(1));
        let other = thread::spawn({
            let store = store.clone();
            move || take(&store, 7, 10, quota(1)).is_ok()
        });
        let mine = take(&store, 7, 10, quota(1)).is_ok();
        assert!(mine != other.join().unwrap());
    });
}

#[test]
fn a_known_key_takes_from_its_own_bucket_while_a_newcomer_wants_the_slot() {
    check(|| {
        let store = Arc::new(Store::new(1));
        assert_eq!(take(&store, 7, 10, quota(2)), Ok(FIVE));
        // It idles by now. Either it is forgotten and comes as new, or it stays and the newcomer overflows.
        let known = thread::spawn({
            let store = store.clone();
            move || take(&store, 7, 20, quota(2))
        });
        let newcomer = [(); 2].map(|()| take(&store, 9, 20, quota(2)));
        assert_eq!(newcomer, [Ok(FIVE), Ok(2 * FIVE)]);
        assert_eq!(known.join().unwrap(), Ok(FIVE));
        assert_eq!(store.keys.load(Relaxed), 1);
    });
}
