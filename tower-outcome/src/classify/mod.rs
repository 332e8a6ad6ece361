//! Classification of request outcomes, in two steps: at the head of the response and at the end of its body.
//!
//! The status line alone does not decide: a gRPC call fails in its trailers, a download breaks off halfway. So a classifier is
//! called at the head and at the end, and the layer's guard stays in the body in between.
//!
//! ```text
//!   request ── classify() ──► classifier ── head() ──► Some(outcome): known now, the body carries no guard
//!                                  │           └─────► None: head_received(), guard in the body ── end() ──► outcome
//!                                  └── error() ──► outcome                  body dropped before its end: cancelled
//! ```
//!
//! | preset | failure | throttled | wraps the body |
//! |---|---|---|---|
//! | [`AnyErr`] | any `Err` | | no: it works for any response type |
//! | [`Http`] | any `Err`, 5xx but 501, 505 and 511, a body that breaks off | 429 | yes |
//! | [`Grpc`] | any `Err`, codes 2, 4, 13, 14, 15, a missing status, a body that breaks off | 8 | yes |
//! | [`Grpc::server`] | as `Grpc` but for 4 and 13, which any client can cause | 8 | yes |
//! | [`Auto`], [`Auto::server`] | as `Grpc` if request and response are gRPC, else as `Http` | | yes |
//!
//! All presets classify a local rejection ([`Refusal`]) as [`Verdict::Ignore`](crate::Verdict), whether it is an error or, except
//! for [`AnyErr`], a response with the refusal in its extensions. For a custom classification use [`from_fn`], or
//! [`Http::status`] for HTTP status codes.

mod any;
mod auto;
mod grpc;
mod http;

use ::http::{Extensions, Response, header::CONTENT_LENGTH};
use http_body::Body;

pub use self::{
    any::{AnyErr, FromFn, from_fn},
    auto::{Auto, AutoClassifier},
    grpc::{Grpc, is_grpc},
    http::{Http, HttpClassifier},
};
use crate::{
    Outcome, Refusal, Settle,
    body::{End, GuardedBody, OnEnd},
};

/// Creates a classifier for each request.
pub trait Classify<Req> {
    /// The classifier of one request; it keeps what it needs of the request.
    type Classifier: ClassifyEnd;

    /// Creates the classifier before the request is sent.
    fn classify(&self, request: &Req) -> Self::Classifier;
}

/// The first step: classifies the head of a response, or the error in its place.
pub trait ClassifyResponse<Res, E>: ClassifyEnd {
    /// When the outcome is known: [`AtHead`] keeps the response type, [`AtEnd`] wraps the HTTP body.
    type Scope;

    /// Classifies the head. `None` if it is not a failure and the outcome depends on the end of the body; then
    /// [`head_received`](crate::Settle::head_received) of the guard is called.
    fn head(&self, response: &Res) -> Option<Outcome>;

    /// Classifies an error.
    fn error(&self, error: &E) -> Outcome;
}

/// The second step: classifies the end of the body.
pub trait ClassifyEnd {
    /// Classifies the end. Not called for a body that is dropped before its end: that is a cancellation, and the guard is
    /// dropped.
    fn end(self, end: End<'_>) -> Outcome;
}

/// The outcome is known at the head. The response type does not change.
#[derive(Clone, Copy, Debug)]
pub enum AtHead {}

/// The outcome is known at the end of an HTTP body, which is wrapped in a [`GuardedBody`]. Except for gRPC, the
/// `Content-Length` of the head marks the end too.
#[derive(Clone, Copy, Debug)]
pub enum AtEnd {}

/// How a guard is attached to a response: [`AtHead`] or [`AtEnd`].
pub trait Scope<Res, G>: sealed::Sealed {
    /// The response with the guard attached.
    type Response;

    /// Attaches the guard, whose [`OnEnd::on_end`] will be called at the end.
    fn attach(response: Res, guard: G) -> Self::Response;

    /// Returns the same type without a guard.
    fn detached(response: Res) -> Self::Response;
}

/// A layer's guard and the classifier that decides its outcome.
#[derive(Debug)]
pub struct Judge<C, G> {
    classifier: C,
    guard: G,
}

/// The response type of [`Judge::attach`].
pub type Judged<C, G, Res, E> =
    <<C as ClassifyResponse<Res, E>>::Scope as Scope<Res, Judge<C, G>>>::Response;

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::AtHead {}
    impl Sealed for super::AtEnd {}
}

// === impl Scope ===

impl<Res, G: OnEnd> Scope<Res, G> for AtHead {
    type Response = Res;

    fn attach(response: Res, guard: G) -> Res {
        guard.on_end(End::Complete(None));
        response
    }

    fn detached(response: Res) -> Res {
        response
    }
}

impl<B: Body, G: OnEnd> Scope<Response<B>, G> for AtEnd {
    type Response = Response<GuardedBody<B, G>>;

    fn attach(response: Response<B>, guard: G) -> Self::Response {
        let length = announced_length(&response);
        response.map(|body| GuardedBody::of_length(body, guard, length))
    }

    fn detached(response: Response<B>) -> Self::Response {
        response.map(GuardedBody::settled)
    }
}

/// The length of the body according to its size hint or the head. A server sends that many bytes and drops the body without
/// polling it again, so bytes are counted even if `is_end_stream` does not report the end, as in a wrapper with the default of
/// that method. A gRPC call always ends with its trailers.
fn announced_length<B: Body>(response: &Response<B>) -> Option<u64> {
    if is_grpc(response.headers()) {
        return None;
    }
    let by_head = || {
        let length = response.headers().get(CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    };
    response.body().size_hint().exact().or_else(by_head)
}

// === impl Judge ===

impl<C, G: Settle> Judge<C, G> {
    /// Combines the classifier of a request with its guard.
    pub fn new(classifier: C, guard: G) -> Self {
        Self { classifier, guard }
    }

    /// Classifies the result of the call and settles the guard, or attaches it to the response until the end of its body.
    ///
    /// # Errors
    ///
    /// Returns the error of the call, after it was classified.
    pub fn attach<Res, E>(mut self, result: Result<Res, E>) -> Result<Judged<C, G, Res, E>, E>
    where
        C: ClassifyResponse<Res, E>,
        C::Scope: Scope<Res, Self>,
    {
        match result {
            Ok(response) => Ok(match self.classifier.head(&response) {
                Some(outcome) => {
                    self.guard.settle(outcome);
                    C::Scope::detached(response)
                }
                None => {
                    self.guard.head_received();
                    C::Scope::attach(response, self)
                }
            }),
            Err(error) => {
                self.guard.settle(self.classifier.error(&error));
                Err(error)
            }
        }
    }
}

impl<C: ClassifyEnd, G: Settle> OnEnd for Judge<C, G> {
    fn on_end(self, end: End<'_>) {
        self.guard.settle(self.classifier.end(end));
    }
}

/// How the presets classify an error or a broken body: as a failure, or ignored if it is a local rejection.
fn broken(refusal: Option<&Refusal>) -> Outcome {
    if refusal.is_some() {
        Outcome::IGNORE
    } else {
        Outcome::FAILURE
    }
}

/// How the presets classify a response that a local layer made from a refusal: they ignore it. Without extensions this is one
/// null check.
fn refused(extensions: &Extensions) -> Option<Outcome> {
    extensions.get::<Refusal>().map(|_| Outcome::IGNORE)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ::http::{Method, Request, Response};

    use super::*;
    use crate::{BoxError, Class, Refused, Verdict, refuse, refuse::Refuse};

    /// The verdict of each preset on the responses that all implementations of `Refuse` make of one refusal.
    fn verdicts(method: Method, content_type: &str) -> Vec<Option<Verdict>> {
        let request = Request::builder()
            .method(method)
            .header("content-type", content_type)
            .body(())
            .unwrap();
        let refusal = Refusal::new(Class::Unavailable, "circuit-open");
        let page = refuse::Custom::new(|refusal, _| {
            let mut page = Response::new(bytes::Bytes::new());
            *page.status_mut() = refusal.class().status();
            page
        });
        fn respond<R>(how: &R, request: &Request<()>, refusal: Refusal) -> R::Response
        where
            R: Refuse<Request<()>, Response<String>, Infallible, Error = Infallible>,
        {
            let context = how.context(request);
            how.refuse(context, refusal).unwrap()
        }
        let responses = [
            respond(&refuse::Http::new(), &request, refusal),
            respond(&refuse::Http::new().problem_json(), &request, refusal),
            respond(&refuse::Grpc, &request, refusal),
            respond(&refuse::Auto::new(), &request, refusal),
            respond(&page, &request, refusal),
        ];
        let mut verdicts = Vec::new();
        for response in &responses {
            assert_eq!(response.extensions().get(), Some(refusal.refusal()));
            let (http, grpc, auto) = (
                Http::new().classify(&request),
                Grpc::new().classify(&request),
                Auto::new().classify(&request),
            );
            for outcome in [
                ClassifyResponse::<_, BoxError>::head(&http, response),
                ClassifyResponse::<_, BoxError>::head(&grpc, response),
                ClassifyResponse::<_, BoxError>::head(&auto, response),
            ] {
                verdicts.push(outcome.map(|outcome| outcome.verdict()));
            }
        }
        verdicts
    }

    #[test]
    fn a_rejection_response_of_an_inner_layer_is_ignored() {
        for (method, content_type) in [
            (Method::GET, "text/plain"),
            (Method::POST, "application/grpc"),
        ] {
            let verdicts = verdicts(method, content_type);
            assert!(
                verdicts.iter().all(|it| *it == Some(Verdict::Ignore)),
                "{content_type}: {verdicts:?}"
            );
        }
    }
}
