use http::{Method, Request, Response};

use super::{
    AtEnd, Classify, ClassifyEnd, ClassifyResponse, Grpc, Http, HttpClassifier, broken, is_grpc,
    refused,
};
use crate::{Outcome, Refusal, body::End};

/// [`Grpc`] when both the request and the response are gRPC by their content type, otherwise [`Http`].
///
/// Both are required: otherwise a client could turn every plain response into a failure by labelling its request as gRPC.
/// A gRPC server always responds with a gRPC content type; the `text/html` of a proxy in front of it is classified by its
/// HTTP status. Costs a comparison of the content type for `POST` requests; other methods cannot be gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Auto {
    http: Http,
    grpc: Grpc,
}

/// The classifier of one request, created by [`Auto`].
#[derive(Clone, Copy, Debug)]
pub struct AutoClassifier(Protocol);

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http(HttpClassifier),
    /// The request is gRPC; the response decides.
    Grpc(HttpClassifier, Grpc),
}

// === impl Auto ===

impl Auto {
    /// [`Http::new`] and [`Grpc::new`]: for clients.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            http: Http::new(),
            grpc: Grpc::new(),
        }
    }

    /// [`Http::new`] and [`Grpc::server`]: for servers, where no client may cause a failure. Layers use it with `respond()`.
    #[must_use]
    pub const fn server() -> Self {
        Self {
            http: Http::new(),
            grpc: Grpc::server(),
        }
    }

    /// Classifies requests that are not gRPC with `http`.
    #[must_use]
    pub const fn http(self, http: Http) -> Self {
        Self { http, ..self }
    }

    /// Classifies gRPC with `grpc`.
    #[must_use]
    pub const fn grpc(self, grpc: Grpc) -> Self {
        Self { grpc, ..self }
    }
}

impl<B> Classify<Request<B>> for Auto {
    type Classifier = AutoClassifier;

    fn classify(&self, request: &Request<B>) -> AutoClassifier {
        AutoClassifier(
            if request.method() == Method::POST && is_grpc(request.headers()) {
                Protocol::Grpc(self.http.classifier(request.method()), self.grpc)
            } else {
                Protocol::Http(self.http.classifier(request.method()))
            },
        )
    }
}

// === impl AutoClassifier ===

impl<B, E: 'static> ClassifyResponse<Response<B>, E> for AutoClassifier {
    type Scope = AtEnd;

    fn head(&self, response: &Response<B>) -> Option<Outcome> {
        if let Some(outcome) = refused(response.extensions()) {
            return Some(outcome);
        }
        match &self.0 {
            Protocol::Http(http) => http.at_head(response.status(), response.headers()),
            Protocol::Grpc(_, grpc) if is_grpc(response.headers()) => {
                grpc.at_head(response.status(), response.headers())
            }
            // No gRPC status will come at the end, so the head decides.
            Protocol::Grpc(http, _) => http
                .at_head(response.status(), response.headers())
                .or(Some(Outcome::SUCCESS)),
        }
    }

    fn error(&self, error: &E) -> Outcome {
        broken(Refusal::of(error))
    }
}

impl ClassifyEnd for AutoClassifier {
    fn end(self, end: End<'_>) -> Outcome {
        match self.0 {
            Protocol::Http(http) => http.end(end),
            Protocol::Grpc(_, grpc) => grpc.end(end),
        }
    }
}
