use std::fmt::Display;

use http::{Method, Request, Response};

use super::{Grpc, Http, Refuse};
use crate::{Refusal, Refused, body::RespondBody, classify::is_grpc};

/// [`Grpc`] when the request is gRPC by its content type, otherwise [`Http`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Auto {
    http: Http,
}

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain HTTP.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

// === impl Auto ===

impl Auto {
    /// Responds to requests that are not gRPC in plain text.
    #[must_use]
    pub const fn new() -> Self {
        Self { http: Http::new() }
    }

    /// Responds to requests that are not gRPC with `http`, for example `Http::new().problem_json()`.
    #[must_use]
    pub const fn http(self, http: Http) -> Self {
        Self { http }
    }

    /// Creates the response, for code outside of a layer. `detail` is its text. The refusal is in its extensions.
    pub fn response<B>(
        &self,
        protocol: Protocol,
        refusal: &Refusal,
        detail: impl Display,
    ) -> Response<RespondBody<B>> {
        match protocol {
            Protocol::Http => self.http.response(refusal, detail),
            Protocol::Grpc => Grpc.response(refusal, detail),
        }
    }
}

impl<A, B, E> Refuse<Request<A>, Response<B>, E> for Auto {
    type Response = Response<RespondBody<B>>;
    type Error = E;
    type Context = Protocol;

    fn context(&self, request: &Request<A>) -> Protocol {
        Protocol::of(request)
    }

    fn refuse<X: Refused>(&self, protocol: Protocol, refused: X) -> Result<Self::Response, E> {
        Ok(self.response(protocol, refused.refusal(), &refused))
    }

    fn pass(result: Result<Response<B>, E>) -> Result<Self::Response, E> {
        result.map(|response| response.map(RespondBody::inner))
    }
}

// === impl Protocol ===

impl Protocol {
    /// Detects the protocol by method and content type. Only a `POST` can be gRPC.
    pub fn of<B>(request: &Request<B>) -> Self {
        if request.method() == Method::POST && is_grpc(request.headers()) {
            Self::Grpc
        } else {
            Self::Http
        }
    }
}
