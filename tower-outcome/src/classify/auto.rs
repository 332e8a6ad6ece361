use http::{Method, Request, Response};

use super::{
    AtEnd, Classify, ClassifyEnd, ClassifyResponse, Grpc, Http, HttpClassifier, broken, is_grpc,
    refused,
};
use crate::{Outcome, Refusal, body::End};

/// [`Grpc`] when both the request and the response are gRPC by their content type, otherwise [`Http`].
///
/// Both must say so: a client that calls its request gRPC would otherwise make a failure of each answer that is not, and
/// a gRPC server always answers in its own words. What a proxy says in `text/html` is read by its status. Costs a look at
/// the content type of `POST` requests; no other method can be gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Auto {
    http: Http,
}

/// One request's classifier of [`Auto`].
#[derive(Clone, Copy, Debug)]
pub struct AutoClassifier(Protocol);

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http(HttpClassifier),
    /// As far as the request goes.
    Grpc(HttpClassifier),
}

// === impl Auto ===

impl Auto {
    /// `Http::new()` for what is not gRPC.
    #[must_use]
    pub const fn new() -> Self {
        Self { http: Http::new() }
    }

    /// Another reading of HTTP status codes.
    #[must_use]
    pub const fn http(self, http: Http) -> Self {
        Self { http }
    }
}

impl<B> Classify<Request<B>> for Auto {
    type Classifier = AutoClassifier;

    fn classify(&self, request: &Request<B>) -> AutoClassifier {
        AutoClassifier(
            if request.method() == Method::POST && is_grpc(request.headers()) {
                Protocol::Grpc(self.http.classifier(request.method()))
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
            Protocol::Grpc(_) if is_grpc(response.headers()) => {
                Grpc::at_head(response.status(), response.headers())
            }
            // Without a status at its end there is nothing to wait for.
            Protocol::Grpc(http) => http
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
            Protocol::Grpc(_) => Grpc.end(end),
        }
    }
}
