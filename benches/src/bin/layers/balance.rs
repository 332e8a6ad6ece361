//! A balance over endpoints that do nothing, all of them ready.

use std::hint::black_box;

use tower_benches::{
    balanced::Balanced,
    drive::{self, Case},
};
use tower_resolve::policy::{
    Candidates, LeastRequest, Maglev, PeakEwma, PickContext, Policy, Random, RingHash, RoundRobin,
};

/// One case for each number of endpoints, beside the service that does nothing or beside another one.
macro_rules! sizes {
    ($name:literal, $run:expr) => {
        sizes!($name, "bare", "bare", "bare", "bare", "bare", $run)
    };
    ($name:literal beside $bare:literal, $run:expr) => {
        sizes!(
            $name,
            concat!($bare, "/2"),
            concat!($bare, "/10"),
            concat!($bare, "/100"),
            concat!($bare, "/1000"),
            concat!($bare, "/10000"),
            $run
        )
    };
    ($name:literal, $two:expr, $ten:expr, $hundred:expr, $thousand:expr, $myriad:expr, $run:expr) => {
        [
            Case {
                name: concat!($name, "/2"),
                job: JOB,
                bare: $two,
                run: |calls| $run(calls, 2),
            },
            Case {
                name: concat!($name, "/10"),
                job: JOB,
                bare: $ten,
                run: |calls| $run(calls, 10),
            },
            Case {
                name: concat!($name, "/100"),
                job: JOB,
                bare: $hundred,
                run: |calls| $run(calls, 100),
            },
            Case {
                name: concat!($name, "/1000"),
                job: JOB,
                bare: $thousand,
                run: |calls| $run(calls, 1_000),
            },
            Case {
                name: concat!($name, "/10000"),
                job: JOB,
                bare: $myriad,
                run: |calls| $run(calls, 10_000),
            },
        ]
    };
}

pub(crate) fn cases() -> Vec<Case> {
    [
        sizes!("balance", |calls, count| balance(calls, count, LeastRequest)),
        sizes!("balance-rr", |calls, count| balance(calls, count, RoundRobin::new())),
        sizes!("balance-random", |calls, count| balance(calls, count, Random)),
        sizes!("balance-ewma", |calls, count| balance(calls, count, PeakEwma)),
        sizes!("balance-ring", |calls, count| balance(calls, count, RingHash::new(key))),
        sizes!("balance-maglev", |calls, count| balance(calls, count, Maglev::new(key))),
        sizes!("balance-pick" beside "balance", |calls, count| balance(calls, count, Twice(LeastRequest))),
        sizes!("balance-rr-pick" beside "balance-rr", |calls, count| balance(calls, count, Twice(RoundRobin::new()))),
        sizes!("balance-ewma-pick" beside "balance-ewma", |calls, count| balance(calls, count, Twice(PeakEwma))),
        sizes!("balance-change", change),
    ]
    .concat()
}

/// Picks twice, so that the second pick is the difference.
struct Twice<P>(P);

impl<P: Policy<u32>> Policy<u32> for Twice<P> {
    type Table = P::Table;

    const KEEPS_UNREADY: bool = P::KEEPS_UNREADY;
    const MEASURES_LATENCY: bool = P::MEASURES_LATENCY;

    fn counts_total(&self) -> bool {
        self.0.counts_total()
    }

    fn table<C: Candidates>(&self, candidates: &C) -> P::Table {
        self.0.table(candidates)
    }

    fn pick<C: Candidates>(
        &self,
        table: &P::Table,
        candidates: &C,
        context: &PickContext,
    ) -> usize {
        black_box(self.0.pick(table, candidates, context));
        self.0.pick(table, candidates, context)
    }
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
