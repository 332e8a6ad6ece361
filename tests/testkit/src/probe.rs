use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{Broken, Script, Step};

/// What a [`Probe`] answers to one call.
#[derive(Debug)]
pub enum Answer {
    /// A response with this status and an empty body.
    Status(u16),
    /// A response with this status and body.
    Body(u16, Script),
    /// A whole response.
    Response(Response<Script>),
    /// An error.
    Fail,
    /// Nothing, for ever.
    Hang,
    /// A panic when the future is polled.
    Panic,
}

/// A service that is strict about its own contract.
///
/// It panics when called without `poll_ready` having returned `Ready` on the same clone since the last call, and when
/// polled after it has failed. It answers what [`ProbeHandle::answer`] queued, or an empty 200.
pub struct Probe<B = String> {
    shared: Arc<Mutex<Shared>>,
    ready: bool,
    body: PhantomData<fn(B)>,
}

/// The test's end of a [`Probe`]: commands and counts, shared by all clones.
#[derive(Clone, Debug)]
pub struct ProbeHandle(Arc<Mutex<Shared>>);

/// The future of a [`Probe`].
#[derive(Debug)]
pub struct ProbeFuture {
    answer: Option<Answer>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    readiness: Readiness,
    wakers: Vec<Waker>,
    answers: VecDeque<Answer>,
    heads: Vec<http::request::Parts>,
    polls: usize,
    calls: usize,
    in_flight: usize,
    clones: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Readiness {
    #[default]
    Ready,
    Pending,
    Failed,
}

// === impl Probe ===

impl<B> Probe<B> {
    /// A ready probe and its handle.
    pub fn new() -> (Self, ProbeHandle) {
        let shared = Arc::new(Mutex::new(Shared {
            clones: 1,
            ..Shared::default()
        }));
        (
            Self {
                shared: shared.clone(),
                ready: false,
                body: PhantomData,
            },
            ProbeHandle(shared),
        )
    }
}

impl<B> Service<Request<B>> for Probe<B> {
    type Response = Response<Script>;
    type Error = Broken;
    type Future = ProbeFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut shared = lock(&self.shared);
        shared.polls += 1;
        match shared.readiness {
            Readiness::Ready => {
                self.ready = true;
                Poll::Ready(Ok(()))
            }
            Readiness::Pending => {
                self.ready = false;
                shared.wakers.push(cx.waker().clone());
                Poll::Pending
            }
            Readiness::Failed => Poll::Ready(Err(Broken)),
        }
    }

    fn call(&mut self, request: Request<B>) -> ProbeFuture {
        assert!(
            std::mem::take(&mut self.ready),
            "called without poll_ready having returned Ready on this clone"
        );
        let mut shared = lock(&self.shared);
        shared.calls += 1;
        shared.in_flight += 1;
        shared.heads.push(request.into_parts().0);
        let answer = shared.answers.pop_front().unwrap_or(Answer::Status(200));
        ProbeFuture {
            answer: Some(answer),
            shared: self.shared.clone(),
        }
    }
}

impl<B> Clone for Probe<B> {
    /// A clone is not ready, as tower-service requires.
    fn clone(&self) -> Self {
        lock(&self.shared).clones += 1;
        Self {
            shared: self.shared.clone(),
            ready: false,
            body: PhantomData,
        }
    }
}

impl<B> Drop for Probe<B> {
    fn drop(&mut self) {
        lock(&self.shared).clones -= 1;
    }
}

impl<B> fmt::Debug for Probe<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

// === impl ProbeHandle ===

impl ProbeHandle {
    /// Queues an answer.
    pub fn answer(&self, answer: Answer) {
        lock(&self.0).answers.push_back(answer);
    }

    /// `poll_ready` returns `Ready` from now on; wakes waiting tasks.
    pub fn be_ready(&self) {
        let wakers = {
            let mut shared = lock(&self.0);
            shared.readiness = Readiness::Ready;
            std::mem::take(&mut shared.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// `poll_ready` returns `Pending` from now on.
    pub fn be_pending(&self) {
        lock(&self.0).readiness = Readiness::Pending;
    }

    /// `poll_ready` fails from now on.
    pub fn be_failed(&self) {
        lock(&self.0).readiness = Readiness::Failed;
    }

    /// How often readiness was asked.
    pub fn polls(&self) -> usize {
        lock(&self.0).polls
    }

    /// How many calls came.
    pub fn calls(&self) -> usize {
        lock(&self.0).calls
    }

    /// How many calls are neither answered nor dropped.
    pub fn in_flight(&self) -> usize {
        lock(&self.0).in_flight
    }

    /// How many clones of the service are alive.
    pub fn clones(&self) -> usize {
        lock(&self.0).clones
    }

    /// The head of the request that came last.
    pub fn last_head(&self) -> Option<http::request::Parts> {
        lock(&self.0).heads.last().cloned()
    }
}

// === impl ProbeFuture ===

impl Future for ProbeFuture {
    type Output = Result<Response<Script>, Broken>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.take().expect("polled after it was ready");
        let response = |status, body| {
            Response::builder()
                .status(status)
                .body(body)
                .expect("a valid status")
        };
        Poll::Ready(match answer {
            Answer::Status(status) => Ok(response(status, Script::new([]).telling_end())),
            Answer::Body(status, body) => Ok(response(status, body)),
            Answer::Response(response) => Ok(response),
            Answer::Fail => Err(Broken),
            Answer::Hang => {
                self.answer = Some(Answer::Hang);
                return Poll::Pending;
            }
            Answer::Panic => panic!("the inner service panics"),
        })
    }
}

impl Drop for ProbeFuture {
    fn drop(&mut self) {
        lock(&self.shared).in_flight -= 1;
    }
}

// A test that panics on purpose must not break the counts.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Step {
    /// The trailers of a gRPC call.
    pub const fn grpc_status(code: &'static str) -> Self {
        Self::Trailer("grpc-status", code)
    }
}
