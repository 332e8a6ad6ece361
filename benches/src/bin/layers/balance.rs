//! A balance over endpoints that do nothing, all of them ready.

use tower_benches::{
    balanced::Balanced,
    drive::{self, Case},
};
use tower_resolve::policy::{LeastRequest, Maglev, PeakEwma, Policy, Random, RingHash, RoundRobin, WeightedRoundRobin};

/// One case for each number of endpoints.
macro_rules! sizes {
    ($name:literal, $run:expr) => {
        [
            Case { name: concat!($name, "/2"), job: JOB, bare: "bare", run: |calls| $run(calls, 2) },
            Case { name: concat!($name, "/10"), job: JOB, bare: "bare", run: |calls| $run(calls, 10) },
            Case { name: concat!($name, "/100"), job: JOB, bare: "bare", run: |calls| $run(calls, 100) },
            Case { name: concat!($name, "/1000"), job: JOB, bare: "bare", run: |calls| $run(calls, 1_000) },
            Case { name: concat!($name, "/10000"), job: JOB, bare: "bare", run: |calls| $run(calls, 10_000) },
        ]
    };
}

pub(crate) fn cases() -> Vec<Case> {
    [
        sizes!("balance", |calls, count| balance(calls, count, LeastRequest)),
        sizes!("balance-rr", |calls, count| balance(calls, count, RoundRobin::new())),
        sizes!("balance-wrr", |calls, count| balance(calls, count, WeightedRoundRobin::new())),
        sizes!("balance-random", |calls, count| balance(calls, count, Random)),
        sizes!("balance-ewma", |calls, count| balance(calls, count, PeakEwma)),
        sizes!("balance-ring", |calls, count| balance(calls, count, RingHash::new(key))),
        sizes!("balance-maglev", |calls, count| balance(calls, count, Maglev::new(key))),
        sizes!("balance-change", change),
    ]
    .concat()
}

const JOB: &str = "balance";

#[expect(clippy::unnecessary_wraps, reason = "not every request has one")]
fn key(request: &u32) -> Option<u64> {
    Some(u64::from(*request))
}

fn balance(calls: u32, endpoints: u32, policy: impl Policy<u32>) {
    drive::calls(calls, Balanced::new(endpoints, policy).balance.clone());
}

/// One endpoint out and in again, each applied and published.
fn change(times: u32, endpoints: u32) {
    let mut balanced = Balanced::new(endpoints, LeastRequest);
    drive::other_calls(times, |index| balanced.change(index * 7_919 % endpoints));
}
