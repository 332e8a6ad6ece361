use tower::load::Load;

use crate::CircuitGate;

/// The load of the inner service. A gate that is open is not ready, so its load is not used.
///
/// Only the gate implements this: a service that rejects at once looks idle, and a balancer would prefer it.
impl<S: Load, C> Load for CircuitGate<S, C> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.get_ref().load()
    }
}
