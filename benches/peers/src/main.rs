//! The crates that do the same jobs as ours, driven by the same loop.
//!
//! Each stands in its leanest form and with limits that no call reaches. What is not a Tower service is called by the
//! least service that can carry it.
#![forbid(unsafe_code)]

mod balance;
mod circuit;
#[path = "../../src/drive.rs"]
mod drive;
mod limit;
#[cfg(feature = "pingora")]
mod pingora;

use std::process::ExitCode;

use axum::{body::Body, extract::ConnectInfo};

use crate::drive::{Bare, BareHttp, BareWaits, Case};

fn main() -> ExitCode {
    drive::main(
        &[
            BARE,
            circuit::CASES,
            limit::CASES,
            &balance::cases(),
            &pingora::cases(),
        ]
        .concat(),
        &[
            circuit::CONTENDED,
            limit::CONTENDED,
            balance::CONTENDED,
            pingora::CONTENDED,
        ]
        .concat(),
    )
}

#[cfg(not(feature = "pingora"))]
mod pingora {
    use crate::drive::{Case, Contended};

    pub(crate) const CONTENDED: &[Contended] = &[];

    pub(crate) fn cases() -> Vec<Case> {
        Vec::new()
    }
}

const BARE: &[Case] = &[
    Case {
        name: "peers-bare",
        job: "none",
        bare: "peers-bare",
        run: |calls| drive::calls(calls, Bare),
    },
    Case {
        name: "peers-bare-waits",
        job: "none",
        bare: "peers-bare-waits",
        run: |calls| drive::waiting_calls(calls, BareWaits),
    },
    Case {
        name: "peers-bare-axum",
        job: "none",
        bare: "peers-bare-axum",
        run: |calls| drive::http_calls(calls, AXUM, drive::plain),
    },
    Case {
        name: "peers-bare-axum-peer",
        job: "none",
        bare: "peers-bare-axum-peer",
        run: |calls| drive::http_calls(calls, AXUM, drive::from_clients(1, ConnectInfo)),
    },
];

/// The no-op service under tower_governor, whose answers are axum's.
const AXUM: BareHttp<Body> = BareHttp(Body::empty);
