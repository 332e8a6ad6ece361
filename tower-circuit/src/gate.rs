use std::{
    fmt,
    future::Future,
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
    Circuit, GateFuture, Open, Permit,
    core::Seat,
    permit::{Leave, Reservation},
};

/// Is not ready while the circuit is open, so that a balancer looks elsewhere. Made by
/// [`CircuitGateLayer`](crate::CircuitGateLayer).
///
/// | | `poll_ready` | `call` |
/// |---|---|---|
/// | closed | asks the inner service | asks the circuit once more, then the inner service |
/// | a probe is possible | reserves it, then asks the inner service | makes the probe |
/// | otherwise | `Pending`; woken by the circuit and by a timer | hands the request back |
///
/// A ready gate may become pending again when it is polled again; tower's balancer does so before each dispatch. What
/// was ready and is called too late is answered with [`Unsent`], whose cause is [`Open`]: the request has gone nowhere.
///
/// A reservation comes back when the gate is dropped, or after the probe deadline if it is not called; the place is held
/// while the inner service is still getting ready.
///
/// # Panics
///
/// Waiting needs a Tokio runtime with its timer enabled; `poll_ready` panics outside of one while the circuit is open.
pub struct CircuitGate<S, C = AnyErr> {
    inner: S,
    circuit: Circuit,
    classify: C,
    turn: Turn,
    wait: Option<Wait>,
}

/// What `poll_ready` found, for the next `call` on this very clone.
#[derive(Debug)]
enum Turn {
    None,
    /// The circuit was closed.
    Pass,
    /// A probe is ours.
    Probe(Reservation),
}

/// A pending gate: its place among those to be woken, and its alarm.
struct Wait {
    circuit: Circuit,
    seat: Seat,
    alarm: Option<Pin<Box<Sleep>>>,
}

// === impl CircuitGate ===

impl<S, C> CircuitGate<S, C> {
    pub(crate) fn new(inner: S, circuit: Circuit, classify: C) -> Self {
        Self {
            inner,
            circuit,
            classify,
            turn: Turn::None,
            wait: None,
        }
    }

    /// The circuit it asks.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it goes past the circuit.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, without the circuit.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Closed, and nothing to be given back.
    #[inline]
    fn may_pass(&self) -> bool {
        self.circuit.is_closed() && self.wait.is_none() && !matches!(self.turn, Turn::Probe(_))
    }

    #[cold]
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.circuit.is_closed() {
            self.turn = Turn::Pass;
        } else if !self.still_ours() {
            self.turn = Turn::None;
            let wait = self.wait.get_or_insert_with(|| Wait::new(&self.circuit));
            self.turn = ready!(wait.poll(cx));
        }
        self.wait = None;
        Poll::Ready(())
    }

    fn still_ours(&self) -> bool {
        matches!(&self.turn, Turn::Probe(reservation) if reservation.holds(Instant::now()))
    }

    #[cold]
    fn admit(&mut self) -> Result<Leave, Open> {
        match std::mem::replace(&mut self.turn, Turn::None) {
            Turn::Pass => self.circuit.admit_call(),
            Turn::Probe(reservation) => self.circuit.begin(&reservation),
            Turn::None => panic!("`call` needs `poll_ready` to have said ready on this clone"),
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
        if self.may_pass() {
            self.turn = Turn::Pass;
        } else {
            ready!(self.poll_turn(cx));
        }
        let ready = ready!(self.inner.poll_ready(cx));
        if ready.is_err() {
            self.turn = Turn::None;
        }
        Poll::Ready(ready.map_err(Into::into))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        if let Turn::Pass = self.turn
            && let Some(mut leave) = self.circuit.admit_simply()
        {
            self.turn = Turn::None;
            let classifier = self.classify.classify(&request);
            let call = leave.run(|| self.inner.call(request));
            return GateFuture::admitted(call, classifier, leave);
        }
        match self.admit() {
            Ok(mut leave) => {
                let classifier = self.classify.classify(&request);
                let call = leave.run(|| self.inner.call(request));
                GateFuture::admitted(call, classifier, leave)
            }
            Err(open) => GateFuture::unsent(Unsent::new(request, open).into()),
        }
    }
}

impl<S: Clone, C: Clone> Clone for CircuitGate<S, C> {
    /// A clone shares the circuit. It leaves readiness, reservation and place in the queue behind.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.circuit.clone(),
            self.classify.clone(),
        )
    }
}

impl<S: fmt::Debug, C: fmt::Debug> fmt::Debug for CircuitGate<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitGate")
            .field("inner", &self.inner)
            .field("circuit", &self.circuit)
            .field("classify", &self.classify)
            .field("waits", &self.wait.is_some())
            .finish_non_exhaustive()
    }
}

// === impl Wait ===

impl Wait {
    fn new(circuit: &Circuit) -> Self {
        Self {
            circuit: circuit.clone(),
            seat: Seat::default(),
            alarm: None,
        }
    }

    /// Pending until the circuit is closed or a probe is ours.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            let at = match self
                .circuit
                .reserve_or_wait(&mut self.seat, cx.waker(), Instant::now())
            {
                Ok(reservation) => return Poll::Ready(reservation.map_or(Turn::Pass, Turn::Probe)),
                Err(at) => at,
            };
            // Only once the alarm has rung is there something new to ask.
            ready!(self.poll_alarm(at, cx));
        }
    }

    fn poll_alarm(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else {
            self.alarm = None;
            return Poll::Pending;
        };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if alarm.deadline() != at {
            alarm.as_mut().reset(at);
        }
        alarm.as_mut().poll(cx)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.circuit.leave(&mut self.seat);
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
            gate.wait.is_none() && gate.may_pass(),
            "and what it waited with is gone, so that it passes by the short way"
        );
    }
}
