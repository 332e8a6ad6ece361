use super::*;

fn told(standing: Standing) -> Vec<String> {
    let mut headers = HeaderMap::new();
    RateLimitHeaders::new(PolicyName::default(), standing).add_to(&mut headers);
    ["ratelimit-policy", "ratelimit"]
        .map(|name| headers[name].to_str().unwrap().to_owned())
        .into()
}

#[test]
fn a_policy_is_the_rate_in_whole_seconds() {
    let every = |seconds| Quota::every(Duration::from_secs(seconds)).unwrap();
    for (quota, expected) in [
        (Quota::per_second(100), (100, 1)),
        (Quota::per_second(100).burst(20), (100, 1)),
        (Quota::per_second(3), (3, 1)),
        (Quota::per_minute(60), (60, 60)),
        (Quota::per_minute(60).burst(5), (5, 5)),
        (Quota::per_hour(1000), (1000, 3600)),
        (every(5), (1, 5)),
        (Quota::per_second(u32::MAX), (4_000_000_000, 4)),
    ] {
        assert_eq!(policy(quota), expected, "{quota:?}");
    }
}

#[test]
fn an_admission_reports_what_is_left_and_when_there_is_more() {
    let quota = Quota::per_minute(60);
    let after = |debt| told(Standing::Admitted(Admitted::new(debt, quota)))[1].clone();
    assert_eq!(after(1_000_000_000), "\"default\";r=59;t=1");
    assert_eq!(after(1_500_000_000), "\"default\";r=58;t=1");
    assert_eq!(after(0), "\"default\";r=60");
    assert_eq!(
        told(Standing::Admitted(Admitted::new(0, quota)))[0],
        "\"default\";q=60;w=60"
    );
}

#[test]
fn a_rejection_reports_the_wait_unless_no_wait_helps() {
    let quota = Quota::per_minute(60);
    let after = |reason| told(Standing::Denied(quota, reason))[1].clone();
    assert_eq!(after(Reason::Wait(1)), "\"default\";r=0;t=1");
    assert_eq!(after(Reason::Wait(1_000_000_001)), "\"default\";r=0;t=2");
    assert_eq!(after(Reason::Cost), "\"default\";r=0");
}

#[test]
fn a_name_that_would_break_the_field_is_none() {
    assert!(PolicyName::new("per client").is_some());
    for name in ["a\"b", "a\\b", "a\nb", "ä", "\x7f"] {
        assert!(PolicyName::new(name).is_none(), "{name:?}");
    }
}
