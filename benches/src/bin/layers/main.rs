//! What a layer costs when it has nothing to do: a closed loop of admitted calls through it, for callgrind.
//!
//! `layers --list` names the cases, `layers CASE CALLS` runs one; `layers.py` counts and subtracts. `layers CASE CALLS
//! THREADS` runs one of those that `--contended` names; `contention.py` compares.
#![forbid(unsafe_code)]

mod balance;
mod bucket;
mod circuit;
mod drain;
mod lease;
mod outcome;

use std::process::ExitCode;

use bytes::Bytes;
use http_body_util::Full;
use tower_benches::drive::{self, Bare, BareHttp, BareWaits, Case, Contended};
use tower_outcome::PeerAddr;

fn main() -> ExitCode {
    drive::main(
        &[
            BARE,
            outcome::CASES,
            circuit::CASES,
            bucket::CASES,
            drain::CASES,
            lease::CASES,
            &balance::cases(),
        ]
        .concat(),
        &[BARE_CONTENDED, circuit::CONTENDED, bucket::CONTENDED].concat(),
    )
}

const BARE: &[Case] = &[
    Case {
        name: "bare",
        job: "none",
        bare: "bare",
        run: |calls| drive::calls(calls, Bare),
    },
    Case {
        name: "bare-waits",
        job: "none",
        bare: "bare-waits",
        run: |calls| drive::waiting_calls(calls, BareWaits),
    },
    Case {
        name: "bare-http",
        job: "none",
        bare: "bare-http",
        run: |calls| drive::http_calls(calls, HTTP, drive::plain),
    },
    Case {
        name: "bare-http-peer",
        job: "none",
        bare: "bare-http-peer",
        run: |calls| drive::http_calls(calls, HTTP, drive::from_clients(1, PeerAddr)),
    },
];

const BARE_CONTENDED: &[Contended] = &[Contended {
    name: "bare",
    run: |calls, threads| drive::contend(calls, threads, Bare),
}];

/// The no-op service under every HTTP layer.
const HTTP: BareHttp<Full<Bytes>> = BareHttp(|| Full::new(Bytes::from_static(b"ok")));
