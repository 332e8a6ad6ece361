use tower::load::Load;

use crate::{Clock, LeaseGate};

/// The load of the inner service. A gate that is closed is not ready, so its load is not asked for.
///
/// Only the gate has one: what refuses at once looks idle, and a balancer would send it the traffic.
impl<S: Load, C: Clock, P> Load for LeaseGate<S, C, P> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.get_ref().load()
    }
}
