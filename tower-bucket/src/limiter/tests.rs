use super::*;

fn five_a_second() -> Quota {
    Quota::per_second(5)
}

#[tokio::test(start_paused = true)]
async fn an_admission_reports_what_is_left() {
    let limiter = Limiter::new(five_a_second());
    let admitted = limiter.check().unwrap();
    assert_eq!(
        (admitted.remaining(), admitted.reset_after()),
        (4, Duration::from_millis(200))
    );
    assert_eq!(admitted.next_after(), Duration::from_millis(200));
    assert_eq!(admitted.quota(), limiter.quota());
    let left: Vec<_> = (0..4)
        .map(|_| limiter.check().unwrap().remaining())
        .collect();
    assert_eq!(left, [3, 2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_reports_the_exact_wait_and_takes_nothing() {
    let limiter = Limiter::new(five_a_second());
    while limiter.check().is_ok() {}
    tokio::time::advance(Duration::from_millis(150)).await;
    for _ in 0..10 {
        assert_eq!(
            limiter.check().unwrap_err().retry_after(),
            Some(Duration::from_millis(50))
        );
    }
    tokio::time::advance(Duration::from_millis(50)).await;
    assert!(limiter.check().is_ok());
    assert!(limiter.check().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peek_takes_nothing_and_returns_what_a_check_would() {
    let limiter = Limiter::new(five_a_second());
    for _ in 0..10 {
        assert_eq!(limiter.peek().unwrap().remaining(), 4);
    }
    while limiter.check().is_ok() {}
    assert_eq!(limiter.peek(), limiter.check());
    assert_eq!(
        (limiter.snapshot().allowed, limiter.snapshot().refused),
        (5, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_may_cost_more_than_one_or_nothing() {
    let limiter = Limiter::new(five_a_second());
    assert_eq!(limiter.check_cost(3).unwrap().remaining(), 2);
    assert_eq!(
        limiter.check_cost(3).unwrap_err().retry_after(),
        Some(Duration::from_millis(200))
    );
    assert_eq!(limiter.check_cost(2).unwrap().remaining(), 0);
    assert!(limiter.check_cost(0).is_ok());
    let never = limiter.check_cost(6).unwrap_err();
    assert!(never.is_cost() && never.retry_after().is_none());
    assert_eq!(limiter.snapshot().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn another_quota_takes_effect_at_once_and_what_is_owed_stays_owed() {
    let limiter = Limiter::new(five_a_second());
    while limiter.check().is_ok() {}
    let other = limiter.clone();
    other.set_quota(Quota::per_second(10));
    assert_eq!(limiter.quota().interval(), Duration::from_millis(100));
    assert_eq!(
        limiter.check().unwrap_err().retry_after(),
        Some(Duration::from_millis(100))
    );
    other.set_quota(Quota::per_minute(1));
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(
        limiter.check().unwrap_err().retry_after(),
        Some(Duration::from_millis(1))
    );
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(limiter.check().is_ok() && limiter.check().is_err());
}

/// A client that had used up a slow quota stayed rejected for the time of that quota: for hours, after it was made a fast one.
#[tokio::test(start_paused = true)]
async fn after_a_change_to_a_faster_quota_what_is_empty_is_empty_and_no_emptier() {
    let (ten_an_hour, hundred) = (10, 100);
    let limiter = Limiter::new(Quota::per_hour(ten_an_hour));
    while limiter.check().is_ok() {}
    limiter.set_quota(Quota::per_second(hundred));
    let wait = Some(Duration::from_millis(10));
    assert_eq!(limiter.peek().unwrap_err().retry_after(), wait);
    assert_eq!(
        limiter.check().unwrap_err().retry_after(),
        wait,
        "and not an hour"
    );
    for _ in 0..10 {
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(
            limiter.check().is_ok() && limiter.check().is_err(),
            "at the new rate"
        );
    }
    tokio::time::advance(Duration::from_secs(7200)).await;
    assert_eq!((0..200).filter(|_| limiter.check().is_ok()).count(), 100);
    limiter.set_quota(Quota::per_hour(ten_an_hour));
    assert_eq!(
        (0..200).filter(|_| limiter.check().is_ok()).count(),
        9,
        "a second of it is owed"
    );
}

#[test]
fn a_check_does_not_allocate() {
    let limiter = Limiter::new(five_a_second());
    let count = allocation_counter::measure(|| {
        assert_eq!((0..10).filter(|_| limiter.check().is_ok()).count(), 5)
    });
    assert_eq!(count.count_total, 0);
    assert_eq!(
        limiter.snapshot(),
        Snapshot {
            allowed: 5,
            refused: 5,
            ..Snapshot::default()
        }
    );
}
