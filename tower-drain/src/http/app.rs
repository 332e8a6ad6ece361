//! The adapter between hyper and the app.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use pin_project::pin_project;
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    body::RequestBody,
    exchange::{Ending, Exchange},
    response::{Held, Http1Body},
    shared::{ConnShared, RequestGuard},
};
use crate::{cancel::Cancellation, close::Closable};

/// The app as a hyper service for one protocol.
pub(super) struct HyperAdapter<App, P> {
    app: App,
    conn: Arc<ConnShared>,
    _protocol: PhantomData<P>,
}

/// HTTP/1, whose bodies are [`Http1Body`]. HTTP/2 has its own type, in its module.
pub(super) enum Http1 {}

/// The response future.
#[pin_project]
pub(super) struct ResponseFuture<App: Service<Request<RequestBody>>, P> {
    #[pin]
    step: Step<App, App::Future>,
    closable: Closable,
    version: Version,
    exchange: Option<Arc<Exchange>>,
    guard: Option<RequestGuard>,
    _protocol: PhantomData<P>,
}

/// hyper reserves space for one of these for the whole connection, so rare states are boxed.
#[pin_project(project = StepProj)]
enum Step<App, F> {
    /// The app was not ready at once. -> `Called` when it is ready.
    Asking(Option<Box<(App, Request<RequestBody>)>>),
    Called(#[pin] F),
    /// The app's future has completed.
    Failed(Option<BoxError>),
}

// === impl HyperAdapter ===

impl<App, P> HyperAdapter<App, P> {
    pub(super) const fn new(app: App, conn: Arc<ConnShared>) -> Self {
        Self {
            app,
            conn,
            _protocol: PhantomData,
        }
    }

    pub(super) fn begin<B>(&self, request: Request<Incoming>) -> ResponseFuture<App, P>
    where
        App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    {
        let guard = self.conn.take_request();
        let (closable, version) = (Closable::of(&request), request.version());
        let (mut parts, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, &self.conn);
        let exchange = body.exchange();
        let for_route = exchange.clone().filter(|_| !closable.is_http1());
        self.conn.info.insert_into(&mut parts.extensions);
        parts
            .extensions
            .insert(Cancellation::new(self.conn.shared().clone()).with_exchange(for_route));
        let step = Step::begin(self.app.clone(), Request::from_parts(parts, body));
        ResponseFuture {
            step,
            closable,
            version,
            exchange,
            guard: Some(guard),
            _protocol: PhantomData,
        }
    }
}

impl<App, B> hyper::service::Service<Request<Incoming>> for HyperAdapter<App, Http1>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body,
{
    type Response = Response<Http1Body<B>>;
    type Error = BoxError;
    type Future = ResponseFuture<App, Http1>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.begin(request)
    }
}

// === impl Step ===

impl<App: Service<Request<RequestBody>, Error: Into<BoxError>>> Step<App, App::Future> {
    /// Most apps are always ready. An app that is not is polled again with a real waker.
    fn begin(mut app: App, request: Request<RequestBody>) -> Self {
        match app.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Self::Called(app.call(request)),
            Poll::Ready(Err(error)) => Self::Failed(Some(error.into())),
            Poll::Pending => Self::Asking(Some(Box::new((app, request)))),
        }
    }
}

// === impl ResponseFuture ===

impl<App, B, P> ResponseFuture<App, P>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>>,
{
    /// The response, and the guards that are kept with its body.
    pub(super) fn poll_response(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Response<B>, Held), BoxError>> {
        let mut this = self.project();
        let mut response = loop {
            match this.step.as_mut().project() {
                StepProj::Asking(asking) => {
                    let (app, _) = &mut **asking.as_mut().expect("called once");
                    ready!(app.poll_ready(cx)).map_err(Into::into)?;
                    let (mut app, request) = *asking.take().expect("called once");
                    this.step.set(Step::Called(app.call(request)));
                }
                StepProj::Failed(error) => {
                    return Poll::Ready(Err(error.take().expect("polled after it was ready")));
                }
                StepProj::Called(call) => break ready!(call.poll(cx)).map_err(Into::into)?,
            }
        };
        let ending = Ending(this.exchange.take());
        if let Some(exchange) = &ending.0 {
            exchange.begin_response();
        }
        let guard = this.guard.take().expect("polled after it was ready");
        guard
            .conn()
            .finish(&mut response, *this.closable, *this.version);
        let held = Held {
            guard,
            _ending: ending,
        };
        Poll::Ready(Ok((response, held)))
    }
}

impl<App, B> Future for ResponseFuture<App, Http1>
where
    App: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body,
{
    type Output = Result<Response<Http1Body<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, held) = ready!(self.poll_response(cx))?;
        Poll::Ready(Ok(response.map(|body| Http1Body::new(body, held))))
    }
}
