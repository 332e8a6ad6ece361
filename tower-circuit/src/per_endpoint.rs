use tower_outcome::classify::AnyErr;

use crate::{Circuit, CircuitBuilder, CircuitGate};

/// Makes a gate with a circuit for each endpoint of a set. Made by [`CircuitBuilder::per_endpoint`].
///
/// A layer creates no state, so one layer is one circuit wherever it is applied. For the endpoints of a balancer, each needs
/// its own:
///
/// ```
/// # use tower::service_fn;
/// # let connect = |_: &str| service_fn(async |_: ()| Ok::<_, std::io::Error>(()));
/// use tower_circuit::Circuit;
///
/// let circuits = Circuit::builder().per_endpoint();
/// let endpoints = ["10.0.0.1:80", "10.0.0.2:80"].map(|name| circuits.gate(name, connect(name)));
/// endpoints[0].circuit().force_open();
/// assert!(endpoints[1].circuit().admit().is_ok());
/// ```
///
/// The circuit of an endpoint lives as long as its gate and all handles of the circuit.
#[derive(Clone, Debug)]
pub struct PerEndpoint<C = AnyErr> {
    template: CircuitBuilder,
    classify: C,
}

// === impl CircuitBuilder ===

impl CircuitBuilder {
    /// Makes circuits with these settings, one for each endpoint of a balancer.
    pub fn per_endpoint(self) -> PerEndpoint {
        PerEndpoint {
            template: self,
            classify: AnyErr,
        }
    }
}

// === impl PerEndpoint ===

impl<C> PerEndpoint<C> {
    /// What a failure is. Default: [`AnyErr`]; HTTP and gRPC clients need [`classify::Auto`](crate::classify::Auto).
    pub fn classify<K>(self, classify: K) -> PerEndpoint<K> {
        PerEndpoint {
            template: self.template,
            classify,
        }
    }

    /// A new circuit, for use without a gate.
    pub fn circuit(&self, name: impl Into<String>) -> Circuit {
        self.template.clone().name(name).build()
    }
}

impl<C: Clone> PerEndpoint<C> {
    /// Adds a gate with a new circuit in front of an endpoint.
    pub fn gate<S>(&self, name: impl Into<String>, endpoint: S) -> CircuitGate<S, C> {
        CircuitGate::new(endpoint, self.circuit(name), self.classify.clone())
    }
}
