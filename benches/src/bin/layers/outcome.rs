//! Classification of a response: the smallest layer with a guard and a classification.

use std::{
    convert::Infallible,
    future::Ready,
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use pin_project::pin_project;
use tower_benches::drive::{self, BareHttp, Case};
use tower_outcome::{
    Outcome, Settle,
    classify::{AnyErr, Auto, Classify, ClassifyResponse, Http, Judge, Judged, Scope},
};
use tower_service::Service;

use crate::HTTP;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "outcome-any",
        job: JOB,
        bare: "bare-http",
        run: |calls| http_calls(calls, AnyErr),
    },
    Case {
        name: "outcome-http",
        job: JOB,
        bare: "bare-http",
        run: |calls| http_calls(calls, Http::new()),
    },
    Case {
        name: "outcome-auto",
        job: JOB,
        bare: "bare-http",
        run: |calls| http_calls(calls, Auto::new()),
    },
];

const JOB: &str = "classification";

/// A guard without a state: what is left is the judging.
struct Discard;

/// A layer that classifies responses and discards the outcomes.
struct Judging<C> {
    inner: BareHttp<Full<Bytes>>,
    classify: C,
}

#[pin_project]
struct ResponseFuture<C> {
    #[pin]
    inner: Ready<Result<Answer, Infallible>>,
    judge: Option<Judge<C, Discard>>,
}

type Answer = Response<Full<Bytes>>;

fn http_calls<C, B>(calls: u32, classify: C)
where
    Judging<C>: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Error = Infallible>,
{
    drive::http_calls(
        calls,
        Judging {
            inner: HTTP,
            classify,
        },
        drive::plain,
    );
}

// === impl Discard ===

impl Settle for Discard {
    fn settle(self, outcome: Outcome) {
        black_box(outcome);
    }
}

// === impl Judging ===

impl<C> Service<Request<()>> for Judging<C>
where
    C: Classify<Request<()>>,
    C::Classifier: ClassifyResponse<Answer, Infallible>,
    <C::Classifier as ClassifyResponse<Answer, Infallible>>::Scope:
        Scope<Answer, Judge<C::Classifier, Discard>>,
{
    type Response = Judged<C::Classifier, Discard, Answer, Infallible>;
    type Error = Infallible;
    type Future = ResponseFuture<C::Classifier>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let judge = Judge::new(self.classify.classify(&request), Discard);
        ResponseFuture {
            inner: self.inner.call(request),
            judge: Some(judge),
        }
    }
}

// === impl ResponseFuture ===

impl<C> Future for ResponseFuture<C>
where
    C: ClassifyResponse<Answer, Infallible>,
    C::Scope: Scope<Answer, Judge<C, Discard>>,
{
    type Output = Result<Judged<C, Discard, Answer, Infallible>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        Poll::Ready(
            this.judge
                .take()
                .expect("polled after it was ready")
                .attach(result),
        )
    }
}
