//! pingora's load balancer: it picks an address, and whoever asked makes the connection and counts.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    future::Ready,
    hint::black_box,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use pingora_load_balancing::{
    Backend, Backends, LoadBalancer,
    discovery::ServiceDiscovery,
    selection::{BackendIter, BackendSelection, Consistent, RoundRobin},
};
use tower_service::Service;

use crate::{
    balance::sizes,
    drive::{self, Bare, Case, Contended},
};

pub(crate) fn cases() -> Vec<Case> {
    [
        sizes!("pingora-rr", |calls, count| drive::calls(
            calls,
            picked::<RoundRobin>(count)
        )),
        sizes!("pingora-ketama", |calls, count| drive::calls(
            calls,
            picked::<Consistent>(count)
        )),
        sizes!("pingora-rr-change", change),
    ]
    .concat()
}

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "pingora-rr/100",
        run: |calls, threads| drive::contend(calls, threads, picked::<RoundRobin>(100)),
    },
    Contended {
        name: "pingora-rr/1000",
        run: |calls, threads| drive::contend(calls, threads, picked::<RoundRobin>(1_000)),
    },
];

/// The pick, and then the service that does nothing.
struct Picked<S: BackendSelection> {
    balancer: Arc<LoadBalancer<S>>,
    inner: Bare,
}

/// A directory that can be changed.
#[derive(Clone)]
struct Directory(Arc<Mutex<BTreeSet<Backend>>>);

type Discovered<'a> = Pin<
    Box<
        dyn Future<Output = pingora_error::Result<(BTreeSet<Backend>, HashMap<u64, bool>)>>
            + Send
            + 'a,
    >,
>;

impl ServiceDiscovery for Directory {
    fn discover<'a, 'b>(&'a self) -> Discovered<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let all = self.0.lock().expect("no panic").clone();
        Box::pin(std::future::ready(Ok((all, HashMap::new()))))
    }
}

impl<S: BackendSelection> Clone for Picked<S> {
    fn clone(&self) -> Self {
        Self {
            balancer: self.balancer.clone(),
            inner: self.inner,
        }
    }
}

impl<S> Service<u32> for Picked<S>
where
    S: BackendSelection + 'static,
    S::Iter: BackendIter,
{
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> Self::Future {
        black_box(
            self.balancer
                .select(&request.to_ne_bytes(), 256)
                .expect("all of them are healthy"),
        );
        self.inner.call(request)
    }
}

fn backend(index: u32) -> Backend {
    let [_, high, middle, low] = index.to_be_bytes();
    Backend::new(&format!("127.{}.{middle}.{low}:80", high + 1)).expect("an address")
}

fn balancer<S>(count: u32) -> (Directory, Arc<LoadBalancer<S>>)
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let directory = Directory(Arc::new(Mutex::new((0..count).map(backend).collect())));
    let balancer = LoadBalancer::from_backends(Backends::new(Box::new(directory.clone())));
    update(&balancer);
    (directory, Arc::new(balancer))
}

/// The directory answers at once.
fn update<S>(balancer: &LoadBalancer<S>)
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    futures_util::FutureExt::now_or_never(balancer.update())
        .expect("at once")
        .expect("it was found");
}

fn picked<S>(count: u32) -> Picked<S>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    Picked {
        balancer: balancer(count).1,
        inner: Bare,
    }
}

/// One endpoint out and in again, each taken over.
fn change(times: u32, count: u32) {
    let (directory, balancer) = balancer::<RoundRobin>(count);
    drive::other_calls(times, |index| {
        let backend = backend(index * 7_919 % count);
        directory.0.lock().expect("no panic").remove(&backend);
        update(&balancer);
        directory.0.lock().expect("no panic").insert(backend);
        update(&balancer);
    });
}
