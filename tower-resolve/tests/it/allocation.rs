//! An admitted request allocates nothing, for any number of endpoints and every policy.

use std::{
    future::{Ready, ready},
    num::NonZeroU32,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use tower::{Service, service_fn};
use tower_outcome::{BoxError, EjectionBudget};
use tower_resolve::{
    Balance, Endpoint, Topology, Update,
    balance::BalanceBuilder,
    policy::{Bound, LeastRequest, Maglev, PeakEwma, Policy, Random, RingHash, RoundRobin},
};

use crate::support::{endpoint, generation, settle, source};

fn answer(_: Request<String>) -> Ready<Result<Response<String>, BoxError>> {
    ready(Ok(Response::new(String::new())))
}

/// The allocations of a balance over this number of endpoints, half of them of another weight, for 200 requests after the
/// first ones.
async fn allocations<P: Policy<Request<String>>>(builder: BalanceBuilder<P>, count: usize) -> u64 {
    let (source, updates) = source();
    let make = |_: &Endpoint, _: &EjectionBudget| service_fn(answer);
    let (mut balance, driver) = builder.http().build(updates, make);
    tokio::spawn(driver);
    let set = (0..count).map(|id| {
        let weight = 1 + 50 * (id % 2) as u32;
        endpoint(&format!("e{id}")).with_weight(NonZeroU32::new(weight).unwrap())
    });
    let topology = Topology::new(generation(1), set);
    source.send(Update::Snapshot(topology)).unwrap();
    settle().await;
    let mut context = Context::from_waker(Waker::noop());
    let mut call = |request| {
        let call = pin!(balance.call(request));
        assert!(matches!(call.poll(&mut context), Poll::Ready(Ok(_))));
    };
    let requests = |count| {
        let request = |user| Request::builder().uri("/").extension(user);
        let all = (0..count).map(move |user: u64| request(user).body(String::new()).unwrap());
        all.collect::<Vec<_>>()
    };
    // The first use of shared state by a thread allocates.
    requests(20).into_iter().for_each(&mut call);
    let mut requests = requests(200);
    allocation_counter::measure(|| requests.drain(..).for_each(call)).count_total
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_allocates_nothing() {
    async fn check<P: Policy<Request<String>>>(policy: impl Fn() -> P) {
        for count in [1, 2, 300] {
            let plain = Balance::builder().policy(policy());
            assert_eq!(allocations(plain, count).await, 0);
            let full = Balance::builder()
                .policy(policy())
                .max_in_flight(NonZeroU32::new(10).unwrap())
                .slow_start(Duration::from_secs(10));
            assert_eq!(allocations(full, count).await, 0);
        }
    }
    fn key(request: &Request<String>) -> Option<u64> {
        request.extensions().get().copied()
    }
    check(|| LeastRequest).await;
    check(|| PeakEwma).await;
    check(RoundRobin::new).await;
    check(|| Random).await;
    check(|| RingHash::new(key)).await;
    check(|| Maglev::new(key).bound(Bound::percent(25))).await;
}
