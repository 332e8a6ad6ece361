//! Passes requests on: rewrites the heads, and turns every error into an answer.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use serde_json::json;
use tower_layer::Layer;
use tower_outcome::{
    BoxError, Class, PeerAddr, Refusal,
    body::RespondBody,
    refuse::{self, Protocol},
};
use tower_service::Service;

use crate::{
    answer::NoAnswer,
    head::{self, Stopped},
};

/// Wraps the service that picks an upstream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardLayer;

#[derive(Clone, Debug)]
pub(crate) struct Forward<S> {
    inner: S,
    /// The inner service has ended for good and must not be called.
    ended: bool,
}

#[pin_project]
pub(crate) struct ForwardFuture<F> {
    #[pin]
    state: State<F>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    /// Waits for the head of the response.
    Sent {
        #[pin]
        answer: F,
        protocol: Protocol,
    },
    Stopped(Stopped),
    Ended(Protocol),
}

/// A response's body, whose trailers are fit to be passed on.
#[pin_project]
#[derive(Debug)]
pub(crate) struct PassedOn<B>(#[pin] B);

// === impl ForwardLayer ===

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward {
            inner,
            ended: false,
        }
    }
}

// === impl Forward ===

impl<S, A, B> Service<Request<A>> for Forward<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = BoxError>,
    A: Body,
{
    type Response = Response<RespondBody<PassedOn<B>>>;
    type Error = Infallible;
    type Future = ForwardFuture<S::Future>;

    /// As ready as the inner service; one that has ended for good is answered for, in `call`.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ended = ready!(self.inner.poll_ready(cx)).is_err();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let protocol = Protocol::of(&request);
        if self.ended {
            return ForwardFuture {
                state: State::Ended(protocol),
            };
        }
        let (mut head, body) = request.into_parts();
        let peer = head.extensions.get::<PeerAddr>().map(|peer| peer.0);
        ForwardFuture {
            state: match head::request(&mut head, peer, !body.is_end_stream()) {
                Ok(()) => State::Sent {
                    answer: self.inner.call(Request::from_parts(head, body)),
                    protocol,
                },
                Err(why) => State::Stopped(why),
            },
        }
    }
}

// === impl ForwardFuture ===

impl<F, B> Future for ForwardFuture<F>
where
    F: Future<Output = Result<Response<B>, BoxError>>,
{
    type Output = Result<Response<RespondBody<PassedOn<B>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project().state.project() {
            StateProj::Sent { answer, protocol } => match ready!(answer.poll(cx)) {
                Ok(response) => passed_on(response, *protocol),
                Err(error) => refused(*protocol, &error),
            },
            StateProj::Stopped(why) => stopped(*why),
            StateProj::Ended(protocol) => {
                REFUSE.response(*protocol, &ENDED, "the gateway has ended")
            }
        }))
    }
}

fn passed_on<B>(response: Response<B>, protocol: Protocol) -> Response<RespondBody<PassedOn<B>>> {
    let (mut head, body) = response.into_parts();
    match head::response(&mut head) {
        Ok(()) => Response::from_parts(head, RespondBody::inner(PassedOn(body))),
        Err(why) => REFUSE.response(protocol, &BAD_UPSTREAM, why),
    }
}

/// Responds to a rejection of a local layer with its text. Any other error is the upstream's, and its text is not sent to clients.
fn refused<B>(protocol: Protocol, error: &BoxError) -> Response<RespondBody<B>> {
    match Refusal::find(&**error) {
        Some(refusal) => REFUSE.response(protocol, refusal, error),
        None if error.is::<NoAnswer>() => REFUSE.response(protocol, &TIMED_OUT, NoAnswer),
        None => {
            tracing::debug!(error = %chain(error), "the upstream failed");
            REFUSE.response(protocol, &BAD_UPSTREAM, "the upstream failed")
        }
    }
}

fn chain(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn stopped<B>(Stopped { status, code, why }: Stopped) -> Response<RespondBody<B>> {
    let title = status.canonical_reason();
    let problem = || json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": why, "code": code });
    let text = if status.is_success() {
        String::new()
    } else {
        problem().to_string()
    };
    let mut response = Response::new(RespondBody::refusal(text));
    *response.status_mut() = status;
    if status.is_success() || status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(
            ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    if !status.is_success() {
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
    }
    response
}

/// The form of all rejections.
pub(crate) const REFUSE: refuse::Auto =
    refuse::Auto::new().http(refuse::Http::new().problem_json());
const TIMED_OUT: Refusal = Refusal::new(Class::TimedOut, "upstream-timeout");
const BAD_UPSTREAM: Refusal = Refusal::new(Class::BadUpstream, "upstream-failed");
const ENDED: Refusal = Refusal::new(Class::Unavailable, "gateway-ended");

// === impl PassedOn ===

impl<B: Body<Data = Bytes>> Body for PassedOn<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut frame = ready!(self.project().0.poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            head::trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
