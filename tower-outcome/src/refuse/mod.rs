//! How a layer rejects: with an error, or with a response that leaves the inner service's error type unchanged.
//!
//! A layer that rejects is generic over one of these types:
//!
//! | | the caller gets | error type | for |
//! |---|---|---|---|
//! | [`Fail`] | `Err(refusal)`, boxed | [`BoxError`](crate::BoxError) | clients: the caller decides |
//! | [`Http`] | 503, 429 …, with `Retry-After` | the inner service's | servers: axum's stays `Infallible` |
//! | [`Grpc`] | a trailers-only status, with a retry hint | the inner service's | tonic servers |
//! | [`Auto`] | `Grpc` if the request is gRPC, else `Http` | the inner service's | servers of both |
//! | [`Custom`] | the response of a function | the inner service's | custom error pages |
//!
//! The response of a rejection has the [`Refusal`](crate::Refusal) in its extensions, so that an outer layer can distinguish it
//! from a response of the inner service: the presets of [`classify`](crate::classify) ignore it, and an application can
//! use it for error pages and metric labels.

mod auto;
mod custom;
mod fail;
mod grpc;
mod http;
#[cfg(feature = "tonic")]
mod tonic;

#[cfg(feature = "tonic")]
pub use self::tonic::status;
pub use self::{
    auto::{Auto, Protocol},
    custom::Custom,
    fail::Fail,
    grpc::Grpc,
    http::Http,
};
use crate::Refused;

/// Turns a refusal into the result of a call, and converts results of the inner service to the same type.
pub trait Refuse<Req, Res, E> {
    /// The response type of the layer.
    type Response;

    /// The error type of the layer.
    type Error;

    /// What is needed of a request to reject it after it was passed on, such as its [`Protocol`]. Usually nothing.
    type Context: Copy + Send + Sync + 'static;

    /// Creates the context of a request that may be rejected later.
    fn context(&self, request: &Req) -> Self::Context;

    /// Rejects a request.
    ///
    /// # Errors
    ///
    /// The refusal, if this type rejects with errors.
    fn refuse<X: Refused>(
        &self,
        context: Self::Context,
        refused: X,
    ) -> Result<Self::Response, Self::Error>;

    /// Converts a result of the inner service.
    ///
    /// # Errors
    ///
    /// The error of the inner service.
    fn pass(result: Result<Res, E>) -> Result<Self::Response, Self::Error>;
}
