use std::fmt::Display;

use http::{Method, Request, Response};

use super::{Grpc, Http, Refuse};
use crate::{Refusal, Refused, body::RespondBody, classify::is_grpc};

/// [`Grpc`] when the request is gRPC by its content type, otherwise [`Http`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Auto {
    http: Http,
}

/// Which protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain HTTP.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

// === impl Auto ===

impl Auto {
    /// Plain text for what is not gRPC.
    #[must_use]
    pub const fn new() -> Self {
        Self { http: Http::new() }
    }

    /// Another way to tell what is not gRPC, such as `Http::new().problem_json()`.
    #[must_use]
    pub const fn http(self, http: Http) -> Self {
        Self { http }
    }

    /// The answer itself, for those who have no layer to give it. `detail` is for the reader: the error's own words.
    /// The refusal is in its extensions.
    pub fn answer<B>(
        &self,
        seen: Protocol,
        refusal: &Refusal,
        detail: impl Display,
    ) -> Response<RespondBody<B>> {
        match seen {
            Protocol::Http => self.http.answer(refusal, detail),
            Protocol::Grpc => Grpc.answer(refusal, detail),
        }
    }
}

impl<A, B, E> Refuse<Request<A>, Response<B>, E> for Auto {
    type Response = Response<RespondBody<B>>;
    type Error = E;
    type Seen = Protocol;

    fn see(&self, request: &Request<A>) -> Protocol {
        Protocol::of(request)
    }

    fn refuse<X: Refused>(&self, seen: Protocol, refused: X) -> Result<Self::Response, E> {
        Ok(self.answer(seen, refused.refusal(), &refused))
    }

    fn pass(result: Result<Response<B>, E>) -> Result<Self::Response, E> {
        result.map(|response| response.map(RespondBody::inner))
    }
}

// === impl Protocol ===

impl Protocol {
    /// Tells by the content type. Only a `POST` can be gRPC.
    pub fn of<B>(request: &Request<B>) -> Self {
        if request.method() == Method::POST && is_grpc(request.headers()) {
            Self::Grpc
        } else {
            Self::Http
        }
    }
}
