//! One `tracing` event for each transition, and none for anything else. Each test runs in a separate process, because
//! `tracing` caches whether a subscriber is interested in an event for all threads.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_circuit::{Circuit, Cooldown, State};
use tower_outcome::{Outcome, Settle};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::common::*;

#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    generations: Arc<Mutex<Vec<u64>>>,
    /// A circuit that is reset as soon as its opening is reported, as another thread might do in that moment.
    reset: Option<Circuit>,
}

#[derive(Default)]
struct Line {
    text: String,
    generation: Option<u64>,
}

// === impl Log ===

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_circuit") && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if let Some(circuit) = self
            .reset
            .as_ref()
            .filter(|_| line.text.contains("to=\"open\""))
        {
            circuit.reset();
        }
        self.lines.lock().unwrap().push(line.text);
        self.generations.lock().unwrap().extend(line.generation);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

// === impl Line ===

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text.push_str(&format!("{}={value:?} ", field.name()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        assert_eq!(field.name(), "generation");
        self.generation = Some(value);
    }
}

#[tokio::test(start_paused = true)]
async fn each_transition_is_one_event() {
    if !testkit::alone("events::each_transition_is_one_event") {
        return;
    }
    let log = Log::default();
    let _default = tracing::subscriber::set_default(log.clone());
    let circuit = trips_at(1).name("users").build();
    circuit.admit().unwrap().settle(Outcome::SUCCESS);
    cool_down(&circuit).await;
    circuit.admit().unwrap().settle(Outcome::SUCCESS);
    assert_eq!(
        *log.lines.lock().unwrap(),
        [
            r#"message=circuit opened name="users" from="closed" to="open" reason="consecutive-failures" "#,
            r#"message=circuit half-open name="users" from="open" to="half-open" "#,
            r#"message=circuit closed name="users" from="half-open" to="closed" "#,
        ]
    );
}

/// By the operator, by time, by outcomes, and by several threads at once.
#[test]
fn there_are_as_many_events_as_transitions() {
    if !testkit::alone("events::there_are_as_many_events_as_transitions") {
        return;
    }
    let log = Log::default();
    let circuit = trips_at(1)
        .cooldown(Cooldown::fixed(Duration::ZERO))
        .probe_deadline(Duration::from_micros(50))
        .build();
    let threads = 4;
    std::thread::scope(|scope| {
        for index in 0..threads {
            let (log, circuit) = (log.clone(), &circuit);
            scope.spawn(move || {
                let _default = tracing::subscriber::set_default(log);
                for turn in 0..1_000 {
                    match (turn + index) % 7 {
                        0 => circuit.force_open(),
                        1 => circuit.automatic(),
                        2 => circuit.reset(),
                        3 => drop(circuit.snapshot()),
                        outcome => {
                            let outcome = [Outcome::SUCCESS, Outcome::FAILURE, Outcome::THROTTLED]
                                [outcome - 4];
                            circuit
                                .admit()
                                .into_iter()
                                .for_each(|permit| permit.settle(outcome));
                        }
                    }
                }
            });
        }
    });
    let mut reported: Vec<_> = log.generations.lock().unwrap().clone();
    reported.sort_unstable();
    assert!(reported.len() > 1_000, "{}", reported.len());
    assert!(
        reported.iter().copied().eq(1..=reported.len() as u64),
        "each transition has a number, and is reported once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_during_a_change_sees_the_newer_state() {
    if !testkit::alone("events::a_subscriber_during_a_change_sees_the_newer_state") {
        return;
    }
    let circuit = trips_at(1).build();
    cool_down(&circuit).await;
    let _hanging = circuit.admit().unwrap();
    tokio::time::advance(10 * SECOND).await;
    let log = Log {
        reset: Some(circuit.clone()),
        ..Log::default()
    };
    let _default = tracing::subscriber::set_default(log);
    // `subscribe` finds that the probe is past its deadline, and before it returns the circuit is closed.
    let changes = circuit.subscribe();
    assert_eq!(
        (*changes.borrow(), circuit.state()),
        (State::Closed, State::Closed)
    );
}
