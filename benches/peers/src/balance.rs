//! Load balancers over services that do nothing.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    fmt::Debug,
    future::poll_fn,
    hint::black_box,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::stream::{self, Stream, StreamExt};
use tower::{
    balance::p2c::Balance,
    buffer::Buffer,
    discover::Change,
    load::{CompleteOnResponse, Load, PeakEwma, PendingRequests},
};
use tower_service::Service;

use crate::drive::{self, Bare, Case, Contended};

/// One case for each number of endpoints.
macro_rules! sizes {
    ($name:literal, $run:expr) => {
        [
            Case {
                name: concat!($name, "/2"),
                job: crate::balance::JOB,
                bare: "peers-bare",
                run: |calls| $run(calls, 2),
            },
            Case {
                name: concat!($name, "/10"),
                job: crate::balance::JOB,
                bare: "peers-bare",
                run: |calls| $run(calls, 10),
            },
            Case {
                name: concat!($name, "/100"),
                job: crate::balance::JOB,
                bare: "peers-bare",
                run: |calls| $run(calls, 100),
            },
            Case {
                name: concat!($name, "/1000"),
                job: crate::balance::JOB,
                bare: "peers-bare",
                run: |calls| $run(calls, 1_000),
            },
            Case {
                name: concat!($name, "/10000"),
                job: crate::balance::JOB,
                bare: "peers-bare",
                run: |calls| $run(calls, 10_000),
            },
        ]
    };
}
#[cfg(feature = "pingora")]
pub(crate) use sizes;

pub(crate) fn cases() -> Vec<Case> {
    [
        sizes!("tower-p2c-pending", |calls, count| p2c(
            calls, count, pending
        )),
        sizes!("tower-p2c-pending-buffer", |calls, count| buffered(
            calls, count, pending
        )),
        sizes!("tower-p2c-pending-change", p2c_change),
        sizes!("tower-p2c-ewma", |calls, count| p2c(calls, count, ewma)),
        sizes!("tower-p2c-ewma-buffer", |calls, count| buffered(
            calls, count, ewma
        )),
    ]
    .concat()
}

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "tower-p2c-pending-buffer/100",
        run: |calls, threads| contended(calls, threads, 100, pending),
    },
    Contended {
        name: "tower-p2c-ewma-buffer/100",
        run: |calls, threads| contended(calls, threads, 100, ewma),
    },
];

pub(crate) const JOB: &str = "balance";

fn pending() -> PendingRequests<Bare> {
    PendingRequests::new(Bare, CompleteOnResponse::default())
}

/// With linkerd's numbers.
fn ewma() -> PeakEwma<Bare> {
    PeakEwma::new(
        Bare,
        Duration::from_millis(30),
        1e10,
        CompleteOnResponse::default(),
    )
}

/// An endpoint that knows its load.
trait Loaded:
    Service<u32, Response = u32, Error = Infallible, Future: Send>
    + Load<Metric: Debug + Send>
    + Send
    + 'static
{
}

impl Loaded for PendingRequests<Bare> {}

impl Loaded for PeakEwma<Bare> {}

/// All endpoints at once and then no news, as from a directory in which nothing changes.
fn changes<S: Loaded>(
    endpoints: u32,
    make: fn() -> S,
) -> impl Stream<Item = Result<Change<u32, S>, Infallible>> + Send + Unpin + 'static {
    Box::pin(
        stream::iter((0..endpoints).map(move |id| Ok(Change::Insert(id, make()))))
            .chain(stream::pending()),
    )
}

fn insert(endpoint: u32) -> Result<Change<u32, PendingRequests<Bare>>, Infallible> {
    Ok(Change::Insert(endpoint, pending()))
}

fn p2c<S: Loaded>(calls: u32, endpoints: u32, make: fn() -> S) {
    drive::calls(calls, Balance::new(changes(endpoints, make)));
}

/// Many threads, each with a clone; the task between them runs on a third.
fn contended<S: Loaded>(calls: u32, threads: usize, endpoints: u32, make: fn() -> S) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    drive::contend(
        calls,
        threads,
        Buffer::new(Balance::new(changes(endpoints, make)), 1_024),
    )
}

/// What makes it `Clone`: a task behind a channel, on the same thread here.
fn buffered<S: Loaded>(calls: u32, endpoints: u32, make: fn() -> S) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let mut service = Buffer::new(Balance::new(changes(endpoints, make)), 1_024);
    let mut call = async |index: u32| {
        poll_fn(|cx| Service::<u32>::poll_ready(&mut service, cx))
            .await
            .expect("it is ready");
        black_box(
            service
                .call(black_box(index))
                .await
                .expect("a call that succeeds"),
        );
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
    let news = Rc::new(RefCell::new(
        (0..endpoints).map(insert).collect::<VecDeque<_>>(),
    ));
    let told = news.clone();
    let changes = stream::poll_fn(move |_| {
        told.borrow_mut()
            .pop_front()
            .map_or(Poll::Pending, |new| Poll::Ready(Some(new)))
    });
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
