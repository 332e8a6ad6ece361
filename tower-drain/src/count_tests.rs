//! Of `count.rs`, which a loom test compiles with other atomics; hence not at its foot.

use crate::{
    count::{Count, Kind},
    report::Tally,
};

#[test]
fn the_counts_do_not_touch_each_other() {
    let count = Count::default();
    for _ in 0..3 {
        count.enter(Kind::Guest);
    }
    count.enter(Kind::Request);
    count.enter(Kind::Request);
    count.enter(Kind::Loop);
    count.close();
    let census = count.census();
    assert_eq!(
        (census.here.guests, census.here.requests, census.loops),
        (3, 2, 1)
    );
    assert!(!count.leave(Kind::Request, true));
    assert_eq!(
        count.census().here,
        Tally {
            guests: 3,
            requests: 1
        }
    );
    assert_eq!(
        count.census().left,
        Tally {
            guests: 0,
            requests: 1
        }
    );
}

#[test]
fn only_the_last_guard_after_closing_is_reported() {
    let count = Count::default();
    count.enter(Kind::Guest);
    assert!(
        !count.leave(Kind::Guest, false),
        "the drain does not wait yet"
    );
    count.enter(Kind::Guest);
    count.enter(Kind::Request);
    count.close();
    assert!(!count.leave(Kind::Request, false));
    assert!(count.leave(Kind::Guest, false));
}

#[test]
fn many_threads_have_exactly_one_last() {
    for _ in 0..50 {
        let count = Count::default();
        (0..8).for_each(|_| count.enter(Kind::Guest));
        count.close();
        let lasts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| count.leave(Kind::Guest, true)))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum::<usize>()
        });
        assert_eq!(lasts, 1);
        assert_eq!(count.census().left.guests, 8);
    }
}
