use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn check(timing: &Timing) -> Result<(), BuildError> {
    timing.check(&Capabilities::new().with_min_ttl(ms(100)))
}

#[test]
fn r5_the_margin_is_the_formula() {
    let timing = Timing::default();
    assert_eq!(timing.margin(ms(10_000)), ms(700), "the rules' own example");
    assert_eq!(
        timing.margin(ms(1_000)),
        ms(270),
        "the guard is at least 250 ms"
    );
    let timing = Timing {
        drift_ppm: 500,
        guard: Some(ms(10)),
        ..timing
    };
    assert_eq!(timing.margin(ms(1_000)), ms(11));
}

#[test]
fn r5_a_margin_of_half_the_ttl_is_an_error() {
    assert!(
        check(&Timing {
            guard: Some(ms(4_799)),
            ..Timing::default()
        })
        .is_ok()
    );
    let wide = Timing {
        guard: Some(ms(4_800)),
        ..Timing::default()
    };
    assert!(matches!(
        check(&wide),
        Err(BuildError::MarginTooWide { .. })
    ));
    let drifty = Timing {
        drift_ppm: 300_000,
        ..Timing::default()
    };
    assert!(matches!(
        check(&drifty),
        Err(BuildError::MarginTooWide { .. })
    ));
    assert!(matches!(
        check(&Timing {
            ttl: ms(400),
            ..Timing::default()
        }),
        Err(BuildError::MarginTooWide { .. })
    ));
}

#[test]
fn r5_a_period_that_leaves_one_attempt_is_an_error() {
    let every = |millis| Timing {
        renew_every: Some(ms(millis)),
        ..Timing::default()
    };
    assert!(check(&every(4_649)).is_ok());
    assert!(matches!(
        check(&every(4_650)),
        Err(BuildError::RenewTooSlow { .. })
    ));
    assert!(matches!(
        check(&every(0)),
        Err(BuildError::RenewTooSlow { .. })
    ));
}

#[test]
fn a_ttl_below_the_stores_is_an_error() {
    let short = Timing {
        ttl: ms(99),
        ..Timing::default()
    };
    assert_eq!(
        check(&short),
        Err(BuildError::TtlTooShort {
            ttl: ms(99),
            min: ms(100)
        })
    );
}

#[test]
fn r2_everything_follows_the_granted_ttl() {
    let (timing, sent) = (Timing::default(), BootInstant::from_nanos(0));
    assert_eq!(
        timing.valid_until(sent, ms(30_000)).since(sent),
        ms(30_000 - 600 - 1_500)
    );
    assert_eq!(
        timing.valid_until(sent, ms(3_000)).since(sent),
        ms(3_000 - 60 - 250)
    );
    assert_eq!(
        timing.valid_until(sent, ms(200)),
        sent,
        "shorter than its margin: good for nothing"
    );
    assert_eq!(
        (timing.renew_every(ms(30_000)), timing.attempt(ms(30_000))),
        (ms(7_500), ms(1_000))
    );
    assert_eq!(
        (timing.renew_every(ms(3_000)), timing.attempt(ms(3_000))),
        (ms(750), ms(300))
    );
}
