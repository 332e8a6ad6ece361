//! Request outcomes and rejections: classification, `Retry-After`, HTTP and gRPC status. The types that the resilience crates
//! have in common.
//!
//! A retry policy that does not repeat requests which a local layer rejected:
//!
//! ```
//! use tower_outcome::{BoxError, Refusal};
//!
//! fn may_retry(error: &BoxError) -> bool {
//!     Refusal::find(&**error).is_none()
//! }
//! # assert!(may_retry(&"reset".into()));
//! ```
//!
//! Applications rarely need this crate by name, because the layers re-export what their settings need. It is for authors of
//! layers, retry policies and classifications.
//!
//! - [`Verdict`] and [`Outcome`]: how a request counts. [`classify`]: how that is decided, at the head of the response and at
//!   the end of its body.
//! - [`Settle`]: a guard that records an outcome; a guard that is dropped without one was cancelled.
//! - [`Refusal`]: why a request was rejected, found in any error chain. [`refuse`]: rejections as errors, as HTTP or as gRPC
//!   responses.
//! - [`EjectionBudget`]: how many endpoints of a set may be out of service at once.
//! - [`readiness`]: whether this process should receive new requests, for probes and health services.
//! - [`RespondLayer`]: turns the errors of a service into responses, with `Infallible` as the error type.
//! - [`Unsent`]: a request that was never written, returned so that it can be sent to another endpoint.
//!
//! Costs: no task, no lock, and no allocation except in the response of a rejection.
//!
//! # Writing a layer
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
//! let response = judge.attach::<_, std::convert::Infallible>(Ok(response));
//! drop(response);
//! assert_eq!(failures, 1);
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
