use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};
use tower_outcome::{
    BoxError, Unsent,
    classify::{AnyErr, Classify, ClassifyResponse, Judge, Judged, Scope},
};
use tower_service::Service;

use crate::{
    Circuit, GateFuture, Open, Permit, fast_path::WaiterId, future::RecordedCall,
    permit::Reservation, shared::Caller,
};

/// Is not ready while the circuit is open, so that a balancer picks another endpoint. Made by
/// [`CircuitGateLayer`](crate::CircuitGateLayer).
///
/// | | `poll_ready` | `call` |
/// |---|---|---|
/// | closed | polls the inner service | asks the circuit again, then calls the inner service |
/// | a probe is possible | reserves it, then polls the inner service | makes the probe |
/// | otherwise | `Pending`; woken by the circuit and by a timer | hands the request back |
///
/// A ready gate may become pending when it is polled again; tower's balancer does so before each dispatch. A call that
/// relies on readiness which has ended fails with [`Unsent`], which contains the request and has [`Open`] as its source.
///
/// A reservation is returned when the gate is dropped, or after the probe deadline if it is not called. It is held while the
/// inner service is still getting ready.
///
/// # Panics
///
/// Waiting needs a Tokio runtime with its timer enabled; `poll_ready` panics outside of one while the circuit is open.
#[derive(Debug)]
pub struct CircuitGate<S, C = AnyErr> {
    inner: S,
    circuit: Circuit,
    classify: C,
    readiness: Readiness,
    wait: Option<Wait>,
}

/// The result of `poll_ready`, for the next `call` on this very clone.
#[derive(Debug)]
enum Readiness {
    NotReady,
    /// The circuit was closed.
    Ready,
    Probe(Reservation),
}

/// A pending gate: its registration with the circuit, and its timer.
#[derive(Debug)]
struct Wait {
    circuit: Circuit,
    waiter: WaiterId,
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl CircuitGate ===

impl<S, C> CircuitGate<S, C> {
    pub(crate) fn new(inner: S, circuit: Circuit, classify: C) -> Self {
        Self {
            inner,
            circuit,
            classify,
            readiness: Readiness::NotReady,
            wait: None,
        }
    }

    /// The circuit.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it bypasses the circuit.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, without the circuit.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The circuit is closed, and there is no reservation or registration to give back.
    #[inline]
    fn is_ready_fast(&self) -> bool {
        let reserved = matches!(self.readiness, Readiness::Probe(_));
        self.circuit.is_closed() && self.wait.is_none() && !reserved
    }

    #[cold]
    fn poll_circuit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.circuit.is_closed() {
            self.readiness = Readiness::Ready;
        } else if !self.has_reservation() {
            self.readiness = Readiness::NotReady;
            let wait = self.wait.get_or_insert_with(|| Wait {
                circuit: self.circuit.clone(),
                waiter: WaiterId::default(),
                timer: None,
            });
            self.readiness = ready!(wait.poll(cx));
        }
        self.wait = None;
        Poll::Ready(())
    }

    fn has_reservation(&self) -> bool {
        matches!(&self.readiness, Readiness::Probe(reservation) if reservation.is_valid(Instant::now()))
    }

    #[cold]
    fn admit(&mut self) -> Result<Permit, Open> {
        match mem::replace(&mut self.readiness, Readiness::NotReady) {
            Readiness::Ready => self.circuit.admit_call(Caller::Application),
            Readiness::Probe(reservation) => self.circuit.begin(&reservation),
            Readiness::NotReady => panic!("`call` without a successful `poll_ready` of this clone"),
        }
    }
}

impl<S, C, Req> Service<Req> for CircuitGate<S, C>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    Req: Send + 'static,
{
    type Response = Judged<C::Classifier, Permit, S::Response, S::Error>;
    type Error = BoxError;
    type Future = GateFuture<S::Future, C::Classifier>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.is_ready_fast() {
            self.readiness = Readiness::Ready;
        } else {
            ready!(self.poll_circuit(cx));
        }
        let ready = ready!(self.inner.poll_ready(cx));
        if ready.is_err() {
            self.readiness = Readiness::NotReady;
        }
        Poll::Ready(ready.map_err(Into::into))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        if let Readiness::Ready = self.readiness
            && let Some(permit) = self.circuit.admit_fast(Caller::Application)
        {
            self.readiness = Readiness::NotReady;
            let call = RecordedCall::new(&mut self.inner, &self.classify, request, permit);
            return GateFuture::admitted(call);
        }
        match self.admit() {
            Ok(permit) => GateFuture::admitted(RecordedCall::new(
                &mut self.inner,
                &self.classify,
                request,
                permit,
            )),
            Err(open) => GateFuture::unsent(Unsent::new(request, open).into()),
        }
    }
}

impl<S: Clone, C: Clone> Clone for CircuitGate<S, C> {
    /// A clone shares the circuit. It is not ready, and has no reservation.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.circuit.clone(),
            self.classify.clone(),
        )
    }
}

// === impl Wait ===

impl Wait {
    /// Pending until the circuit is closed or a probe is reserved.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Readiness> {
        loop {
            let now = Instant::now();
            let (waiter, waker) = (&mut self.waiter, cx.waker());
            let at = match self.circuit.reserve_or_wait(waiter, waker, now) {
                Ok(Some(reservation)) => return Poll::Ready(Readiness::Probe(reservation)),
                Ok(None) => return Poll::Ready(Readiness::Ready),
                Err(at) => at,
            };
            // The answer can only differ once the timer has expired.
            ready!(self.poll_timer(at, cx));
        }
    }

    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else {
            self.timer = None;
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.circuit.deregister(&mut self.waiter);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use testkit::{Probe, Wakes};
    use tower_layer::Layer;

    use super::*;
    use crate::CircuitGateLayer;

    #[tokio::test(start_paused = true)]
    async fn a_gate_has_one_place_among_the_waiting_however_often_it_is_polled() {
        let circuit = Circuit::new();
        circuit.force_open();
        let (probe, _handle) = Probe::<String>::new();
        let mut gates: Vec<_> = (0..5)
            .map(|_| CircuitGateLayer::new(&circuit).layer(probe.clone()))
            .collect();
        for _ in 0..10 {
            for gate in &mut gates {
                let (_, waker) = Wakes::new();
                assert!(
                    gate.poll_ready(&mut Context::from_waker(&waker))
                        .is_pending()
                );
            }
        }
        assert_eq!(circuit.waiting(), 5);
        let _clones: Vec<_> = gates.to_vec();
        assert_eq!(circuit.waiting(), 5, "a clone waits only once it is polled");
        gates.truncate(2);
        assert_eq!(
            circuit.waiting(),
            2,
            "and a gate that is dropped waits no more"
        );
        circuit.reset();
        assert_eq!(circuit.waiting(), 0);
        let gate = &mut gates[0];
        let (_, waker) = Wakes::new();
        assert!(gate.poll_ready(&mut Context::from_waker(&waker)).is_ready());
        assert!(
            gate.wait.is_none() && gate.is_ready_fast(),
            "its timer and registration are gone, so that the fast path is used"
        );
    }
}
