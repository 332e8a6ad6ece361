//! What became of a request, and how a refusal is told: the vocabulary that the resilience crates share.
//!
//! You rarely need this crate by itself: the layers re-use its types in their own builders. It is for those who write
//! a layer of their own, a retry policy, or a classification.
//!
//! - [`Verdict`] and [`Outcome`]: how a request counts. [`classify`]: who says so, at the end of the body rather than at
//!   the status line.
//! - [`Settle`]: the guard that wants to know, and that is cancelled when it is dropped.
//! - [`Refusal`]: why a request was refused, found in any error chain. [`refuse`]: how that is told, as an error, as HTTP
//!   or as gRPC.
//! - [`readiness`]: whether this process should be sent new requests, for probes and health services.
//! - [`RespondLayer`]: any error of a service as a response, with `Infallible` as the error type.
//! - [`Unsent`]: a request that was never written, handed back so that it can go elsewhere.
//!
//! It costs nothing of its own: no task, no lock, no allocation but those of an answer that refuses.
//!
//! # Example
//!
//! A guard that counts failures, driven by hand as a layer would do it:
//!
//! ```
//! use http::{Request, Response};
//! use tower_outcome::{Outcome, Settle, Verdict, classify::{Classify, Http, Judge}};
//!
//! struct Count<'a>(&'a mut u32);
//!
//! impl Settle for Count<'_> {
//!     fn settle(self, outcome: Outcome) {
//!         *self.0 += u32::from(outcome.verdict() == Verdict::Failure);
//!     }
//! }
//!
//! let mut failures = 0;
//! let request = Request::new(());
//! let judge = Judge::new(Http::new().classify(&request), Count(&mut failures));
//! let response = Response::builder().status(500).body(String::new()).unwrap();
//! let answer = judge.answer::<_, std::convert::Infallible>(Ok(response));
//! drop(answer);
//! assert_eq!(failures, 1);
//! ```
//!
//! A retry policy that leaves local refusals alone:
//!
//! ```
//! use tower_outcome::{BoxError, Refusal};
//!
//! fn may_retry(error: &BoxError) -> bool {
//!     Refusal::find(&**error).is_none()
//! }
//! # assert!(may_retry(&"reset".into()));
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod body;
pub mod classify;
mod ejection;
pub mod header;
mod peer;
pub mod readiness;
mod refusal;
pub mod refuse;
mod respond;
mod verdict;

pub use self::{
    ejection::{Ejected, EjectionBudget},
    peer::PeerAddr,
    refusal::{BoxError, Class, Refusal, Refused, Unsent},
    respond::{RespondFuture, RespondLayer, RespondService},
    verdict::{Outcome, Settle, Verdict},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
