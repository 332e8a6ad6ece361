use tower_layer::Layer;
use tower_outcome::classify::AnyErr;

use crate::{Circuit, CircuitBuilder, CircuitGate, CircuitGateLayer};

/// Makes a circuit of its own for each endpoint of a set, as a gate. Made by [`CircuitBuilder::per_endpoint`].
///
/// A layer makes no state, so that one layer is one circuit wherever it is applied. An endpoint in a balancer is the one
/// place where that is not what is wanted; this is for there, and says so:
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
/// The circuit of an endpoint lives as long as its gate, or as somebody who has taken a handle of it.
#[derive(Clone, Debug)]
pub struct PerEndpoint<C = AnyErr> {
    template: CircuitBuilder,
    classify: C,
}

// === impl PerEndpoint ===

impl PerEndpoint {
    pub(crate) fn new(template: CircuitBuilder) -> Self {
        Self {
            template,
            classify: AnyErr,
        }
    }
}

impl<C> PerEndpoint<C> {
    /// What counts as a failure. Default: [`AnyErr`]; HTTP and gRPC users want [`classify::Auto`](crate::classify::Auto).
    pub fn classify<K>(self, classify: K) -> PerEndpoint<K> {
        PerEndpoint {
            template: self.template,
            classify,
        }
    }

    /// A new circuit, for those who put it in front of an endpoint themselves.
    #[must_use]
    pub fn circuit(&self, name: impl Into<String>) -> Circuit {
        self.template.clone().name(name).build()
    }
}

impl<C: Clone> PerEndpoint<C> {
    /// Puts a gate with a new circuit in front of an endpoint.
    pub fn gate<S>(&self, name: impl Into<String>, endpoint: S) -> CircuitGate<S, C> {
        CircuitGateLayer::new(self.circuit(name))
            .classify(self.classify.clone())
            .layer(endpoint)
    }
}
