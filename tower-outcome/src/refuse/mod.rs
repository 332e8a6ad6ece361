//! How a refusal is told: as an error, or as an answer that keeps the inner error type as it was.
//!
//! A layer that refuses is generic over one of these, so "reject" and "respond" are types and not a `bool`:
//!
//! | | the caller gets | error type | for |
//! |---|---|---|---|
//! | [`Fail`] | `Err(refusal)`, boxed | [`BoxError`](crate::BoxError) | clients: something above decides |
//! | [`Http`] | 503, 429 …, with `Retry-After` | the inner service's | servers: axum's stays `Infallible` |
//! | [`Grpc`] | a trailers-only status, with a pushback hint | the inner service's | tonic servers |
//! | [`Auto`] | `Grpc` if the request is gRPC, else `Http` | the inner service's | servers of both |
//! | [`Custom`] | what your function makes of it | the inner service's | your own error pages |
//!
//! A response that tells a refusal has the [`Refusal`](crate::Refusal) in its extensions. So a layer further out can tell it
//! from an answer of the inner service: the presets of [`classify`](crate::classify) ignore it, and an application can make
//! error pages and metric labels of it.

mod auto;
mod custom;
mod fail;
mod grpc;
mod http;

pub use self::{
    auto::{Auto, Protocol},
    custom::Custom,
    fail::Fail,
    grpc::Grpc,
    http::Http,
};
use crate::Refused;

/// Turns a refusal into what the caller gets, and makes the inner service's answers fit beside it.
pub trait Refuse<Req, Res, E> {
    /// The response type with room for a refusal.
    type Response;

    /// The error type with room for a refusal.
    type Error;

    /// What must be remembered of a request to refuse it after it is gone. Usually nothing.
    type Seen: Copy + Send + Sync + 'static;

    /// Looks at a request that may be refused later.
    fn see(&self, request: &Req) -> Self::Seen;

    /// Refuses.
    ///
    /// # Errors
    ///
    /// The refusal itself, where it is told as an error.
    fn refuse<X: Refused>(
        &self,
        seen: Self::Seen,
        refused: X,
    ) -> Result<Self::Response, Self::Error>;

    /// Passes an answer of the inner service on.
    ///
    /// # Errors
    ///
    /// The inner service's.
    fn pass(result: Result<Res, E>) -> Result<Self::Response, Self::Error>;
}
