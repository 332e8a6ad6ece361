use std::{sync::OnceLock, time::Duration};

use tower_outcome::EjectionBudget;

use crate::{
    Circuit, Cooldown, Trip,
    breaker::{BreakerSettings, ProbeSettings},
    fast_path::{Core, thread::MAX_SHARDS},
    shared::Shared,
};

/// The settings of a [`Circuit`]. Made by [`Circuit::builder`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct CircuitBuilder {
    name: Option<String>,
    breaker: BreakerSettings,
    window: Duration,
    /// `None`: the default, which depends on the layer.
    abandoned_age: Option<Option<Duration>>,
}

// === impl Circuit ===

impl Circuit {
    /// A closed circuit with the defaults: opens after 5 consecutive failures, or when half of at least 20 calls within 10 s
    /// failed, for 10 s (or what the server asks for, up to 60 s); then allows one probe of at most 10 s at a time, and
    /// stays open about twice as long after each that fails.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A circuit with other settings.
    pub fn builder() -> CircuitBuilder {
        CircuitBuilder::default()
    }
}

impl Default for Circuit {
    fn default() -> Self {
        Self::new()
    }
}

// === impl CircuitBuilder ===

impl CircuitBuilder {
    /// Its name in `tracing` events. Default: no name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When it opens. Default: 5 consecutive failures, or half of the window's calls, see [`Trip`].
    ///
    /// Replaces all conditions. To change one of the defaults and keep the other, write
    /// `Trip::default().or(Trip::consecutive(50))`.
    pub fn trip(mut self, trip: Trip) -> Self {
        self.breaker.trip = trip;
        self
    }

    /// The time over which ratios are computed. Default: 10 s, which soon forgets a deployment, and holds enough calls to
    /// judge by.
    ///
    /// It is counted exactly, in slices of a tenth: the current slice and the nine before it, so at any moment between nine
    /// tenths of the window and all of it. Less than 10 ms is the same as 10 ms, more than an hour the same as an hour.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The number of calls in the window below which no ratio is judged. Default: 20, so that one failure after an idle night
    /// is not all of the calls. Zero is the same as 1.
    pub fn min_calls(mut self, calls: u32) -> Self {
        self.breaker.min_calls = calls;
        self
    }

    /// How long it stays open. Default: 10 s, growing to 60 s, see [`Cooldown`].
    pub fn cooldown(mut self, cooldown: Cooldown) -> Self {
        self.breaker.cooldown = cooldown;
        self
    }

    /// How many probes a half-open circuit allows at a time. Default: 1, which is enough to learn that the upstream is still
    /// down. Zero is the same as 1, because without a probe the circuit would never close.
    pub fn max_concurrent_probes(mut self, probes: u32) -> Self {
        self.breaker.probes.max_concurrent = probes.max(1);
        self
    }

    /// How many probes must succeed before the circuit closes; one that fails opens it again. Default: 1. Zero is the same
    /// as 1.
    pub fn successes_to_close(mut self, successes: u32) -> Self {
        self.breaker.probes.successes = successes.max(1);
        self
    }

    /// The time after which a probe without a response has failed, and the circuit opens again; the call itself goes on. A
    /// probe whose good response head has arrived, and whose body is not complete, has succeeded by then, because a stream
    /// may last. A ready gate that is not called loses its reservation after the same time. Default: 10 s, as the cooldown.
    ///
    /// Choose it longer than a good response takes. Zero fails every probe, so that the circuit closes only by
    /// [`reset`](Circuit::reset) or [`force_closed`](Circuit::force_closed).
    pub fn probe_deadline(mut self, deadline: Duration) -> Self {
        self.breaker.probes.deadline = deadline;
        self
    }

    /// The age from which a call that its caller abandons (because of a timeout further out, for example) before there is a
    /// response is a failure. A younger one has no effect, because callers may go away at any time. Default: the
    /// slow-call limit if there is one, else 1 s; **never in front of a server's own service**
    /// ([`respond`](crate::CircuitLayer::respond)), whose clients must not be able to open the circuit by disconnecting. A value set here is used for every kind of layer. `None`: never a failure,
    /// and abandoned probes do not end the half-open state, however many there are.
    ///
    /// Once a good response head has arrived, the call is a success, whenever and why ever its reader drops the body: readers
    /// of streams leave. A body that stalls is noticed if a timeout further in turns that into an error.
    ///
    /// Choose it a little shorter than the timeouts outside of the circuit, or hanging calls go unnoticed: the age is
    /// measured from when the call was first pending. In a proxy, where callers are clients too, set `None` and put a timeout
    /// inside of the circuit.
    pub fn abandoned_is_failure_after(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.abandoned_age = Some(age.into());
        self
    }

    /// A budget that the circuit asks before it opens because of responses, or of the lack of them. Its share is given back
    /// when it closes or is dropped. Default: none, it opens whenever a condition is met.
    ///
    /// For the endpoints of a balancer, which makes one budget for each set: without it, one request that every endpoint
    /// answers with `500`, sent a few times by one client, opens all circuits and fails all other clients. While the budget
    /// is exhausted the circuit stays closed, goes on counting, asks again at the next failure, and reports it once: by a
    /// `warn` event, and in [`Snapshot::kept_closed`](crate::Snapshot::kept_closed). [`force_open`](Circuit::force_open) does
    /// not ask.
    pub fn ejection_budget(mut self, budget: &EjectionBudget) -> Self {
        self.breaker.budget = Some(budget.clone());
        self
    }

    /// Makes the circuit: closed, and automatic.
    pub fn build(self) -> Circuit {
        self.build_sharded(MAX_SHARDS)
    }

    pub(crate) fn build_sharded(self, shards: usize) -> Circuit {
        let slow_limit = self.breaker.trip.slow_limit();
        let age = Some(slow_limit.unwrap_or(ABANDONED_AGE));
        Circuit::from_shared(Shared {
            core: Core::new(self.breaker, self.window, shards),
            name: self.name,
            window: self.window,
            slow_limit,
            abandoned_age: self.abandoned_age.unwrap_or(age),
            abandoned_age_of_clients: self.abandoned_age.flatten(),
            changes: OnceLock::new(),
        })
    }
}

impl Default for CircuitBuilder {
    fn default() -> Self {
        Self {
            name: None,
            breaker: BreakerSettings {
                trip: Trip::default(),
                min_calls: MIN_CALLS,
                cooldown: Cooldown::default(),
                probes: ProbeSettings {
                    max_concurrent: 1,
                    successes: 1,
                    deadline: PROBE_DEADLINE,
                },
                budget: None,
            },
            window: WINDOW,
            abandoned_age: None,
        }
    }
}

const WINDOW: Duration = Duration::from_secs(10);
const MIN_CALLS: u32 = 20;
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
const ABANDONED_AGE: Duration = Duration::from_secs(1);
