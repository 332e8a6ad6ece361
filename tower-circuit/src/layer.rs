use std::marker::PhantomData;

use tower_layer::Layer;
use tower_outcome::{
    classify::{self, AnyErr},
    refuse::{self, Fail},
};

use crate::{Circuit, CircuitGate, CircuitService, permit::Callers};

/// Puts a [`Circuit`] in front of a service, which is refused at once while the circuit is open.
///
/// All services it makes share the circuit; for one of its own for each route, tenant or host see
/// [`KeyedCircuitLayer`](crate::KeyedCircuitLayer). Three ways to refuse, chosen by type:
///
/// | | while open | for |
/// |---|---|---|
/// | `CircuitLayer::new(c)` | `call` answers `Err(`[`Open`](crate::Open)`)`, boxed | clients |
/// | `CircuitLayer::new(c).respond()` | `call` answers 503, or a gRPC status; the error type stays | servers |
/// | `CircuitLayer::new(c).gate()` | `poll_ready` is `Pending` | endpoints of a balancer, worker loops |
///
/// ```
/// # use tower_circuit::{Circuit, CircuitLayer};
/// # use tower_layer::Layer;
/// # let upstream = ();
/// let circuit = Circuit::new();
/// let service = CircuitLayer::new(&circuit).layer(upstream);
/// ```
///
/// The third type says whether a classification has been named; [`respond`](Self::respond) keeps one that has.
#[derive(Clone, Debug)]
pub struct CircuitLayer<C = AnyErr, R = Fail, N = Unnamed> {
    circuit: Circuit,
    classify: C,
    refuse: R,
    callers: Callers,
    named: PhantomData<N>,
}

/// Of a layer whose classification is the default.
#[derive(Clone, Copy, Debug)]
pub enum Unnamed {}

/// Of a layer whose classification the user has named.
#[derive(Clone, Copy, Debug)]
pub enum Named {}

/// Puts a [`Circuit`] in front of a service, which is not ready while the circuit is open. For a circuit of its own for each
/// endpoint see [`PerEndpoint`](crate::PerEndpoint).
#[derive(Clone, Debug)]
pub struct CircuitGateLayer<C = AnyErr> {
    circuit: Circuit,
    classify: C,
}

// === impl CircuitLayer ===

impl CircuitLayer {
    /// Refuses with an error, and takes any `Err` for a failure. Takes `circuit` or `&circuit`.
    pub fn new(circuit: impl Into<Circuit>) -> Self {
        Self {
            circuit: circuit.into(),
            classify: AnyErr,
            refuse: Fail,
            callers: Callers::Ours,
            named: PhantomData,
        }
    }
}

impl<C, R> CircuitLayer<C, R, Unnamed> {
    /// Answers refused requests with 503 and `Retry-After`, or `UNAVAILABLE` if they are gRPC, and judges the answers of
    /// the inner service by status and end of body ([`classify::Auto`]). The error type stays the inner service's, so
    /// this goes on an axum `Router` as it is. A classification that is [named](Self::classify), before or after, is kept.
    ///
    /// The callers are then clients of this server, who hang up as they like: a call that its caller drops is no failure,
    /// unless [`cancelled_after`](crate::CircuitBuilder::cancelled_after) is set.
    pub fn respond(self) -> CircuitLayer<classify::Auto, refuse::Auto, Unnamed> {
        CircuitLayer {
            circuit: self.circuit,
            classify: classify::Auto::new(),
            refuse: refuse::Auto::new(),
            callers: Callers::Clients,
            named: PhantomData,
        }
    }
}

impl<C, R> CircuitLayer<C, R, Named> {
    /// As [`respond`](CircuitLayer::respond) of a layer without a named classification, but keeps the one that is named.
    pub fn respond(self) -> CircuitLayer<C, refuse::Auto, Named> {
        self.respond_with(refuse::Auto::new())
    }
}

impl<C, R, N> CircuitLayer<C, R, N> {
    /// What counts as a failure. Default: [`AnyErr`], for any protocol and response type, and [`classify::Auto`] with
    /// [`respond`](Self::respond). HTTP and gRPC users want [`classify::Auto`], which waits for the end of the body.
    pub fn classify<K>(self, classify: K) -> CircuitLayer<K, R, Named> {
        CircuitLayer {
            circuit: self.circuit,
            classify,
            refuse: self.refuse,
            callers: self.callers,
            named: PhantomData,
        }
    }

    /// Answers refused requests in another way, see [`refuse`]. The classification stays as it is; the callers are clients,
    /// as with [`respond`](Self::respond).
    pub fn respond_with<T>(self, refuse: T) -> CircuitLayer<C, T, N> {
        CircuitLayer {
            circuit: self.circuit,
            classify: self.classify,
            refuse,
            callers: Callers::Clients,
            named: PhantomData,
        }
    }

    /// Waits instead of refusing: for endpoints of a balancer and for worker loops. Never on a server, where requests
    /// would pile up in memory.
    pub fn gate(self) -> CircuitGateLayer<C> {
        CircuitGateLayer {
            circuit: self.circuit,
            classify: self.classify,
        }
    }
}

impl<S, C: Clone, R: Clone, N> Layer<S> for CircuitLayer<C, R, N> {
    type Service = CircuitService<S, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitService::new(
            inner,
            self.circuit.clone(),
            self.classify.clone(),
            self.refuse.clone(),
            self.callers,
        )
    }
}

// === impl CircuitGateLayer ===

impl CircuitGateLayer {
    /// A gate that takes any `Err` for a failure. Takes `circuit` or `&circuit`.
    pub fn new(circuit: impl Into<Circuit>) -> Self {
        CircuitLayer::new(circuit).gate()
    }
}

impl<C> CircuitGateLayer<C> {
    /// What counts as a failure. Default: [`AnyErr`]; HTTP and gRPC users want [`classify::Auto`].
    pub fn classify<K>(self, classify: K) -> CircuitGateLayer<K> {
        CircuitGateLayer {
            circuit: self.circuit,
            classify,
        }
    }
}

impl<S, C: Clone> Layer<S> for CircuitGateLayer<C> {
    type Service = CircuitGate<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitGate::new(inner, self.circuit.clone(), self.classify.clone())
    }
}
