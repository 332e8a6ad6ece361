//! A closed loop of calls, polled by hand: no runtime, no task, nothing but the layer between the loop and a service
//! that does nothing.
//!
//! The peers' benchmarks have a lockfile of their own and include this very file, so both are driven alike.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, ready},
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    process::ExitCode,
    task::{Context, Poll, Waker},
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
    /// Makes the layer and calls it so many times.
    pub run: fn(u32),
}

/// A service that hands its request back, for the layers that look at no request.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

/// A service that answers every HTTP request with 200 and a body made by its function.
#[derive(Clone, Copy, Debug)]
pub struct BareHttp<B>(pub fn() -> B);

/// Runs the case that the command line names, `CASE CALLS`, or prints all of them, `--list`.
pub fn main(cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => {
            for Case { name, job, bare, .. } in cases {
                println!("{name}\t{bare}\t{job}");
            }
            ExitCode::SUCCESS
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

/// Does something so many times that is not a call.
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

/// An ordinary request from one of so many clients, which `extension` turns into what a layer looks for.
pub fn from_clients<X>(clients: u32, extension: fn(SocketAddr) -> X) -> impl Fn(u32) -> Request<()>
where
    X: Clone + Send + Sync + 'static,
{
    move |index| {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + index % clients);
        let mut request = Request::new(());
        request.extensions_mut().insert(extension(SocketAddr::from((address, 40_000))));
        request
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
    eprintln!("usage: CASE CALLS, or --list");
    ExitCode::from(2)
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

// === impl BareHttp ===

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
