use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pin_project::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tower_outcome::BoxError;
use tower_service::Service;

use super::{
    Settings,
    app::{Conversation, Hosted},
    stream::{Protocol, Stream},
};
use crate::bell::Heard;

/// An HTTP connection's whole life. Made by [`Http`](crate::Http).
///
/// # Cancel safety
///
/// Dropping it closes the connection, and drops the handlers of its requests.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Connection<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    #[pin]
    stage: Stage<App, Io, B>,
    leave: Leave,
    #[pin]
    closing: Heard,
    /// Of the first byte, then of the last chance.
    #[pin]
    alarm: Option<Sleep>,
    conversation: Arc<Conversation>,
    settings: Arc<Settings>,
}

#[pin_project(project = StageProj)]
#[expect(clippy::large_enum_variant, reason = "it lives in the allocation of its task")]
enum Stage<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    /// -> `Http1` or `Http2`, when the first bytes tell.
    Sniffing(Option<(Stream<Io>, App)>),
    Http1(#[pin] http1::UpgradeableConnection<TokioIo<Stream<Io>>, Hosted<App>>),
    Http2(#[pin] http2::Connection<TokioIo<Stream<Io>>, Hosted<App>, TokioExecutor>),
}

/// How far a connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// -> `LastChance` when closing begins, or `Leaving` if there is no need of one.
    Stay,
    /// Idle. -> `Leaving` when a request comes or the alarm rings; `HalfHead` if it rings in the middle of a head.
    LastChance,
    /// -> `Leaving` when the head is whole. hyper ends it if that takes too long.
    HalfHead,
    /// Ends after what is under way.
    Leaving,
}

// === impl Connection ===

impl<App, Io, B> Connection<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    pub(super) fn new(stream: Stream<Io>, app: App, conversation: Arc<Conversation>, settings: Arc<Settings>) -> Self {
        let closing = conversation.shared().closing.heard();
        let stage = Stage::Sniffing(Some((stream, app)));
        Self { stage, leave: Leave::Stay, closing, alarm: None, conversation, settings }
    }
}

impl<App, Io, B> Future for Connection<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            match this.stage.project() {
                StageProj::Sniffing(parts) => {
                    let (stream, _) = parts.as_mut().expect("sniffs until it is told");
                    let Poll::Ready(protocol) = stream.poll_sniff(cx)? else {
                        return self.poll_silence(cx).map(Ok);
                    };
                    if !self.as_mut().speak(protocol) {
                        return Poll::Ready(Ok(()));
                    }
                }
                StageProj::Http1(mut connection) => {
                    if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                        return Poll::Ready(result.map_err(Into::into));
                    }
                    ready!(self.as_mut().poll_leave_http1(cx));
                    self.as_mut().say_goodbye();
                }
                StageProj::Http2(mut connection) => {
                    if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                        return Poll::Ready(result.map_err(Into::into));
                    }
                    ready!(self.as_mut().poll_leave_http2(cx));
                    self.as_mut().say_goodbye();
                }
            }
        }
    }
}

impl<App, Io, B> Connection<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    /// Ready when a connection that says nothing has had its time.
    fn poll_silence(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.alarm.is_none() {
            this.alarm.set(Some(sleep(this.settings.first_byte)));
        }
        if *this.leave == Leave::Stay && this.closing.as_mut().poll(cx).is_ready() {
            *this.leave = Leave::LastChance;
            let last = Instant::now() + last_chance(this.conversation, this.settings);
            let first_byte = this.alarm.as_ref().as_pin_ref().map_or(last, |alarm| alarm.deadline());
            this.alarm.set(Some(sleep_until(last.min(first_byte))));
        }
        this.alarm.as_pin_mut().expect("set above").poll(cx)
    }

    /// Hands the stream to hyper; `false` if there is nobody to talk to.
    fn speak(self: Pin<&mut Self>, protocol: Protocol) -> bool {
        let mut this = self.project();
        let StageProj::Sniffing(parts) = this.stage.as_mut().project() else { return true };
        let (stream, app) = parts.take().expect("sniffs until it is told");
        let (io, hosted) = (TokioIo::new(stream), Hosted::new(app, this.conversation.clone()));
        let settings = this.settings;
        let stage = match protocol {
            Protocol::Http1 => Stage::Http1(settings.http1.serve_connection(io, hosted).with_upgrades()),
            Protocol::Http2 => Stage::Http2(settings.http2.serve_connection(io, hosted)),
            Protocol::Nothing => return false,
        };
        this.stage.set(stage);
        if *this.leave == Leave::Stay {
            this.alarm.set(None);
        }
        true
    }

    /// Ready when it is time to tell hyper that this connection ends. That is so at most once.
    fn poll_leave_http1(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            match *this.leave {
                Leave::Stay => {
                    ready!(this.closing.as_mut().poll(cx));
                    *this.leave = Leave::LastChance;
                    this.alarm.set(Some(sleep(last_chance(this.conversation, this.settings))));
                }
                Leave::LastChance | Leave::HalfHead if this.conversation.is_busy() => break,
                Leave::LastChance => {
                    ready!(this.alarm.as_mut().as_pin_mut().expect("a last chance ends").poll(cx));
                    if !this.conversation.has_begun_head() {
                        break;
                    }
                    *this.leave = Leave::HalfHead;
                }
                Leave::HalfHead | Leave::Leaving => return Poll::Pending,
            }
        }
        *this.leave = Leave::Leaving;
        Poll::Ready(())
    }

    /// As for HTTP/1, but no chance is needed: the peer is told which of its requests were taken.
    fn poll_leave_http2(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if *this.leave == Leave::Leaving {
            return Poll::Pending;
        }
        ready!(this.closing.poll(cx));
        *this.leave = Leave::Leaving;
        Poll::Ready(())
    }

    fn say_goodbye(self: Pin<&mut Self>) {
        match self.project().stage.project() {
            StageProj::Sniffing(_) => {}
            StageProj::Http1(connection) => connection.graceful_shutdown(),
            StageProj::Http2(connection) => connection.graceful_shutdown(),
        }
    }
}

impl<App, Io, B> fmt::Debug for Connection<App, Io, B>
where
    App: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: Body + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("leave", &self.leave).finish_non_exhaustive()
    }
}

/// Not longer than what is left of the phase.
fn last_chance(conversation: &Conversation, settings: &Settings) -> Duration {
    let (_, deadline) = conversation.shared().look();
    let left = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
    settings.last_chance.min(left)
}
