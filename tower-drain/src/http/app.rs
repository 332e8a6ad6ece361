//! Between hyper and the app: what goes on in a connection is noted here.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use pin_project::pin_project;
use tower_outcome::{
    BoxError, PeerAddr,
    body::{End, GuardedBody, OnEnd},
};
use tower_service::Service;

use crate::{
    accepted::Accepted,
    close::Closable,
    drain::{Drain, Shared},
};

/// What an HTTP/1 connection is doing: shared by its stream, its requests and its future, which mostly are one task.
#[derive(Debug)]
pub(super) struct Conversation {
    shared: Arc<Shared>,
    peer: Option<PeerAddr>,
    /// A request was taken and its answer is not at its end.
    busy: AtomicBool,
    /// Bytes came while no request was under way: the beginning of a head.
    head_began: AtomicBool,
    upgraded: AtomicBool,
}

/// The app as hyper wants it.
pub(super) struct Hosted<App> {
    app: App,
    conversation: Arc<Conversation>,
}

/// An answer on its way.
#[pin_project]
pub(super) struct Answering<App: Service<Request<Incoming>>> {
    #[pin]
    step: Step<App, App::Future>,
    closable: Closable,
    busy: Option<Busy>,
}

#[pin_project(project = StepProj)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation per request")]
enum Step<App, F> {
    /// -> `Called`, when the app is ready.
    Asking {
        app: App,
        request: Option<Request<Incoming>>,
    },
    Called(#[pin] F),
}

/// An HTTP/1 request under way, until its answer's end or drop.
pub(super) struct Busy(Arc<Conversation>);

// === impl Conversation ===

impl Conversation {
    pub(super) fn new<Io>(drain: &Drain, accepted: &Accepted<Io>) -> Self {
        Self {
            shared: drain.shared.clone(),
            peer: accepted.peer().ip().map(PeerAddr),
            busy: AtomicBool::new(false),
            head_began: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
        }
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Relaxed)
    }

    pub(super) fn has_begun_head(&self) -> bool {
        self.head_began.load(Relaxed)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Bytes came.
    pub(super) fn heard(&self) {
        if !self.is_busy() {
            self.head_began.store(true, Relaxed);
        }
    }

    /// The stream is gone.
    pub(super) fn ended(&self) {
        if self.is_upgraded() {
            self.shared.count.upgraded.fetch_sub(1, Relaxed);
        }
    }

    fn take_request(self: &Arc<Self>) -> Busy {
        self.busy.store(true, Relaxed);
        self.head_began.store(false, Relaxed);
        Busy(self.clone())
    }

    fn upgrade(&self) {
        if !self.upgraded.swap(true, Relaxed) {
            self.shared.count.upgraded.fetch_add(1, Relaxed);
        }
    }
}

// === impl Hosted ===

impl<App> Hosted<App> {
    pub(super) const fn new(app: App, conversation: Arc<Conversation>) -> Self {
        Self { app, conversation }
    }
}

impl<App, B> hyper::service::Service<Request<Incoming>> for Hosted<App>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body,
{
    type Response = Response<GuardedBody<B, Busy>>;
    type Error = BoxError;
    type Future = Answering<App>;

    fn call(&self, mut request: Request<Incoming>) -> Answering<App> {
        let closable = Closable::of(&request);
        // HTTP/2 has GOAWAY, and needs no notes.
        let busy = closable.is_http1().then(|| self.conversation.take_request());
        if let Some(peer) = self.conversation.peer {
            request.extensions_mut().insert(peer);
        }
        let step = Step::Asking { app: self.app.clone(), request: Some(request) };
        Answering { step, closable, busy }
    }
}

// === impl Answering ===

impl<App, B> Future for Answering<App>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body,
{
    type Output = Result<Response<GuardedBody<B, Busy>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let response = loop {
            match this.step.as_mut().project() {
                StepProj::Asking { app, request } => {
                    ready!(app.poll_ready(cx)).map_err(Into::into)?;
                    let call = app.call(request.take().expect("called once"));
                    this.step.set(Step::Called(call));
                }
                StepProj::Called(call) => break ready!(call.poll(cx)).map_err(Into::into)?,
            }
        };
        Poll::Ready(Ok(finish(response, *this.closable, this.busy.take())))
    }
}

fn finish<B: Body>(
    mut response: Response<B>,
    closable: Closable,
    busy: Option<Busy>,
) -> Response<GuardedBody<B, Busy>> {
    let Some(busy) = busy else { return response.map(GuardedBody::settled) };
    if closable.is_upgrade(&response) {
        busy.0.upgrade();
    } else if !busy.0.shared.is_serving() {
        closable.close(&mut response);
    }
    response.map(|body| GuardedBody::new(body, busy))
}

// === impl Busy ===

impl OnEnd for Busy {
    fn on_end(self, _: End<'_>) {}
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Relaxed);
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Busy")
    }
}
