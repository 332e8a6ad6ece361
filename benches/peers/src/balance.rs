//! Load balancers over services that do nothing.

use std::convert::Infallible;

use futures_util::{StreamExt, stream};
use tower::{
    balance::p2c::Balance,
    discover::Change,
    load::{CompleteOnResponse, PendingRequests},
};

use crate::drive::{self, Bare, Case};

pub(crate) const CASES: &[Case] = &[
    Case { name: "tower-p2c-pending/2", job: JOB, bare: "peers-bare", run: |calls| p2c(calls, 2) },
    Case { name: "tower-p2c-pending/10", job: JOB, bare: "peers-bare", run: |calls| p2c(calls, 10) },
    Case { name: "tower-p2c-pending/1000", job: JOB, bare: "peers-bare", run: |calls| p2c(calls, 1_000) },
];

const JOB: &str = "balance";

fn p2c(calls: u32, endpoints: u32) {
    let inserts = (0..endpoints).map(|endpoint| {
        let service = PendingRequests::new(Bare, CompleteOnResponse::default());
        Ok::<_, Infallible>(Change::Insert(endpoint, service))
    });
    // All endpoints at once and then no news, as from a directory in which nothing changes.
    drive::calls(calls, Balance::new(Box::pin(stream::iter(inserts).chain(stream::pending()))));
}
