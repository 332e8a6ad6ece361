//! The handle, in paused time: phases advance while the drain is awaited or observed.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower_drain::{Drain, Phase};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn phases_advance_in_time_while_the_drain_is_awaited() {
    let drain = Drain::new();
    let guard = drain.guard();
    let start = Instant::now();
    assert!(drain.is_ready());
    drain.begin_drain();
    assert!(!drain.is_ready());
    drain.announcing().await;
    assert_eq!(start.elapsed(), secs(0));
    drain.closing().await;
    assert_eq!(start.elapsed(), secs(5));
    drain.forced().await;
    assert_eq!(start.elapsed(), secs(25));
    let report = drain.done().await;
    assert_eq!(start.elapsed(), secs(27));
    assert_eq!(
        (report.drained, report.forced, report.leaked, report.took),
        (0, 1, 1, secs(27))
    );
    drop(guard);
    assert_eq!(drain.done().await, report, "a report is final");
}

#[tokio::test(start_paused = true)]
async fn awaiting_only_the_end_advances_all_phases() {
    let drain = Drain::new();
    let _guard = drain.guard();
    let mut phases = drain.subscribe();
    let done = tokio::spawn(drain.done());
    drain.begin_drain();
    let mut seen = Vec::new();
    while *phases.borrow() != Phase::Done {
        phases.changed().await.unwrap();
        seen.push(*phases.borrow_and_update());
    }
    assert_eq!(
        seen,
        [
            Phase::Announcing,
            Phase::Closing,
            Phase::Forced,
            Phase::Done
        ]
    );
    done.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reading_the_phase_advances_it_too() {
    let drain = Drain::new();
    let _guard = drain.guard();
    drain.begin_drain();
    sleep(secs(6)).await;
    assert_eq!(drain.phase(), Phase::Closing);
    sleep(secs(60)).await;
    assert_eq!(
        drain.snapshot().phase,
        Phase::Forced,
        "each look sees where it is now; closing began at the last look"
    );
    sleep(secs(2)).await;
    assert_eq!(drain.phase(), Phase::Done);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_the_last_guard_is_dropped_by_event() {
    let drain = Drain::new();
    let (one, two) = (drain.guard(), drain.guard());
    drain.shutdown();
    let mut done = task::spawn(drain.done());
    assert_pending!(done.poll());
    drop(one);
    assert!(!done.is_woken(), "one is left");
    drop(two);
    assert!(done.is_woken());
    let report = assert_ready!(done.poll());
    assert!(report.is_clean());
    assert_eq!((report.drained, report.took), (2, secs(0)));
}

#[tokio::test(start_paused = true)]
async fn the_announce_time_is_never_cut_short() {
    let drain = Drain::new();
    let start = Instant::now();
    drain.begin_drain();
    drop(drain.guard());
    drain.done().await;
    assert_eq!(start.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_guard_created_while_announcing_is_waited_for() {
    let drain = Drain::new();
    let start = Instant::now();
    drain.begin_drain();
    sleep(secs(4)).await;
    let guard = drain.guard();
    tokio::spawn(async move {
        sleep(secs(4)).await;
        drop(guard);
    });
    let report = drain.done().await;
    assert_eq!((start.elapsed(), report.drained), (secs(8), 1));
}

#[tokio::test(start_paused = true)]
async fn begin_drain_may_be_called_any_number_of_times() {
    let drain = Drain::new();
    let start = Instant::now();
    drain.begin_drain();
    sleep(secs(4)).await;
    drain.begin_drain();
    assert_eq!(drain.phase(), Phase::Announcing);
    drain.closing().await;
    assert_eq!(
        start.elapsed(),
        secs(5),
        "the second call did not begin anew"
    );
    drain.begin_drain();
    assert!(drain.phase() >= Phase::Closing, "and nothing goes back");
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_forces() {
    let drain = Drain::new();
    let _guard = drain.guard();
    drain.escalate();
    assert_eq!(drain.phase(), Phase::Announcing);
    drain.escalate();
    assert_eq!(drain.phase(), Phase::Forced);
    let start = Instant::now();
    drain.escalate();
    drain.done().await;
    assert_eq!(start.elapsed(), secs(2), "a third changes nothing");
}

#[tokio::test(start_paused = true)]
async fn all_waiters_are_woken_by_an_early_request() {
    let drain = Drain::new();
    let _guard = drain.guard();
    let (mut closing, mut forced) = (task::spawn(drain.closing()), task::spawn(drain.forced()));
    assert_pending!(closing.poll());
    assert_pending!(forced.poll());
    drain.begin_drain();
    assert!(closing.is_woken(), "to set its timer");
    assert_pending!(closing.poll());
    assert_pending!(forced.poll());
    drain.force();
    assert!(
        closing.is_woken() && forced.is_woken(),
        "they listen on after the first change"
    );
    assert_ready!(closing.poll());
    assert_ready!(forced.poll());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_leaves_nothing_behind() {
    let drain = Drain::new();
    let mut closing = task::spawn(drain.closing());
    assert_pending!(closing.poll());
    drop(closing);
    drain.shutdown();
    assert!(drain.done().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn times_without_end_do_not_overflow() {
    let drain = Drain::builder()
        .announce(Duration::MAX)
        .close(Duration::MAX)
        .force(Duration::MAX)
        .build();
    let _guard = drain.guard();
    drain.begin_drain();
    assert_pending!(task::spawn(drain.done()).poll());
    drain.force();
    assert_pending!(task::spawn(drain.done()).poll());
}

#[test]
fn a_panic_leaves_its_guard() {
    let drain = Drain::new();
    let guard = drain.guard();
    let panicked = std::thread::spawn(move || {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    drain.shutdown();
    assert_eq!(drain.phase(), Phase::Done, "no runtime is needed to look");
}
