use std::time::Duration;

use loom::{sync::Arc, thread};

use super::*;

fn quota(burst: u32) -> Quota {
    Quota::every(Duration::from_nanos(10)).unwrap().burst(burst)
}

#[test]
fn two_threads_never_get_more_than_the_burst() {
    loom::model(|| {
        let tat = Arc::new(AtomicTat::default());
        let take = |tat: &AtomicTat| {
            (0..2)
                .filter(|_| tat.take(&Charge::one(100, quota(3))).is_ok())
                .count()
        };
        let other = thread::spawn({
            let tat = tat.clone();
            move || take(&tat)
        });
        assert_eq!(take(&tat) + other.join().unwrap(), 3);
    });
}

#[test]
fn what_one_gives_back_another_gets_once() {
    loom::model(|| {
        let tat = Arc::new(AtomicTat::default());
        let charge = Charge::one(100, quota(1));
        tat.take(&charge).unwrap();
        let other = thread::spawn({
            let tat = tat.clone();
            move || {
                (0..2)
                    .filter(|_| tat.take(&Charge::one(100, quota(1))).is_ok())
                    .count()
            }
        });
        tat.refund(Refund::of(charge.ahead(100, 100)));
        let passed = other.join().unwrap();
        assert!(passed <= 1);
        assert_eq!(tat.take(&charge).is_ok(), passed == 0);
    });
}
