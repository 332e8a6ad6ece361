use super::*;

const TTL: Duration = Duration::from_secs(10);
/// TTL less the margin of 0.7 s.
const VALID_MS: u64 = 9_300;

const fn ms(millis: u64) -> BootInstant {
    BootInstant::from_nanos(millis * 1_000_000)
}

fn core(timing: Timing) -> Core {
    Core::new(timing, ClaimId::from_u128(1_000), true, 7)
}

fn epoch(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn granted(number: u64, ttl: Duration) -> Granted {
    Granted {
        epoch: epoch(number),
        ttl,
        revision: Revision::new(number),
        is_clean: true,
    }
}

fn grant(number: u64, ttl: Duration) -> Result<Reply, Fault> {
    Ok(Reply::Granted(granted(number, ttl)))
}

fn acquire_in(outputs: &[Output]) -> Option<RequestStamp> {
    outputs.iter().find_map(|output| match output {
        Output::Acquire(stamp) => Some(*stamp),
        _ => None,
    })
}

fn renew_in(outputs: &[Output]) -> Option<RequestStamp> {
    outputs.iter().find_map(|output| match output {
        Output::Renew(stamp) => Some(*stamp),
        _ => None,
    })
}

fn release_in(outputs: &[Output]) -> Option<ClaimId> {
    outputs.iter().find_map(|output| match output {
        Output::Release(claim) => Some(*claim),
        _ => None,
    })
}

fn revoke_own_in(outputs: &[Output]) -> Option<ClaimId> {
    outputs.iter().find_map(|output| match output {
        Output::RevokeOwn(claim) => Some(*claim),
        _ => None,
    })
}

fn until(core: &Core) -> BootInstant {
    core.held().unwrap().until
}

/// Held since 0, with the grant's answer at `answered`.
fn held(timing: Timing, answered: u64) -> (Core, RequestStamp) {
    let mut core = core(timing);
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Acquired(stamp, grant(5, TTL)), ms(answered));
    assert!(core.state().is_held());
    core.on(
        Input::Watched(WatchReport::Held(stamp.claim, Revision::new(5))),
        ms(answered),
    );
    (core, stamp)
}

/// Goes from deadline to deadline until a renewal is sent.
fn next_renewal(core: &mut Core) -> (RequestStamp, BootInstant) {
    for _ in 0..100 {
        let at = core.deadline().unwrap();
        if let Some(stamp) = renew_in(&core.on(Input::Timer, at)) {
            return (stamp, at);
        }
    }
    panic!("no renewal is sent");
}

fn reacquiring() -> Timing {
    Timing {
        reacquire: true,
        ..Timing::default()
    }
}

#[test]
fn r1_validity_does_not_move_with_the_delay_of_the_answer() {
    for delay in [0, 1, 500, 900] {
        let (mut core, _) = held(Timing::default(), delay);
        assert_eq!(
            until(&core),
            ms(VALID_MS),
            "the grant came after {delay} ms"
        );
        let (stamp, at) = next_renewal(&mut core);
        core.on(
            Input::Renewed(stamp, Ok(TTL)),
            at.after(Duration::from_millis(delay)),
        );
        assert_eq!(
            until(&core),
            at.after(Duration::from_millis(VALID_MS)),
            "the renewal's came after {delay} ms"
        );
    }
}

#[test]
fn r2_the_granted_ttl_counts_not_the_one_asked_for() {
    for (ttl, valid) in [(TTL * 3, 30_000 - 600 - 1_500), (TTL / 3, 3_333 - 66 - 250)] {
        let mut core = core(Timing::default());
        let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        core.on(Input::Acquired(stamp, grant(5, ttl)), ms(10));
        let report = WatchReport::Held(stamp.claim, Revision::new(5));
        core.on(Input::Watched(report), ms(10));
        assert!(
            until(&core).since(ms(valid)) < Duration::from_millis(1),
            "{ttl:?}"
        );
        let due = core.deadline().unwrap();
        assert!(
            due >= BootInstant::from_nanos(0).after(ttl / 5) && due <= ms(0).after(ttl / 4),
            "{ttl:?}"
        );
    }
}

/// Of a renewal too: the end, the next period and the next attempt's time follow what it granted.
#[test]
fn r2_r9_a_renewals_own_ttl_counts() {
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, at) = next_renewal(&mut core);
    core.on(Input::Renewed(stamp, Ok(TTL * 3)), at);
    let longest = at.after(Duration::from_millis(30_000 - 600 - 1_500));
    assert_eq!(until(&core), longest);
    let (stamp, later) = next_renewal(&mut core);
    assert!(
        (6_000..=7_500).contains(&later.since(at).as_millis()),
        "a quarter of 30 s: {later:?}"
    );
    assert_eq!(core.deadline(), Some(later.after(Duration::from_secs(1))));
    // Shorter than before: the promise that was made lasts, and the next period is short.
    core.on(Input::Renewed(stamp, Ok(TTL / 2)), later);
    assert_eq!(until(&core), longest);
    let (stamp, last) = next_renewal(&mut core);
    assert!(
        (1_000..=1_250).contains(&last.since(later).as_millis()),
        "a quarter of 5 s: {last:?}"
    );
    assert_eq!(
        core.deadline(),
        Some(last.after(Duration::from_millis(500)))
    );
    // What is left of the long one is over before the short ones, if nothing else comes.
    let end = ms(last.as_nanos() / 1_000_000 + 30_000);
    core.on(Input::Renewed(stamp, Ok(TTL / 2)), last);
    let mut renewed = (last, until(&core));
    while renewed.1 <= longest {
        let (stamp, at) = next_renewal(&mut core);
        assert!(at < end);
        core.on(Input::Renewed(stamp, Ok(TTL / 2)), at);
        renewed = (at, until(&core));
    }
    let valid = Duration::from_millis(5_000 - 100 - 250);
    assert_eq!(renewed.1, renewed.0.after(valid));
}

/// Which is good for nothing, so the period would be zero.
#[test]
fn r9_a_ttl_below_the_margin_does_not_make_renewals_follow_one_another() {
    let (mut core, _) = held(Timing::default(), 0);
    let (mut stamp, mut at) = next_renewal(&mut core);
    for _ in 0..10 {
        core.on(Input::Renewed(stamp, Ok(Duration::from_millis(100))), at);
        assert_eq!(until(&core), ms(VALID_MS), "it shortens nothing");
        let before = at;
        (stamp, at) = next_renewal(&mut core);
        assert!(at.since(before) >= Duration::from_millis(80), "{at:?}");
    }
    // One that was asked for has the period that follows from it.
    let brief = Timing {
        ttl: Duration::from_millis(100),
        guard: Some(Duration::from_millis(10)),
        ..Timing::default()
    };
    assert_eq!(brief.least_period(), Duration::from_millis(25));
}

/// two attempts must fit into what was granted, even if a longer TTL was requested.
#[test]
fn r5_r9_a_period_that_was_asked_for_fits_into_the_ttl_that_was_granted() {
    let timing = Timing {
        renew_every: Some(Duration::from_secs(4)),
        ..Timing::default()
    };
    assert_eq!(timing.renew_every(TTL), Duration::from_secs(4));
    for (ttl, valid) in [(3_000, 3_000 - 60 - 250), (5_000, 5_000 - 100 - 250)] {
        let ttl = Duration::from_millis(ttl);
        let mut core = core(timing.clone());
        let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        core.on(Input::Acquired(stamp, grant(5, ttl)), ms(0));
        let (_, at) = next_renewal(&mut core);
        assert!(
            at <= ms(valid / 2) && at >= ms(valid * 2 / 5),
            "{ttl:?}: {at:?}"
        );
        assert_eq!(
            core.deadline(),
            Some(at.after(ttl / 10)),
            "an attempt has a tenth of what was granted"
        );
    }
}

#[test]
fn r6_a_late_event_finds_an_expired_lease_fenced() {
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, _) = next_renewal(&mut core);
    let outputs = core.on(Input::Renewed(stamp, Ok(TTL)), ms(VALID_MS));
    assert_eq!(outputs[0], Output::Close);
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Expired
        }
    );
    assert!(core.is_over());
}

#[test]
fn r7_only_an_explicit_success_for_this_epoch_extends() {
    for fault in [Fault::Unknown, Fault::NotSent, Fault::Refused] {
        let (mut core, _) = held(Timing::default(), 0);
        let (stamp, at) = next_renewal(&mut core);
        core.on(Input::Renewed(stamp, Err(fault)), at);
        assert_eq!(until(&core), ms(VALID_MS), "{fault:?}");
        assert!(core.state().is_held());
    }
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, at) = next_renewal(&mut core);
    let other = RequestStamp {
        claim: ClaimId::from_u128(7),
        ..stamp
    };
    core.on(Input::Renewed(other, Ok(TTL)), at);
    assert_eq!(until(&core), ms(VALID_MS), "another claim's success");
    core.on(Input::Renewed(other, Err(Fault::Lost)), at);
    assert!(
        core.state().is_held(),
        "nor does another claim's loss fence"
    );
}

#[test]
fn r8_reordered_and_repeated_answers_never_shorten_nor_stretch() {
    let (mut core, _) = held(Timing::default(), 0);
    let (first, at) = next_renewal(&mut core);
    // The first is not answered in time, the second is, and then comes the first one's.
    let (second, later) = next_renewal(&mut core);
    assert!(later > at);
    let good = later.after(Duration::from_millis(VALID_MS));
    core.on(Input::Renewed(second, Ok(TTL)), later);
    assert_eq!(until(&core), good);
    for repeated in [first, second, first, second, first] {
        core.on(Input::Renewed(repeated, Ok(TTL)), later);
        assert_eq!(until(&core), good);
    }
}

#[test]
fn r8_a_late_answer_counts_from_its_own_request() {
    let (mut core, _) = held(Timing::default(), 0);
    let (first, at) = next_renewal(&mut core);
    let (_, later) = next_renewal(&mut core);
    assert!(matches!(core.state(), State::Jeopardy { .. }));
    core.on(Input::Renewed(first, Ok(TTL)), later);
    assert_eq!(until(&core), at.after(Duration::from_millis(VALID_MS)));
    assert!(
        matches!(core.state(), State::Held { .. }),
        "R-13: a success ends jeopardy"
    );
}

#[test]
fn r9_renewals_come_early_and_retries_at_once_then_with_a_pause() {
    let mut early = 0;
    for seed in 0..100 {
        let mut core = Core::new(Timing::default(), ClaimId::from_u128(0), true, seed);
        let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        core.on(Input::Acquired(stamp, grant(5, TTL)), ms(0));
        let (stamp, at) = next_renewal(&mut core);
        assert!(
            (ms(2_000)..=ms(2_500)).contains(&at),
            "period/4 × [0.8, 1.0]: {at:?}"
        );
        early += u32::from(at < ms(2_250));
        let outputs = core.on(Input::Renewed(stamp, Err(Fault::Unknown)), at);
        let stamp = renew_in(&outputs).expect("the first retry is immediate");
        core.on(Input::Renewed(stamp, Err(Fault::Unknown)), at);
        let pause = core.deadline().unwrap().since(at).as_millis();
        assert!((100..=500).contains(&pause), "{pause} ms");
    }
    assert!(
        (25..75).contains(&early),
        "{early} of 100 came in the earlier half: keepers that started together do not stay together"
    );
}

#[test]
fn r9_an_attempt_is_given_up_after_a_tenth_of_the_ttl() {
    let (mut core, _) = held(Timing::default(), 0);
    let (_, at) = next_renewal(&mut core);
    assert_eq!(core.deadline(), Some(at.after(Duration::from_secs(1))));
    assert!(renew_in(&core.on(Input::Timer, at.after(Duration::from_secs(1)))).is_some());
}

#[test]
fn r11_a_loss_takes_effect_at_once_even_if_validity_is_left() {
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, at) = next_renewal(&mut core);
    let outputs = core.on(Input::Renewed(stamp, Err(Fault::Lost)), at);
    assert_eq!(outputs[0], Output::Close, "before anything else");
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Gone
        }
    );
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, at) = next_renewal(&mut core);
    core.on(Input::Renewed(stamp, Ok(Duration::ZERO)), at);
    assert!(
        matches!(core.state(), State::Fenced { .. }),
        "a success with no time left is none"
    );
}

#[test]
fn r12_the_own_record_is_watched_and_its_end_is_the_end() {
    let (mut core, stamp) = held(Timing::default(), 0);
    core.on(
        Input::Watched(WatchReport::Held(stamp.claim, Revision::new(9))),
        ms(10),
    );
    assert!(core.state().is_held());
    core.on(
        Input::Watched(WatchReport::Held(ClaimId::from_u128(1), Revision::new(9))),
        ms(10),
    );
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Replaced
        }
    );
    let (mut core, _) = held(Timing::default(), 0);
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(6))),
        ms(10),
    );
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Gone
        }
    );
}

/// A store that was restored from a backup counts revisions anew: its report of the key is below the grant, and is no
/// old news, for the watch was opened after the grant.
#[test]
fn r12_r24_a_report_from_before_the_grant_means_a_store_that_was_rewound() {
    let before = Revision::new(4);
    for breaks in [false, true] {
        for rewound in [
            WatchReport::Vacant(before),
            WatchReport::Held(ClaimId::from_u128(1), before),
            // A late copy of the request that acquired it, carried out once more.
            WatchReport::Held(ClaimId::from_u128(1_001), before),
        ] {
            let (mut core, stamp) = held(reacquiring(), 0);
            assert_eq!(stamp.claim, ClaimId::from_u128(1_001));
            if breaks {
                core.on(Input::Watched(WatchReport::Broken), ms(10));
                core.on(Input::Timer, core.deadline().unwrap());
                assert_eq!(core.state(), State::Jeopardy { epoch: epoch(5) });
            }
            let lost = State::Fenced {
                epoch: epoch(5),
                cause: Lost::Rewound,
            };
            let outputs = core.on(Input::Watched(rewound), ms(600));
            assert_eq!(outputs[0], Output::Close, "{rewound:?}");
            let published: Vec<_> = outputs
                .iter()
                .filter(|output| matches!(output, Output::Publish(_)))
                .collect();
            assert_eq!(
                published,
                [&Output::Publish(lost)],
                "no sign of health: {rewound:?}"
            );
            // The rewound store may have our record; then it is taken away first.
            let outputs = core.on(Input::Timer, core.deadline().unwrap());
            assert_eq!(revoke_own_in(&outputs), Some(stamp.claim), "{rewound:?}");
        }
    }
}

/// The report of a contender's watch may be of any age.
#[test]
fn r24_a_contender_accepts_every_report() {
    let mut core = core(Timing::default());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let reply = Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: None,
    };
    core.on(Input::Acquired(stamp, Ok(reply)), ms(10));
    core.on(
        Input::Watched(WatchReport::Held(ClaimId::from_u128(1), Revision::new(9))),
        ms(10),
    );
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(2))),
        ms(20),
    );
    assert!(core.deadline().unwrap() <= ms(70), "a vacancy is a vacancy");
}

#[test]
fn r12_a_watch_that_breaks_is_jeopardy_until_it_reports_again() {
    let (mut core, stamp) = held(Timing::default(), 0);
    core.on(Input::Watched(WatchReport::Broken), ms(10));
    assert_eq!(core.state(), State::Jeopardy { epoch: epoch(5) });
    let again = core.deadline().unwrap();
    let outputs = core.on(Input::Timer, again);
    assert!(
        outputs.contains(&Output::Watch(Revision::new(5))),
        "{outputs:?}"
    );
    assert_eq!(
        core.state(),
        State::Jeopardy { epoch: epoch(5) },
        "opened is not yet heard"
    );
    core.on(
        Input::Watched(WatchReport::Held(stamp.claim, Revision::new(5))),
        again,
    );
    assert_eq!(core.state(), State::Held { epoch: epoch(5) });
    assert_eq!(until(&core), ms(VALID_MS), "it extends nothing");
}

#[test]
fn r13_failing_renewals_are_jeopardy_until_a_success() {
    let (mut core, _) = held(Timing::default(), 0);
    let (stamp, at) = next_renewal(&mut core);
    let outputs = core.on(Input::Renewed(stamp, Err(Fault::NotSent)), at);
    assert!(
        outputs.contains(&Output::Publish(State::Jeopardy { epoch: epoch(5) })),
        "{outputs:?}"
    );
    let stamp = renew_in(&outputs).unwrap();
    let outputs = core.on(Input::Renewed(stamp, Ok(TTL)), at);
    assert!(
        outputs.contains(&Output::Publish(State::Held { epoch: epoch(5) })),
        "{outputs:?}"
    );
}

#[test]
fn r14_a_grant_that_comes_too_late_is_released_and_not_used() {
    let mut core = core(Timing::default());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let outputs = core.on(Input::Acquired(stamp, grant(5, TTL)), ms(VALID_MS));
    assert_eq!(revoke_own_in(&outputs), Some(stamp.claim));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Open(..))),
        "{outputs:?}"
    );
    assert_eq!(core.state(), State::Acquiring);
}

#[test]
fn r14_a_grant_for_a_claim_given_up_is_released() {
    let mut core = core(Timing::default());
    let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Timer, ms(1_000));
    // The second attempt of the claim learns that another holds it, so the next round has another claim.
    let reply = Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: None,
    };
    core.on(Input::Acquired(first, Ok(reply)), ms(1_100));
    let outputs = core.on(Input::Acquired(first, grant(5, TTL)), ms(1_200));
    assert_eq!(revoke_own_in(&outputs), Some(first.claim));
    assert_eq!(core.state(), State::Acquiring);
}

/// Its answer comes when the epoch after it is over already.
#[test]
fn r14_a_grant_for_a_claim_given_up_is_released_though_nothing_is_asked_for_now() {
    let mut core = core(reacquiring());
    let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let reply = Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: None,
    };
    core.on(Input::Acquired(first, Ok(reply)), ms(100));
    let second = loop {
        let at = core.deadline().unwrap();
        if let Some(stamp) = acquire_in(&core.on(Input::Timer, at)) {
            break stamp;
        }
    };
    let now = second.at;
    core.on(Input::Acquired(second, grant(5, TTL)), now);
    let outputs = core.on(Input::Watched(WatchReport::Vacant(Revision::new(6))), now);
    assert!(outputs.contains(&Output::Close));
    let outputs = core.on(Input::Acquired(first, grant(7, TTL)), now);
    assert_eq!(revoke_own_in(&outputs), Some(first.claim));
}

#[test]
fn r15_an_unknown_acquire_is_repeated_with_the_same_claim_and_counts_from_the_first() {
    let mut core = core(Timing::default());
    let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let outputs = core.on(Input::Acquired(first, Err(Fault::Unknown)), ms(400));
    let second = acquire_in(&outputs).expect("at once");
    assert_eq!(second.claim, first.claim);
    core.on(Input::Acquired(second, grant(5, TTL)), ms(500));
    assert_eq!(
        until(&core),
        ms(VALID_MS),
        "the store may count from the first"
    );
}

#[test]
fn r15_an_acquire_that_surely_did_nothing_does_not_cost_validity() {
    let mut core = core(Timing::default());
    let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let outputs = core.on(Input::Acquired(first, Err(Fault::NotSent)), ms(400));
    let second = acquire_in(&outputs).unwrap();
    core.on(Input::Acquired(second, grant(5, TTL)), ms(500));
    assert_eq!(until(&core), ms(400 + VALID_MS));
}

#[test]
fn r15_a_claim_that_stays_unknown_too_long_is_released_and_replaced() {
    let mut core = core(Timing::default());
    let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let mut claims = vec![first.claim];
    let mut released = Vec::new();
    while ms(15_000) > core.deadline().unwrap() {
        let outputs = core.on(Input::Timer, core.deadline().unwrap());
        claims.extend(acquire_in(&outputs).map(|stamp| stamp.claim));
        released.extend(revoke_own_in(&outputs));
    }
    assert!(claims.iter().filter(|claim| **claim == first.claim).count() > 3);
    assert!(claims.iter().any(|claim| *claim != first.claim));
    assert!(released.contains(&first.claim));
}

#[test]
fn r17_contenders_watch_and_come_after_a_vacancy_within_fifty_milliseconds() {
    let mut core = core(Timing::default());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let reply = Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: Some(Duration::from_secs(9)),
    };
    let outputs = core.on(Input::Acquired(stamp, Ok(reply)), ms(10));
    assert!(
        outputs.contains(&Output::Watch(Revision::START)),
        "{outputs:?}"
    );
    assert!(core.next_attempt().unwrap() >= ms(2_000));
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(9))),
        ms(20),
    );
    let at = core.deadline().unwrap();
    assert!(at <= ms(70), "{at:?}");
    let next = acquire_in(&core.on(Input::Timer, at)).unwrap();
    assert_ne!(next.claim, stamp.claim, "each round has a claim of its own");
}

/// The watch and the answer come by different ways: what was "held" when it asked may be vacant when it hears that.
#[test]
fn r17_a_vacancy_that_overtakes_an_answer_is_not_missed() {
    let reply = Ok(Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: Some(Duration::from_secs(9)),
    });
    let mut core = core(Timing::default());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Acquired(stamp, reply), ms(10));
    let at = core.deadline().unwrap();
    let stamp = acquire_in(&core.on(Input::Timer, at)).unwrap();
    core.on(Input::Watched(WatchReport::Vacant(Revision::new(9))), at);
    core.on(Input::Acquired(stamp, reply), at);
    let soon = core.deadline().unwrap();
    assert!(soon <= at.after(Duration::from_millis(50)), "{soon:?}");
    let stamp = acquire_in(&core.on(Input::Timer, soon)).unwrap();
    core.on(Input::Acquired(stamp, reply), soon);
    assert!(
        core.deadline().unwrap() > soon.after(Duration::from_secs(1)),
        "once"
    );
}

/// A store that was rewound grants and grants: it is not asked several times a second, and no log is filled.
#[test]
fn r24_a_store_that_has_forgotten_is_asked_ever_more_rarely() {
    let (mut core, _) = held(reacquiring(), 0);
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(6))),
        ms(100),
    );
    let mut published = 0;
    while core.deadline().unwrap() < ms(100_000) {
        let at = core.deadline().unwrap();
        let mut outputs = core.on(Input::Timer, at);
        while let Some(unreleased_claim) = revoke_own_in(&outputs) {
            outputs = core.on(Input::Released(unreleased_claim, true), at);
        }
        if let Some(stamp) = acquire_in(&outputs) {
            let outputs = core.on(Input::Acquired(stamp, grant(5, TTL)), at);
            published += outputs
                .iter()
                .filter(|output| matches!(output, Output::NonMonotonicToken { .. }))
                .count();
        }
    }
    assert!((30..80).contains(&published), "{published} times in 100 s");
}

#[test]
fn r26_no_path_leads_back_to_a_lost_epoch() {
    let (mut core, stamp) = held(reacquiring(), 0);
    core.on(Input::Timer, ms(VALID_MS));
    assert!(matches!(
        core.state(),
        State::Fenced {
            cause: Lost::Expired,
            ..
        }
    ));
    core.on(Input::Renewed(stamp, Ok(TTL)), ms(VALID_MS + 1));
    core.on(Input::Acquired(stamp, grant(5, TTL)), ms(VALID_MS + 1));
    assert!(matches!(core.state(), State::Fenced { .. }));
    // The own old claim is released first, else one waits for oneself.
    let at = core.deadline().unwrap();
    let outputs = core.on(Input::Timer, at);
    assert_eq!(
        (revoke_own_in(&outputs), acquire_in(&outputs)),
        (Some(stamp.claim), None)
    );
    let again = acquire_in(&core.on(Input::Released(stamp.claim, true), at)).unwrap();
    assert_ne!(again.claim, stamp.claim);
    let outputs = core.on(Input::Acquired(again, grant(5, TTL)), at);
    assert!(
        outputs.contains(&Output::NonMonotonicToken {
            epoch: 5,
            highest: 5
        }),
        "{outputs:?}"
    );
    assert_eq!(
        core.state(),
        State::Acquiring,
        "the same token again is not used"
    );
}

/// what the store may still have is revoked by the keeper that gives up, before the TTL.
#[test]
fn r26_r30_stepping_down_after_a_loss_takes_the_old_record_away() {
    let (mut core, stamp) = held(reacquiring(), 0);
    core.on(Input::Timer, ms(VALID_MS));
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Expired
        }
    );
    assert!(!core.is_over());
    let outputs = core.on(Input::StepDown { hands_over: false }, ms(VALID_MS + 1));
    assert_eq!(revoke_own_in(&outputs), Some(stamp.claim));
    let outputs = core.on(Input::Released(stamp.claim, true), ms(VALID_MS + 2));
    assert!(outputs.contains(&Output::Publish(State::Released)));
    assert!(core.is_over());
}

/// A claim that may have been carried out, or may be yet, is not forgotten because another holds the key now.
#[test]
fn r26_r15_a_claim_without_an_answer_is_taken_away_before_the_next_one_asks() {
    let other = Ok(Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: None,
    });
    let contending = |first: Fault| {
        let mut core = core(Timing::default());
        let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let again = acquire_in(&core.on(Input::Acquired(stamp, Err(first)), ms(10))).unwrap();
        assert_eq!(again.claim, stamp.claim);
        core.on(Input::Acquired(again, other), ms(20));
        (core, stamp.claim)
    };
    let (mut core, old) = contending(Fault::Unknown);
    let at = core.deadline().unwrap();
    let outputs = core.on(Input::Timer, at);
    assert_eq!(
        (revoke_own_in(&outputs), acquire_in(&outputs)),
        (Some(old), None)
    );
    let next = acquire_in(&core.on(Input::Released(old, true), at)).unwrap();
    assert_ne!(next.claim, old);
    // One that stops instead of asking again takes it away too.
    let (mut core, old) = contending(Fault::Unknown);
    let outputs = core.on(Input::StepDown { hands_over: false }, ms(30));
    assert_eq!(revoke_own_in(&outputs), Some(old));
    // A claim that surely did nothing leaves nothing.
    let (mut core, _) = contending(Fault::NotSent);
    let at = core.deadline().unwrap();
    let outputs = core.on(Input::Timer, at);
    assert_eq!(revoke_own_in(&outputs), None);
    assert!(acquire_in(&outputs).is_some());
}

#[test]
fn r26_a_new_epoch_is_held_like_the_first() {
    let (mut core, stamp) = held(reacquiring(), 0);
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(6))),
        ms(100),
    );
    let at = core.deadline().unwrap();
    let again = acquire_in(&core.on(Input::Timer, at))
        .expect("nothing of ours is left, so nothing to release");
    assert_ne!(again.claim, stamp.claim);
    let outputs = core.on(Input::Acquired(again, grant(7, TTL)), at);
    assert!(
        outputs.contains(&Output::Open(
            epoch(7),
            at.after(Duration::from_millis(VALID_MS))
        )),
        "{outputs:?}"
    );
}

#[test]
fn r29_it_closes_then_waits_then_releases() {
    let (mut core, stamp) = held(Timing::default(), 0);
    let outputs = core.on(Input::StepDown { hands_over: false }, ms(100));
    assert_eq!(
        outputs[..2],
        [
            Output::Drain,
            Output::Publish(State::Closing { epoch: epoch(5) })
        ]
    );
    assert_eq!(release_in(&outputs), None);
    let (renewal, at) = next_renewal(&mut core);
    core.on(Input::Renewed(renewal, Ok(TTL)), at);
    assert_eq!(
        until(&core),
        at.after(Duration::from_millis(VALID_MS)),
        "it renews for those inside"
    );
    let outputs = core.on(Input::Drained, at);
    assert_eq!(
        outputs,
        [
            Output::Close,
            Output::Forget,
            Output::Release(stamp.claim),
            Output::Unwatch
        ]
    );
    let outputs = core.on(Input::Released(stamp.claim, true), at);
    assert_eq!(outputs, [Output::Publish(State::Released)]);
    assert!(core.is_over());
}

#[test]
fn r29_a_request_that_outlasts_the_drain_is_cancelled_before_the_release() {
    let (mut core, stamp) = held(
        Timing {
            drain_within: Duration::from_secs(1),
            ..Timing::default()
        },
        0,
    );
    core.on(Input::StepDown { hands_over: false }, ms(100));
    let outputs = core.on(Input::Timer, ms(1_100));
    assert_eq!(
        (outputs[0].clone(), release_in(&outputs)),
        (Output::Close, None)
    );
    let outputs = core.on(Input::Drained, ms(1_101));
    assert_eq!(release_in(&outputs), Some(stamp.claim));
}

#[test]
fn r29_a_loss_while_closing_fences_and_is_not_reacquired() {
    let (mut core, _) = held(reacquiring(), 0);
    core.on(Input::StepDown { hands_over: false }, ms(100));
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(6))),
        ms(200),
    );
    assert!(matches!(core.state(), State::Fenced { .. }) && core.is_over());
}

#[test]
fn r30_a_release_without_an_answer_is_released_here() {
    let (mut core, stamp) = held(Timing::default(), 0);
    core.on(Input::StepDown { hands_over: false }, ms(100));
    core.on(Input::Drained, ms(100));
    core.on(Input::Timer, core.deadline().unwrap());
    assert_eq!(core.state(), State::Released);
    let (mut core, _) = held(Timing::default(), 0);
    core.on(Input::StepDown { hands_over: false }, ms(100));
    core.on(Input::Drained, ms(100));
    core.on(Input::Released(stamp.claim, false), ms(200));
    assert_eq!(core.state(), State::Released);
}

/// a watch that opens and never reports.
#[test]
fn r12_a_watch_whose_first_report_is_late_is_jeopardy_until_it_comes() {
    let mut core = core(Timing::default());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Acquired(stamp, grant(5, TTL)), ms(10));
    let late = core.deadline().unwrap();
    assert_eq!(late, ms(1_010), "the time of one attempt");
    assert!(matches!(core.state(), State::Held { .. }));
    core.on(Input::Timer, late);
    assert!(matches!(core.state(), State::Jeopardy { .. }));
    let report = WatchReport::Held(stamp.claim, Revision::new(5));
    core.on(Input::Watched(report), ms(1_500));
    assert!(matches!(core.state(), State::Held { .. }));
}

/// the key was handed to this keeper, and it steps down before the report comes.
#[test]
fn r20_a_contender_that_steps_down_revokes_what_may_have_been_handed_to_it() {
    for is_asking in [false, true] {
        let mut core = core(Timing::default());
        let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let reply = Reply::Held {
            claim: ClaimId::from_u128(9),
            expires_in: None,
        };
        core.on(Input::Acquired(stamp, Ok(reply)), ms(10));
        let (mut now, mut claims) = (ms(20), vec![core.handover_claim()]);
        if is_asking {
            now = core.deadline().unwrap();
            let stamp = acquire_in(&core.on(Input::Timer, now)).unwrap();
            claims.insert(0, stamp.claim);
        }
        let mut outputs = core.on(Input::StepDown { hands_over: false }, now);
        for claim in claims {
            assert_eq!(revoke_own_in(&outputs), Some(claim), "asking: {is_asking}");
            assert!(!core.is_over());
            outputs = core.on(Input::Released(claim, true), now);
        }
        assert_eq!(core.state(), State::Released);
    }
}

#[test]
fn stepping_down_while_seeking_releases_what_may_have_been_got() {
    let mut asking = core(Timing::default());
    assert!(
        asking
            .on(Input::StepDown { hands_over: false }, ms(0))
            .contains(&Output::Publish(State::Released)),
        "never asked"
    );
    let mut asking = core(Timing::default());
    let stamp = acquire_in(&asking.on(Input::Start, ms(0))).unwrap();
    assert_eq!(
        revoke_own_in(&asking.on(Input::StepDown { hands_over: false }, ms(1))),
        Some(stamp.claim)
    );
    asking.on(Input::Released(stamp.claim, true), ms(2));
    assert!(asking.is_over());
}

#[test]
fn a_store_that_is_down_is_asked_ever_more_rarely() {
    let mut core = core(Timing::default());
    let mut stamp = acquire_in(&core.on(Input::Start, ms(0)));
    let mut asked = 0;
    while core.deadline().unwrap() < ms(100_000) {
        let now = core.deadline().unwrap();
        let input = stamp.map_or(Input::Timer, |stamp| {
            Input::Acquired(stamp, Err(Fault::NotSent))
        });
        stamp = acquire_in(&core.on(input, now));
        asked += u32::from(stamp.is_some());
    }
    assert!((30..80).contains(&asked), "{asked} times in 100 s");
}

fn delayed() -> Timing {
    Timing {
        lock_delay: Duration::from_secs(20),
        reacquire: true,
        ..Timing::default()
    }
}

fn grant_after_unclean_end(number: u64) -> Result<Reply, Fault> {
    Ok(Reply::Granted(Granted {
        is_clean: false,
        ..granted(number, TTL)
    }))
}

fn opens(outputs: &[Output]) -> bool {
    outputs
        .iter()
        .any(|output| matches!(output, Output::Open(..)))
}

/// Runs from deadline to deadline until `end`, with every renewal answered at once.
fn renew_until(core: &mut Core, end: BootInstant) -> Vec<Output> {
    let mut all = Vec::new();
    while let Some(at) = core.deadline().filter(|at| *at <= end) {
        let outputs = core.on(Input::Timer, at);
        if let Some(stamp) = renew_in(&outputs) {
            all.extend(core.on(Input::Renewed(stamp, Ok(TTL)), at));
        }
        all.extend(outputs);
    }
    all
}

#[test]
fn r18_after_an_unclean_end_the_gate_stays_closed_for_the_lock_delay() {
    let mut core = core(delayed());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let outputs = core.on(Input::Acquired(stamp, grant_after_unclean_end(5)), ms(10));
    assert!(!opens(&outputs));
    let report = WatchReport::Held(stamp.claim, Revision::new(5));
    core.on(Input::Watched(report), ms(10));
    assert_eq!(core.state(), State::LockDelay { epoch: epoch(5) });
    assert_eq!(core.next_attempt(), Some(ms(20_010)), "when to come again");
    // Longer than the TTL, so it is renewed meanwhile; and no renewal opens it.
    let outputs = renew_until(&mut core, ms(20_009));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Open(..) | Output::Extend(_))),
        "{outputs:?}"
    );
    let outputs = renew_until(&mut core, ms(20_010));
    assert!(opens(&outputs), "{outputs:?}");
    assert_eq!(core.state(), State::Held { epoch: epoch(5) });
}

#[test]
fn r18_after_a_clean_end_there_is_no_delay_and_zero_is_none_either() {
    let mut clean = core(delayed());
    let stamp = acquire_in(&clean.on(Input::Start, ms(0))).unwrap();
    assert!(opens(
        &clean.on(Input::Acquired(stamp, grant(5, TTL)), ms(10))
    ));
    let mut zero = core(Timing::default());
    let stamp = acquire_in(&zero.on(Input::Start, ms(0))).unwrap();
    assert!(opens(
        &zero.on(Input::Acquired(stamp, grant_after_unclean_end(5)), ms(10))
    ));
}

#[test]
fn r18_giving_up_during_the_lock_delay_is_no_clean_end() {
    let mut core = core(delayed());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Acquired(stamp, grant_after_unclean_end(5)), ms(10));
    let outputs = core.on(Input::StepDown { hands_over: true }, ms(20));
    assert_eq!(
        (revoke_own_in(&outputs), release_in(&outputs)),
        (Some(stamp.claim), None),
        "{outputs:?}"
    );
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Transfer(_))),
        "nor is it handed over"
    );
}

#[test]
fn r18_a_cancelled_request_that_does_not_end_makes_the_end_unclean() {
    let (mut core, stamp) = held(
        Timing {
            drain_within: Duration::from_secs(1),
            ..Timing::default()
        },
        0,
    );
    core.on(Input::StepDown { hands_over: false }, ms(100));
    core.on(Input::Timer, ms(1_100));
    let outputs = core.on(Input::Timer, core.deadline().unwrap());
    assert_eq!(
        (revoke_own_in(&outputs), release_in(&outputs)),
        (Some(stamp.claim), None),
        "{outputs:?}"
    );
}

#[test]
fn r18_a_loss_during_the_lock_delay_is_a_loss() {
    let mut core = core(delayed());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    core.on(Input::Acquired(stamp, grant_after_unclean_end(5)), ms(10));
    core.on(
        Input::Watched(WatchReport::Vacant(Revision::new(6))),
        ms(20),
    );
    assert_eq!(
        core.state(),
        State::Fenced {
            epoch: epoch(5),
            cause: Lost::Gone
        }
    );
    let (mut core, at) = (core, ms(30_000));
    assert!(!opens(&renew_until(&mut core, at)));
}

#[test]
fn r20_a_holder_drains_then_hands_over_and_is_done() {
    let (mut core, stamp) = held(Timing::default(), 0);
    let outputs = core.on(Input::StepDown { hands_over: true }, ms(100));
    assert!(outputs.contains(&Output::Drain) && !outputs.contains(&Output::Transfer(stamp.claim)));
    let outputs = core.on(Input::Drained, ms(200));
    assert_eq!(
        outputs[..3],
        [Output::Close, Output::Forget, Output::Transfer(stamp.claim)],
        "R-29: in that order"
    );
    assert_eq!(
        core.on(Input::Transferred(stamp.claim, true), ms(210)),
        [Output::Publish(State::Released)]
    );
    assert!(core.is_over());
}

#[test]
fn r20_a_transfer_that_fails_or_is_not_answered_becomes_a_release() {
    for answered in [true, false] {
        let (mut core, stamp) = held(Timing::default(), 0);
        core.on(Input::StepDown { hands_over: true }, ms(100));
        core.on(Input::Drained, ms(200));
        let outputs = if answered {
            core.on(Input::Transferred(stamp.claim, false), ms(210))
        } else {
            core.on(Input::Timer, core.deadline().unwrap())
        };
        assert_eq!(release_in(&outputs), Some(stamp.claim));
        core.on(Input::Transferred(stamp.claim, true), ms(9_000));
        core.on(Input::Released(stamp.claim, true), ms(9_000));
        assert_eq!(core.state(), State::Released);
    }
}

/// A contender whose watch reports that the key was handed to it.
fn inheriting() -> (Core, RequestStamp) {
    let mut core = core(reacquiring());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let reply = Reply::Held {
        claim: ClaimId::from_u128(1),
        expires_in: None,
    };
    core.on(Input::Acquired(stamp, Ok(reply)), ms(10));
    let handover_claim = core.handover_claim();
    let outputs = core.on(
        Input::Watched(WatchReport::Held(handover_claim, Revision::new(9))),
        ms(1_000),
    );
    let stamp = acquire_in(&outputs).expect("asks for the token");
    assert_eq!(stamp.claim, handover_claim);
    (core, stamp)
}

#[test]
fn r20_r1_a_successors_validity_counts_from_its_first_renewal() {
    let (mut core, stamp) = inheriting();
    let handover_claim = stamp.claim;
    let outputs = core.on(Input::Acquired(stamp, grant(9, TTL)), ms(1_010));
    assert!(
        !opens(&outputs),
        "the transfer was at a time that it does not know"
    );
    let renewal = renew_in(&outputs).unwrap();
    assert_eq!(renewal.claim, handover_claim);
    let outputs = core.on(Input::Renewed(renewal, Ok(TTL)), ms(1_020));
    assert!(
        outputs.contains(&Output::Open(epoch(9), ms(1_010 + VALID_MS))),
        "{outputs:?}"
    );
    assert_ne!(
        core.handover_claim(),
        handover_claim,
        "a claim is good for one handover"
    );
}

#[test]
fn r20_a_successor_without_a_watch_learns_it_when_it_asks() {
    let mut core = Core::new(reacquiring(), ClaimId::from_u128(1_000), false, 7);
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let reply = Reply::Held {
        claim: core.handover_claim(),
        expires_in: None,
    };
    let asked = acquire_in(&core.on(Input::Acquired(stamp, Ok(reply)), ms(10))).expect("at once");
    assert_eq!(asked.claim, core.handover_claim());
}

#[test]
fn r15_a_successor_whose_renewal_is_not_answered_asks_again() {
    let (mut core, stamp) = inheriting();
    let renewal = renew_in(&core.on(Input::Acquired(stamp, grant(9, TTL)), ms(1_010))).unwrap();
    core.on(Input::Renewed(renewal, Err(Fault::Unknown)), ms(1_020));
    let again = acquire_in(&core.on(Input::Timer, core.deadline().unwrap())).unwrap();
    assert_eq!(again.claim, stamp.claim);
    let renewal = renew_in(&core.on(Input::Acquired(again, grant(9, TTL)), ms(1_600))).unwrap();
    core.on(Input::Renewed(renewal, Err(Fault::Lost)), ms(1_610));
    let anew = acquire_in(&core.on(Input::Timer, core.deadline().unwrap())).unwrap();
    assert_ne!(
        anew.claim, stamp.claim,
        "lost before it was held: a contender like any other"
    );
}

fn member() -> Timing {
    Timing {
        keeps_serving: true,
        reacquire: true,
        ..Timing::default()
    }
}

#[test]
fn r31_a_member_that_is_to_keep_serving_does_while_the_store_is_down() {
    let (mut core, stamp) = held(member(), 0);
    let mut asked = 0;
    while core.deadline().unwrap() < ms(100_000) {
        let at = core.deadline().unwrap();
        let outputs = core.on(Input::Timer, at);
        assert!(!outputs.contains(&Output::Close), "at {at:?}");
        if let Some(stamp) = renew_in(&outputs) {
            core.on(Input::Renewed(stamp, Err(Fault::NotSent)), at);
            asked += 1;
        }
    }
    assert_eq!(core.state(), State::Jeopardy { epoch: epoch(5) });
    assert!(
        (30..90).contains(&asked),
        "{asked} times in 100 s: it asks, and ever more rarely"
    );
    // Back, and it has the record still.
    let (renewal, at) = next_renewal(&mut core);
    assert_eq!(renewal.claim, stamp.claim);
    core.on(Input::Renewed(renewal, Ok(TTL)), at);
    assert_eq!(core.state(), State::Held { epoch: epoch(5) });
}

#[test]
fn r31_a_membership_is_lost_when_the_store_reports_it() {
    let (mut core, _) = held(member(), 0);
    let (stamp, at) = next_renewal(&mut core);
    assert_eq!(
        core.on(Input::Renewed(stamp, Err(Fault::Lost)), at)[0],
        Output::Close
    );
    let (mut core, _) = held(member(), 0);
    let outputs = core.on(
        Input::Watched(WatchReport::Held(ClaimId::from_u128(1), Revision::new(9))),
        ms(50_000),
    );
    assert_eq!(outputs[0], Output::Close, "also long after its validity");
}

#[test]
fn r31_the_gate_of_a_membership_has_no_end() {
    let mut core = core(member());
    let stamp = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
    let outputs = core.on(Input::Acquired(stamp, grant(5, TTL)), ms(10));
    assert!(
        outputs.contains(&Output::Open(epoch(5), BootInstant::END)),
        "{outputs:?}"
    );
}

#[test]
fn r33_what_a_keeper_goes_through_is_counted() {
    let (mut core, _) = held(reacquiring(), 0);
    let (stamp, at) = next_renewal(&mut core);
    core.on(
        Input::Renewed(stamp, Ok(TTL)),
        at.after(Duration::from_millis(30)),
    );
    let (stamp, at) = next_renewal(&mut core);
    core.on(Input::Renewed(stamp, Err(Fault::Unknown)), at);
    core.on(Input::Watched(WatchReport::Vacant(Revision::new(6))), at);
    let counts = core.counts();
    assert_eq!(
        (
            counts.acquisitions,
            counts.losses.gone,
            counts.failures.unknown
        ),
        (1, 1, 1)
    );
    assert_eq!(counts.renewals.most(), Some(Duration::from_millis(30)));
    let left = counts.validity.least().unwrap();
    assert!(
        (ms(6_700)..ms(7_300)).contains(&ms(0).after(left)),
        "9.3 s less a period: {left:?}"
    );
}
