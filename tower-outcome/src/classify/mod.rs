//! What became of a request, judged in two steps: at the head, then at the end.
//!
//! The status line of a response is not yet the answer: a gRPC call fails in its trailers, a download breaks off
//! halfway. So a classifier is asked twice, and the layer's guard rides in the body in between.
//!
//! ```text
//!   request ── classify() ──► classifier ── head() ──► Some(outcome): known now, the body is left alone
//!                                  │           └─────► None: answered(), rides in the body ── end() ──► outcome
//!                                  └── error() ──► outcome                  body dropped before its end: cancelled
//! ```
//!
//! | preset | failure | soft | needs the body |
//! |---|---|---|---|
//! | [`AnyErr`] | any `Err` | | no, and works for any response type |
//! | [`Http`] | any `Err`, 5xx but 501, 505 and 511, a body that breaks off | 429 | yes |
//! | [`Grpc`] | any `Err`, codes 2, 4, 13, 14, 15, a missing status, a body that breaks off | 8 | yes |
//! | [`Auto`] | as `Grpc` if request and response are gRPC, else as `Http` | | yes |
//!
//! In all of them a refusal of our own ([`Refusal`]) is [`Verdict::Ignore`](crate::Verdict), whether it comes as an error
//! or, but for [`AnyErr`], as a response that has it in its extensions: it says nothing about the other side. Write your own with [`from_fn`], or [`Http::status`] for HTTP status codes.

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

/// Makes a classifier for each request.
pub trait Classify<Req> {
    /// Judges one request; what it needs to know of the request, it takes along.
    type Classifier: ClassifyEnd;

    /// Looks at the request before it is sent.
    fn classify(&self, request: &Req) -> Self::Classifier;
}

/// The first step: the head of the response, or the error instead of one.
pub trait ClassifyResponse<Res, E>: ClassifyEnd {
    /// Where the answer is known: [`AtHead`] leaves the response type alone, [`AtEnd`] wraps an HTTP body.
    type Scope;

    /// Judges the head. `None`: it is not bad, and only the end will tell; the guard is
    /// [told so](crate::Settle::answered).
    fn head(&self, response: &Res) -> Option<Outcome>;

    /// Judges an error that came instead of a response.
    fn error(&self, error: &E) -> Outcome;
}

/// The second step: the end of the body.
pub trait ClassifyEnd {
    /// Judges the end. Not called for a body dropped before its end: that was a cancellation, and is the guard's business.
    fn end(self, end: End<'_>) -> Outcome;
}

/// The answer is known at the response itself, whose type stays as it is.
#[derive(Clone, Copy, Debug)]
pub enum AtHead {}

/// The answer is known at the end of an HTTP body, which is wrapped in a [`GuardedBody`]. The end is also where the head's
/// `Content-Length` puts it, but for gRPC.
#[derive(Clone, Copy, Debug)]
pub enum AtEnd {}

/// How a guard is attached to a response: the two ways are [`AtHead`] and [`AtEnd`].
pub trait Scope<Res, G>: sealed::Sealed {
    /// The response with the guard attached.
    type Response;

    /// Attaches the guard, which is told the end.
    fn attach(response: Res, guard: G) -> Self::Response;

    /// The same type without a guard.
    fn detached(response: Res) -> Self::Response;
}

/// A layer's guard together with the classifier that will tell it the outcome.
#[derive(Debug)]
pub struct Judge<C, G> {
    classifier: C,
    guard: G,
}

/// What [`Judge::answer`] makes of a response.
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
        let length = promised(&response);
        response.map(|body| GuardedBody::of_length(body, guard, length))
    }

    fn detached(response: Response<B>) -> Self::Response {
        response.map(GuardedBody::settled)
    }
}

/// How long the body is by its own word or the head's. A server sends that many bytes and drops the body without polling
/// it again, so the end is counted down even where `is_end_stream` does not report it: a wrapper that has the default of
/// that method, or the stream of a file. A gRPC call ends with its trailers, whatever was promised.
fn promised<B: Body>(response: &Response<B>) -> Option<u64> {
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
    /// Pairs a request's classifier with the guard that wants to know.
    pub fn new(classifier: C, guard: G) -> Self {
        Self { classifier, guard }
    }

    /// Judges the answer; or tells the guard that there is one, and goes along with its body to the end.
    ///
    /// # Errors
    ///
    /// Passes the error through, judged.
    pub fn answer<Res, E>(mut self, result: Result<Res, E>) -> Result<Judged<C, G, Res, E>, E>
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
                    self.guard.answered();
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

/// The verdict of the presets on an error or a broken body: a failure, unless we refused it ourselves.
fn broken(refusal: Option<&Refusal>) -> Outcome {
    if refusal.is_some() {
        Outcome::IGNORE
    } else {
        Outcome::FAILURE
    }
}

/// What the presets say of a response that a layer of this process made of a refusal: nothing about the other side.
/// Costs a look at whether there are extensions.
fn refused(extensions: &Extensions) -> Option<Outcome> {
    extensions.get::<Refusal>().map(|_| Outcome::IGNORE)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ::http::{Method, Request, Response};

    use super::*;
    use crate::{BoxError, Class, Refused, Verdict, refuse, refuse::Refuse};

    /// What each preset says of what each way of telling a refusal makes of `refusal`.
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
        fn told<R>(how: &R, request: &Request<()>, refusal: Refusal) -> R::Response
        where
            R: Refuse<Request<()>, Response<String>, Infallible, Error = Infallible>,
        {
            let seen = how.see(request);
            how.refuse(seen, refusal).unwrap()
        }
        let responses = [
            told(&refuse::Http::new(), &request, refusal),
            told(&refuse::Http::new().problem_json(), &request, refusal),
            told(&refuse::Grpc, &request, refusal),
            told(&refuse::Auto::new(), &request, refusal),
            told(&page, &request, refusal),
        ];
        let mut verdicts = Vec::new();
        for response in &responses {
            assert_eq!(response.extensions().get(), Some(refusal.refusal()));
            let (http, grpc, auto) = (
                Http::new().classify(&request),
                Grpc.classify(&request),
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
    fn a_refusal_told_as_a_response_by_a_layer_further_in_is_ignored() {
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
