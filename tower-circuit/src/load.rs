use tower::load::Load;

use crate::CircuitGate;

/// The load of the inner service. A gate that is open is not ready, so its load is not asked for.
///
/// Only the gate has one: what refuses at once looks idle, and a balancer would send it the traffic.
impl<S: Load, C> Load for CircuitGate<S, C> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.get_ref().load()
    }
}
