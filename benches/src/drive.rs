//! A closed loop of calls, polled by hand: no runtime, no task, nothing but the layer between the loop and a service
//! that does nothing.
//!
//! The peers' benchmarks have a separate lock file and include this file, so both are driven in the same way.

#![allow(
    clippy::disallowed_types,
    reason = "no runtime and no paused clock in benchmarks"
)]

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, ready},
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    process::ExitCode,
    sync::{Arc, Barrier},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

/// One thing to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What the command line calls it.
    pub name: &'static str,
    /// What it does for its user: cases of one job stand beside each other.
    pub job: &'static str,
    /// The case to subtract: the same loop without the layer.
    pub bare: &'static str,
    /// Creates the layer and calls it `calls` times.
    pub run: fn(u32),
}

/// One thing to be measured with many threads in it.
#[derive(Clone, Copy, Debug)]
pub struct Contended {
    /// What the command line calls it.
    pub name: &'static str,
    /// Creates the layer once and calls clones of it from several threads, the same number of times each. Returns the duration.
    pub run: fn(calls: u32, threads: usize) -> Duration,
}

/// A service that hands its request back, for the layers that look at no request.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

/// A service that answers every HTTP request with 200 and a body made by its function.
#[derive(Debug)]
pub struct BareHttp<B>(pub fn() -> B);

/// A service that hands its request back when it is polled a second time.
#[derive(Clone, Copy, Debug)]
pub struct BareWaits;

/// The future of [`BareWaits`].
#[derive(Debug)]
pub struct Later(Option<u32>, bool);

/// Takes an error for an answer, to drive a layer that refuses with one.
#[derive(Clone, Copy, Debug)]
pub struct EitherWay<S>(pub S);

/// The future of [`EitherWay`].
#[derive(Debug)]
pub struct EitherFuture<F>(F);

/// Turns a number into a request of one of `clients` clients, to call a layer for HTTP requests from many threads.
#[derive(Clone, Copy, Debug)]
pub struct FromClients<S, X> {
    /// The layer.
    pub service: S,
    /// How many there are.
    pub clients: u32,
    /// What the layer looks for.
    pub extension: fn(SocketAddr) -> X,
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

/// Runs the case that the command line names, `CASE CALLS`, or prints all of them, `--list`. With `CASE CALLS THREADS` it is
/// one of the contended cases, which `--contended` lists; it prints its nanoseconds.
pub fn main(cases: &[Case], contended: &[Contended]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => {
            for Case {
                name, job, bare, ..
            } in cases
            {
                println!("{name}\t{bare}\t{job}");
            }
            ExitCode::SUCCESS
        }
        ["--contended"] => {
            contended.iter().for_each(|case| println!("{}", case.name));
            ExitCode::SUCCESS
        }
        [name, calls, threads] => {
            match (
                contended.iter().find(|case| case.name == name),
                calls.parse(),
                threads.parse(),
            ) {
                (Some(case), Ok(calls), Ok(threads)) => {
                    println!("{}", (case.run)(calls, threads).as_nanos());
                    ExitCode::SUCCESS
                }
                _ => usage(),
            }
        }
        [name, calls] => match (cases.iter().find(|case| case.name == name), calls.parse()) {
            (Some(case), Ok(calls)) => {
                (case.run)(calls);
                ExitCode::SUCCESS
            }
            _ => usage(),
        },
        _ => usage(),
    }
}

/// Calls a service whose answers are whole when they come. The requests are numbers, from 0.
///
/// # Panics
///
/// If the service is not ready, not done at once, or fails: then something else was measured than was meant.
#[inline(never)]
pub fn calls<S>(calls: u32, mut service: S)
where
    S: Service<u32, Error: Debug>,
{
    for index in 0..calls {
        call(&mut service, index);
    }
}

/// Calls a service whose answers come at the second poll.
///
/// # Panics
///
/// If the service is not ready, done at once or not at all, or fails.
#[inline(never)]
pub fn waiting_calls<S>(calls: u32, mut service: S)
where
    S: Service<u32, Error: Debug>,
{
    for index in 0..calls {
        now(service.poll_ready(&mut context())).expect("a service that is always ready");
        let mut future = pin!(service.call(black_box(index)));
        assert!(
            future.as_mut().poll(&mut context()).is_pending(),
            "the first poll only waits"
        );
        black_box(now(future.poll(&mut context())).expect("a call that succeeds"));
    }
}

/// Calls clones of a service from several threads at once, the same number of times each. Returns the time from the first call to
/// the last. A thread that has to wait for another one sleeps.
///
/// # Panics
///
/// If a call fails.
pub fn contend<S>(calls: u32, threads: usize, service: S) -> Duration
where
    S: Service<u32, Error: Debug> + Clone + Send,
{
    let start = Barrier::new(threads);
    let run = |mut service: S| {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut call = |index| {
            wait(&waker, |cx| service.poll_ready(cx)).expect("a service that is always ready");
            let mut future = pin!(service.call(black_box(index)));
            black_box(wait(&waker, |cx| future.as_mut().poll(cx)).expect("a call that succeeds"));
        };
        call(0);
        start.wait();
        let begun = Instant::now();
        (0..calls).for_each(call);
        (begun, Instant::now())
    };
    let clones: Vec<_> = (0..threads).map(|_| service.clone()).collect();
    let times: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = clones
            .into_iter()
            .map(|service| scope.spawn(|| run(service)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .collect()
    });
    let begun = times
        .iter()
        .map(|(begun, _)| *begun)
        .min()
        .expect("a thread at least");
    times
        .iter()
        .map(|(_, ended)| *ended)
        .max()
        .expect("a thread at least")
        - begun
}

/// Repeats something that is not a call.
#[inline(never)]
pub fn other_calls(times: u32, mut what: impl FnMut(u32)) {
    for index in 0..times {
        what(index);
    }
}

/// Calls a service that takes HTTP requests, and reads each answer's body to its end as a server does.
///
/// # Panics
///
/// As [`calls`].
#[inline(never)]
pub fn http_calls<S, B>(calls: u32, mut service: S, request: impl Fn(u32) -> Request<()>)
where
    S: Service<Request<()>, Response = Response<B>, Error: Debug>,
    B: Body<Error: Debug>,
{
    for index in 0..calls {
        let mut body = pin!(call(&mut service, request(index)).into_body());
        while !body.is_end_stream() {
            match now(body.as_mut().poll_frame(&mut context())) {
                Some(frame) => drop(black_box(frame.expect("a body without errors"))),
                None => break,
            }
        }
    }
}

#[inline(always)]
fn call<S, Req>(service: &mut S, request: Req) -> S::Response
where
    S: Service<Req, Error: Debug>,
{
    now(service.poll_ready(&mut context())).expect("a service that is always ready");
    let future = pin!(service.call(black_box(request)));
    black_box(now(future.poll(&mut context())).expect("a call that succeeds"))
}

/// An ordinary request.
#[must_use]
pub fn plain(_: u32) -> Request<()> {
    Request::new(())
}

/// An ordinary request from one of `clients` clients; `extension` adds what the layer needs.
pub fn from_clients<X>(clients: u32, extension: fn(SocketAddr) -> X) -> impl Fn(u32) -> Request<()>
where
    X: Clone + Send + Sync + 'static,
{
    move |index| {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + index % clients);
        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(extension(SocketAddr::from((address, 40_000))));
        request
    }
}

fn wait<T>(waker: &Waker, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    loop {
        match poll(&mut Context::from_waker(waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn now<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a layer with nothing to wait for waits"),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: CASE CALLS [THREADS], or --list, or --contended");
    ExitCode::from(2)
}

// === impl Unpark ===

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

// === impl Bare ===

impl Service<u32> for Bare {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        ready(Ok(request))
    }
}

// === impl BareWaits ===

impl Service<u32> for BareWaits {
    type Response = u32;
    type Error = Infallible;
    type Future = Later;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Later {
        Later(Some(request), false)
    }
}

// === impl Later ===

impl Future for Later {
    type Output = Result<u32, Infallible>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.1, true) {
            true => Poll::Ready(Ok(self.0.take().expect("polled after it was ready"))),
            false => Poll::Pending,
        }
    }
}

// === impl EitherWay ===

impl<S> Service<u32> for EitherWay<S>
where
    S: Service<u32>,
    S::Future: Unpin,
{
    type Response = Result<S::Response, S::Error>;
    type Error = Infallible;
    type Future = EitherFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.0.poll_ready(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => panic!("a layer that refuses when it is called, and not before"),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, request: u32) -> Self::Future {
        EitherFuture(self.0.call(request))
    }
}

// === impl EitherFuture ===

impl<F: Future + Unpin> Future for EitherFuture<F> {
    type Output = Result<F::Output, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Ok)
    }
}

// === impl FromClients ===

impl<S, X> Service<u32> for FromClients<S, X>
where
    S: Service<Request<()>>,
    X: Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> S::Future {
        self.service
            .call(from_clients(self.clients, self.extension)(request))
    }
}

// === impl BareHttp ===

impl<B> Clone for BareHttp<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for BareHttp<B> {}

impl<B> Service<Request<()>> for BareHttp<B> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new((self.0)())))
    }
}
