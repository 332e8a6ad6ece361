//! A balance over endpoints that do nothing, all of them ready.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    task::{Context, Waker},
};

use tokio::runtime;
use tower_benches::drive::{self, Bare, Case};
use tower_resolve::{
    Balance, Endpoint, Resolve, StaticResolver,
    policy::{LeastRequest, Policy, RoundRobin},
};

pub(crate) const CASES: &[Case] = &[
    Case { name: "balance/2", job: JOB, bare: "bare", run: |calls| balance(calls, 2, LeastRequest) },
    Case { name: "balance/10", job: JOB, bare: "bare", run: |calls| balance(calls, 10, LeastRequest) },
    Case { name: "balance/1000", job: JOB, bare: "bare", run: |calls| balance(calls, 1_000, LeastRequest) },
    Case { name: "balance-rr/1000", job: JOB, bare: "bare", run: |calls| balance(calls, 1_000, RoundRobin::new()) },
];

const JOB: &str = "balance";

fn balance(calls: u32, endpoints: u16, policy: impl Policy) {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    // For the driver's timers. The calls need none.
    let _entered = runtime.enter();
    let updates = StaticResolver::new().with("name", (0..endpoints).map(endpoint)).resolve("name");
    let (balance, driver) = Balance::builder().policy(policy).build(updates, |_| Bare);
    let mut driver = pin!(driver);
    for _ in 0..POLLS {
        let _ = driver.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    assert_eq!(balance.snapshot().ready(), usize::from(endpoints));
    drive::calls(calls, balance);
}

/// More than enough for the driver to see each endpoint ready.
const POLLS: usize = 100;

fn endpoint(index: u16) -> Endpoint {
    let [high, low] = index.to_be_bytes();
    Endpoint::new(format!("endpoint-{index}"), SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 80)))
}
