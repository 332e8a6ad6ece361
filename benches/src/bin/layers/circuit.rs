//! A closed circuit.

use tower_benches::drive::{self, Bare, Case};
use tower_circuit::{Circuit, CircuitLayer};
use tower_layer::Layer;

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case { name: "circuit", job: JOB, bare: "bare", run: reject },
    Case { name: "circuit-respond", job: JOB, bare: "bare-http", run: respond },
    Case { name: "circuit-gate", job: JOB, bare: "bare", run: gate },
];

const JOB: &str = "circuit";

fn reject(calls: u32) {
    drive::calls(calls, CircuitLayer::new(Circuit::new()).layer(Bare));
}

/// Judges by status and end of body, as a server wants it.
fn respond(calls: u32) {
    drive::http_calls(calls, CircuitLayer::new(Circuit::new()).respond().layer(HTTP), drive::plain);
}

fn gate(calls: u32) {
    drive::calls(calls, CircuitLayer::new(Circuit::new()).gate().layer(Bare));
}
