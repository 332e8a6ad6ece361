//! Every pair of layers, both ways round: the contract of `tower-service`, the error types, and what is given back.

use std::{fmt::Debug, task::Poll, time::Duration};

use http::{Request, Response};
use http_body::Body;
use testkit::{Answer, Broken, Probe, ProbeHandle, Script, Step, contract};
use tokio_test::task;
use tower::{BoxError, Service, ServiceBuilder};
use tower_bucket::{BucketLayer, Limiter, Quota};
use tower_circuit::{Circuit, CircuitGateLayer, CircuitLayer, Cooldown, State};
use tower_drain::{Drain, DrainLayer};
use tower_lease::{
    LeaseLayer, PropagateLayer,
    fence::{Fence, FenceLayer, MemoryMark},
};
use tower_outcome::classify;

use crate::parts::held_lease;

/// No call of these tests reaches it.
const PLENTY: u32 = 1_000_000;

fn plenty() -> Quota {
    Quota::per_second(PLENTY).burst(PLENTY)
}

/// What the layers of a pair hold places in: a circuit each, if they are circuits, and a drain.
struct Places {
    circuits: [Circuit; 2],
    drain: Drain,
}

impl Places {
    fn new() -> Self {
        // Long enough that no test waits for it.
        let circuit = || {
            Circuit::builder()
                .cooldown(Cooldown::new(Duration::from_secs(3600)))
                .build()
        };
        Self {
            circuits: [circuit(), circuit()],
            drain: Drain::new(),
        }
    }

    fn close(&self) {
        self.circuits.iter().for_each(Circuit::reset);
    }

    /// With room for one probe in each circuit.
    fn half_open(&self) {
        for circuit in &self.circuits {
            circuit.force_open();
            circuit.automatic();
        }
    }

    /// Nothing that a call took is still taken, whichever way the call ended.
    fn are_free(&self, name: &str, probe: &ProbeHandle) {
        assert_eq!(
            (probe.in_flight(), self.drain.snapshot().requests),
            (0, 0),
            "{name}"
        );
        for circuit in self
            .circuits
            .iter()
            .filter(|circuit| circuit.state() == State::HalfOpen)
        {
            // A probe that was promised and not given back leaves it closed to all for its ten seconds.
            assert!(
                circuit.admit().is_ok(),
                "{name}: a probe's place is still taken"
            );
        }
    }
}

/// Runs one pair: `wrap` puts both layers around a probe.
fn pair<S, B>(name: &str, places: &Places, mut wrap: impl FnMut(Probe) -> S)
where
    S: Service<Request<String>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Debug,
    S::Future: Send,
    B: Body,
{
    places.close();
    contract::check(&mut wrap);
    for circuit_is in [State::Closed, State::HalfOpen] {
        for how in [
            "not called",
            "not polled",
            "cancelled",
            "failed",
            "panicked",
            "body dropped",
            "answered",
        ] {
            match circuit_is {
                State::Closed => places.close(),
                _ => places.half_open(),
            }
            let (probe, handle) = Probe::new();
            let name = format!("{name}, {how}, {circuit_is:?}");
            end(how, &name, wrap(probe), &handle);
            places.are_free(&name, &handle);
            // And the next call is served.
            places.close();
            let (probe, _handle) = Probe::new();
            let mut next = wrap(probe);
            assert!(is_ready(&mut next), "{name}: the next one waits");
            let answer = task::spawn(next.call(Request::default())).poll();
            assert!(
                matches!(answer, Poll::Ready(Ok(answer)) if answer.status() == 200),
                "{name}: the next one"
            );
            assert_eq!(
                places.drain.snapshot().requests,
                0,
                "{name}: its answer has no body to wait for"
            );
        }
    }
}

/// Makes one call that ends in a certain way.
fn end<S, B>(how: &str, name: &str, mut service: S, probe: &ProbeHandle)
where
    S: Service<Request<String>, Response = Response<B>>,
    S::Error: Debug,
{
    probe.answer(match how {
        "cancelled" => Answer::Hang,
        "failed" => Answer::Fail,
        "panicked" => Answer::Panic,
        "body dropped" => Answer::Body(200, Script::new([Step::Data("x"), Step::Hang])),
        _ => Answer::Status(200),
    });
    assert!(is_ready(&mut service), "{name}");
    if how == "not called" {
        return;
    }
    let mut call = task::spawn(service.call(Request::default()));
    match how {
        "not polled" => {}
        "cancelled" => assert!(call.poll().is_pending(), "{name}"),
        "failed" => assert!(matches!(call.poll(), Poll::Ready(Err(_))), "{name}"),
        "panicked" => {
            let polled =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.poll().is_ready()));
            assert!(polled.is_err(), "{name}: a panic is not swallowed");
        }
        _ => assert!(matches!(call.poll(), Poll::Ready(Ok(_))), "{name}"),
    }
}

fn is_ready<S: Service<Request<String>>>(service: &mut S) -> bool {
    matches!(
        task::spawn(()).enter(|cx, _| service.poll_ready(cx)),
        Poll::Ready(Ok(()))
    )
}

/// The error type of all rejecting layers.
fn boxed<S: Service<Request<String>, Error = BoxError>>(service: S) -> S {
    service
}

/// The inner service's own error.
fn kept<S: Service<Request<String>, Error = Broken>>(service: S) -> S {
    service
}

/// Runs `pair` over the cross product of a list with itself.
macro_rules! every_pair {
    ($places:ident, $error:ident, $layers:tt) => { every_pair!(@outer $places, $error, $layers, $layers) };
    (@outer $places:ident, $error:ident, [$($outer:ident)+], $inner:tt) => {
        $(every_pair!(@inner $places, $error, $outer, $inner);)+
    };
    (@inner $places:ident, $error:ident, $outer:ident, [$($inner:ident)+]) => {$(
        let name = concat!(stringify!($outer), " around ", stringify!($inner));
        pair(name, &$places, |probe| {
            $error(ServiceBuilder::new().layer($outer(0)).layer($inner(1)).service(probe))
        });
    )+};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rejecting_layers_and_gates() {
    let places = Places::new();
    let (lease, keeper) = held_lease().await;
    let token = lease.token().unwrap().to_string();
    let known = Fence::of_key(lease.key().clone(), MemoryMark::new()).build();
    known.admit(&lease.token().unwrap()).await.unwrap();

    let circuit = |side: usize| CircuitLayer::new(&places.circuits[side]);
    let circuit_http = |side| circuit(side).classify(classify::Http::new());
    let circuit_gate = |side: usize| CircuitGateLayer::new(&places.circuits[side]);
    let bucket = |_| BucketLayer::new(Limiter::new(plenty()));
    let bucket_wait = |side| bucket(side).wait(Duration::from_secs(1));
    let leased = |_| LeaseLayer::new(&lease);
    let leased_http = |side| leased(side).http();
    let leased_gate = |side| leased(side).gate();
    let propagate = |_| PropagateLayer::new(&lease);
    let bearing = ServiceBuilder::new().map_request(move |mut request: Request<String>| {
        request
            .headers_mut()
            .insert("x-lease-token", token.parse().unwrap());
        request
    });
    let fence = |_| bearing.clone().layer(FenceLayer::new(&known));
    every_pair!(
        places,
        boxed,
        [circuit circuit_http circuit_gate bucket bucket_wait leased leased_http leased_gate propagate fence]
    );
    // The drain refuses nothing, and so keeps the error of what it is around, and leaves it alone inside.
    let drain = |_| DrainLayer::new(&places.drain);
    macro_rules! with_the_drain {
        ($($layer:ident)+) => {$(
            every_pair!(@inner places, boxed, drain, [$layer]);
            every_pair!(@inner places, boxed, $layer, [drain]);
        )+};
    }
    with_the_drain!(circuit circuit_http circuit_gate bucket bucket_wait leased leased_http leased_gate propagate fence);
    keeper.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn responding_layers() {
    let places = Places::new();
    let (lease, keeper) = held_lease().await;
    let circuit = |side: usize| CircuitLayer::new(&places.circuits[side]).respond();
    let bucket = |_| BucketLayer::new(Limiter::new(plenty())).respond();
    let per_client = |_| BucketLayer::per_client(plenty()).respond();
    let leased = |_| LeaseLayer::new(&lease).respond();
    let drain = |_| DrainLayer::new(&places.drain);
    every_pair!(places, kept, [circuit bucket per_client leased drain]);
    keeper.abort();
}
