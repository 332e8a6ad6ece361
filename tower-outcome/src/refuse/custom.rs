use std::fmt;

use bytes::Bytes;
use http::{Request, Response};

use super::{Protocol, Refuse};
use crate::{Refusal, Refused, body::RespondBody};

/// Responds with a function.
///
/// ```
/// use http::Response;
/// use tower_outcome::refuse::Custom;
///
/// let page = Custom::new(|refusal, _protocol| {
///     let mut response = Response::new(format!("<h1>Back soon</h1><!-- {} -->", refusal.code()).into());
///     *response.status_mut() = refusal.class().status();
///     response
/// });
/// # let _ = page;
/// ```
#[derive(Clone, Copy)]
pub struct Custom<F>(F);

// === impl Custom ===

impl<F> Custom<F>
where
    F: Fn(&Refusal, Protocol) -> Response<Bytes>,
{
    /// `respond` creates the response from a refusal and the protocol of the request.
    pub const fn new(respond: F) -> Self {
        Self(respond)
    }
}

impl<F, A, B, E> Refuse<Request<A>, Response<B>, E> for Custom<F>
where
    F: Fn(&Refusal, Protocol) -> Response<Bytes>,
{
    type Response = Response<RespondBody<B>>;
    type Error = E;
    type Context = Protocol;

    fn context(&self, request: &Request<A>) -> Protocol {
        Protocol::of(request)
    }

    fn refuse<X: Refused>(&self, protocol: Protocol, refused: X) -> Result<Self::Response, E> {
        let refusal = *refused.refusal();
        let mut response = (self.0)(&refusal, protocol).map(RespondBody::refusal);
        response.extensions_mut().insert(refusal);
        Ok(response)
    }

    fn pass(result: Result<Response<B>, E>) -> Result<Self::Response, E> {
        result.map(|response| response.map(RespondBody::inner))
    }
}

impl<F> fmt::Debug for Custom<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").finish_non_exhaustive()
    }
}
