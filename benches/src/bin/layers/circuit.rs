//! A circuit: closed, with a window and failures in a row to count, as by default; open; and with many threads in it.

use std::time::Duration;

use tower_benches::drive::{self, Bare, BareWaits, Case, Contended, EitherWay};
use tower_circuit::{
    Circuit, CircuitLayer, CircuitService, Cooldown, KeyedCircuitLayer, KeyedCircuits, Ratio,
    State, Trip,
};
use tower_layer::Layer;
use tower_outcome::{Outcome, Settle};

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "circuit",
        job: JOB,
        bare: "bare",
        run: reject,
    },
    Case {
        name: "circuit-waits",
        job: JOB,
        bare: "bare-waits",
        run: waits,
    },
    Case {
        name: "circuit-slow",
        job: JOB,
        bare: "bare",
        run: slow,
    },
    Case {
        name: "circuit-respond",
        job: JOB,
        bare: "bare-http",
        run: respond,
    },
    Case {
        name: "circuit-gate",
        job: JOB,
        bare: "bare",
        run: gate,
    },
    Case {
        name: "circuit-key/1000",
        job: JOB,
        bare: "bare",
        run: keyed,
    },
    Case {
        name: "circuit-open",
        job: OPEN,
        bare: "bare",
        run: open,
    },
    Case {
        name: "circuit-open-respond",
        job: OPEN,
        bare: "bare-http",
        run: open_respond,
    },
];

pub(crate) const CONTENDED: &[Contended] = &[
    Contended {
        name: "circuit",
        run: |calls, threads| drive::contend(calls, threads, closed(Circuit::new())),
    },
    Contended {
        name: "circuit-open",
        run: |calls, threads| drive::contend(calls, threads, EitherWay(closed(opened()))),
    },
];

const JOB: &str = "circuit";
const OPEN: &str = "circuit, open";

fn closed(circuit: Circuit) -> CircuitService<Bare> {
    CircuitLayer::new(circuit).layer(Bare)
}

/// Opened by a failure, for longer than the benchmark.
fn opened() -> Circuit {
    let cooldown = Cooldown::fixed(Duration::from_secs(86_400));
    let circuit = Circuit::builder()
        .trip(Trip::consecutive(1))
        .cooldown(cooldown)
        .build();
    circuit
        .admit()
        .expect("a closed circuit")
        .settle(Outcome::FAILURE);
    assert!(matches!(circuit.state(), State::Open { .. }));
    circuit
}

fn reject(calls: u32) {
    drive::calls(calls, closed(Circuit::new()));
}

/// A call that is waited for, as all are in real life: the clock is read once more.
fn waits(calls: u32) {
    drive::waiting_calls(calls, CircuitLayer::new(Circuit::new()).layer(BareWaits));
}

fn slow(calls: u32) {
    let trip = Trip::default().or(Trip::slow_ratio(Duration::from_secs(1), Ratio::HALF));
    drive::calls(calls, closed(Circuit::builder().trip(trip).build()));
}

/// Judges by status and end of body, as a server wants it.
fn respond(calls: u32) {
    drive::http_calls(
        calls,
        CircuitLayer::new(Circuit::new()).respond().layer(HTTP),
        drive::plain,
    );
}

fn gate(calls: u32) {
    drive::calls(calls, CircuitLayer::new(Circuit::new()).gate().layer(Bare));
}

fn keyed(calls: u32) {
    let circuits = KeyedCircuits::<u32>::new(Circuit::builder());
    drive::calls(
        calls,
        KeyedCircuitLayer::new(circuits, |request: &u32| request % 1_000).layer(Bare),
    );
}

fn open(calls: u32) {
    drive::calls(calls, EitherWay(closed(opened())));
}

fn open_respond(calls: u32) {
    drive::http_calls(
        calls,
        CircuitLayer::new(opened()).respond().layer(HTTP),
        drive::plain,
    );
}
