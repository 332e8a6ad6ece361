use tower_layer::Layer;
use tower_outcome::{
    classify::{self, AnyErr},
    refuse::{self, Fail},
};

use crate::{
    Circuit, CircuitGate, CircuitService, CustomClassify, DefaultClassify, handling::Handling,
};

/// Adds a [`Circuit`] in front of a service, which rejects calls while the circuit is open.
///
/// All services it makes share the circuit; for one circuit for each route, tenant or host see
/// [`KeyedCircuitLayer`](crate::KeyedCircuitLayer). Three ways to reject, chosen by type:
///
/// | | while open | for |
/// |---|---|---|
/// | `CircuitLayer::new(c)` | `call` fails with [`Open`](crate::Open), boxed | clients |
/// | `CircuitLayer::new(c).respond()` | `call` responds with 503, or a gRPC status; the error type stays | servers |
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
/// On an axum `Router` without [`respond`](Self::respond), the compiler reports that
/// "`From<Box<dyn Error>>` is not implemented for `Infallible`".
///
/// The third type parameter is whether a classification was set; [`respond`](Self::respond) keeps one that was.
#[derive(Clone, Debug)]
pub struct CircuitLayer<C = AnyErr, R = Fail, N = DefaultClassify> {
    circuit: Circuit,
    handling: Handling<C, R, N>,
}

/// Adds a [`Circuit`] in front of a service, which is not ready while the circuit is open. For a circuit for each endpoint see
/// [`PerEndpoint`](crate::PerEndpoint).
#[derive(Clone, Debug)]
pub struct CircuitGateLayer<C = AnyErr> {
    circuit: Circuit,
    classify: C,
}

// === impl CircuitLayer ===

impl CircuitLayer {
    /// Rejects with an error, and classifies any `Err` as a failure. Accepts `circuit` or `&circuit`.
    pub fn new(circuit: impl Into<Circuit>) -> Self {
        Self {
            circuit: circuit.into(),
            handling: Handling::new(),
        }
    }
}

impl<C, R> CircuitLayer<C, R, DefaultClassify> {
    /// Rejects with a response: 503 with `Retry-After`, or `UNAVAILABLE` if the request is gRPC. Classifies responses of the
    /// inner service by status and end of body ([`classify::Auto`]); a classification that is [set](Self::classify), before
    /// or after, is kept. The error type stays the inner service's, so this can be added to an axum `Router`.
    ///
    /// The callers are clients of this server, and may disconnect at any time: an abandoned call is no failure, unless
    /// [`abandoned_is_failure_after`](crate::CircuitBuilder::abandoned_is_failure_after) is set.
    pub fn respond(self) -> CircuitLayer<classify::Auto, refuse::Auto, DefaultClassify> {
        CircuitLayer {
            circuit: self.circuit,
            handling: self.handling.respond(),
        }
    }
}

impl<C, R> CircuitLayer<C, R, CustomClassify> {
    /// As [`respond`](CircuitLayer::respond) of a layer with the default classification, but keeps the one that was set.
    pub fn respond(self) -> CircuitLayer<C, refuse::Auto, CustomClassify> {
        self.respond_with(refuse::Auto::new())
    }
}

impl<C, R, N> CircuitLayer<C, R, N> {
    /// What a failure is. Default: [`AnyErr`], for any protocol and response type, and [`classify::Auto`] with
    /// [`respond`](Self::respond). HTTP and gRPC clients need [`classify::Auto`], or a 500 is a success; it waits for the end
    /// of the body.
    pub fn classify<K>(self, classify: K) -> CircuitLayer<K, R, CustomClassify> {
        CircuitLayer {
            circuit: self.circuit,
            handling: self.handling.classify(classify),
        }
    }

    /// Rejects with another response, see [`refuse`]. The classification stays as it is; the callers are clients, as with
    /// [`respond`](Self::respond).
    pub fn respond_with<T>(self, refuse: T) -> CircuitLayer<C, T, N> {
        CircuitLayer {
            circuit: self.circuit,
            handling: self.handling.respond_with(refuse),
        }
    }

    /// Waits instead of rejecting: for endpoints of a balancer and for worker loops. Not for a server, where requests would
    /// accumulate in memory.
    pub fn gate(self) -> CircuitGateLayer<C> {
        CircuitGateLayer {
            circuit: self.circuit,
            classify: self.handling.classify,
        }
    }
}

impl<S, C: Clone, R: Clone, N> Layer<S> for CircuitLayer<C, R, N> {
    type Service = CircuitService<S, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitService::new(inner, self.circuit.clone(), self.handling.of_service())
    }
}

// === impl CircuitGateLayer ===

impl CircuitGateLayer {
    /// A gate that classifies any `Err` as a failure. Accepts `circuit` or `&circuit`.
    pub fn new(circuit: impl Into<Circuit>) -> Self {
        CircuitLayer::new(circuit).gate()
    }
}

impl<C> CircuitGateLayer<C> {
    /// What a failure is. Default: [`AnyErr`]; HTTP and gRPC clients need [`classify::Auto`].
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
