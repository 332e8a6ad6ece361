//! A drain that has not begun.

use tower_benches::drive::{self, Case};
use tower_drain::{Drain, DrainLayer};
use tower_layer::Layer;

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[Case {
    name: "drain",
    job: "drain",
    bare: "bare-http",
    run: drain,
}];

fn drain(calls: u32) {
    drive::http_calls(
        calls,
        DrainLayer::new(&Drain::new()).layer(HTTP),
        drive::plain,
    );
}
