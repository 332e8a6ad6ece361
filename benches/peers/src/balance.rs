//! Load balancers over services that do nothing.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    hint::black_box,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures_util::stream::{self, StreamExt};
use tower::{
    balance::p2c::Balance,
    buffer::Buffer,
    discover::Change,
    load::{CompleteOnResponse, PendingRequests},
};
use tower_service::Service;

use crate::drive::{self, Bare, Case};

/// One case for each number of endpoints.
macro_rules! sizes {
    ($name:literal, $run:expr) => {
        [
            Case { name: concat!($name, "/2"), job: JOB, bare: "peers-bare", run: |calls| $run(calls, 2) },
            Case { name: concat!($name, "/10"), job: JOB, bare: "peers-bare", run: |calls| $run(calls, 10) },
            Case { name: concat!($name, "/100"), job: JOB, bare: "peers-bare", run: |calls| $run(calls, 100) },
            Case { name: concat!($name, "/1000"), job: JOB, bare: "peers-bare", run: |calls| $run(calls, 1_000) },
            Case { name: concat!($name, "/10000"), job: JOB, bare: "peers-bare", run: |calls| $run(calls, 10_000) },
        ]
    };
}

pub(crate) fn cases() -> Vec<Case> {
    [
        sizes!("tower-p2c-pending", p2c),
        sizes!("tower-p2c-pending-buffer", buffered),
        sizes!("tower-p2c-pending-change", p2c_change),
    ]
    .concat()
}

const JOB: &str = "balance";

fn insert(endpoint: u32) -> Result<Change<u32, PendingRequests<Bare>>, Infallible> {
    Ok(Change::Insert(endpoint, PendingRequests::new(Bare, CompleteOnResponse::default())))
}

fn p2c(calls: u32, endpoints: u32) {
    // All endpoints at once and then no news, as from a directory in which nothing changes.
    drive::calls(calls, Balance::new(Box::pin(stream::iter((0..endpoints).map(insert)).chain(stream::pending()))));
}

/// What makes it `Clone`: a task behind a channel, on the same thread here.
fn buffered(calls: u32, endpoints: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let _entered = runtime.enter();
    let changes = stream::iter((0..endpoints).map(insert)).chain(stream::pending());
    let mut service = Buffer::new(Balance::new(Box::pin(changes)), 1_024);
    let mut call = async |index: u32| {
        poll_fn(|cx| Service::<u32>::poll_ready(&mut service, cx)).await.expect("it is ready");
        black_box(service.call(black_box(index)).await.expect("a call that succeeds"));
    };
    runtime.block_on(call(0));
    drive::other_calls(1, |_| {
        runtime.block_on(async {
            for index in 0..calls {
                call(index).await;
            }
        });
    });
}

/// One endpoint out and in again, with a call after each, for it does nothing by itself.
fn p2c_change(times: u32, endpoints: u32) {
    let news = Rc::new(RefCell::new((0..endpoints).map(insert).collect::<VecDeque<_>>()));
    let told = news.clone();
    let changes =
        stream::poll_fn(move |_| told.borrow_mut().pop_front().map_or(Poll::Pending, |new| Poll::Ready(Some(new))));
    let mut service = Balance::new(Box::pin(changes));
    let mut call = move |index: u32| {
        let mut context = Context::from_waker(Waker::noop());
        assert!(Service::<u32>::poll_ready(&mut service, &mut context).is_ready());
        assert!(pin!(service.call(index)).poll(&mut context).is_ready());
    };
    call(0);
    drive::other_calls(times, |index| {
        let endpoint = index * 7_919 % endpoints;
        news.borrow_mut().push_back(Ok(Change::Remove(endpoint)));
        call(index);
        news.borrow_mut().push_back(insert(endpoint));
        call(index);
    });
}
