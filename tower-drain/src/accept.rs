//! The accept loop: connections as requests to a service.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project::pin_project;
use tokio::{select, time::sleep};
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accepted::Accepted,
    bell::{Bell, Heard},
    count::Kind,
    drain::Drain,
    fault::{Backoff, Fault},
    guard::Guard,
    listen::{Addr, Listen},
    report::Report,
    wait::Reached,
};

/// Serves connections until the drain is over, which waits for it from now on, not only when it is first polled.
pub(crate) fn serve<L, S>(
    drain: Drain,
    listener: L,
    service: S,
) -> impl Future<Output = io::Result<Report>> + Send + use<L, S>
where
    L: Listen,
    S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>> + Send + 'static,
{
    let open = drain.guard_of(Kind::Loop);
    run(drain, open, listener, service)
}

async fn run<L, S>(drain: Drain, open: Guard, mut listener: L, service: S) -> io::Result<Report>
where
    L: Listen,
    S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
{
    let local = listener.local_addr().unwrap_or(Addr::Other);
    let mut door = Door { drain: drain.clone(), service, local, cut: Cut::default() };
    let outcome = door.welcome(&mut listener).await;
    if outcome.is_err() {
        // Nobody can come any more; those who are here are not dropped for it.
        drain.shutdown();
    } else {
        door.take_queued(&mut listener).await;
    }
    drop(listener);
    drop(open);
    let report = drain.done().await;
    outcome.map(|()| report)
}

/// Lets connections in, and cuts what is left of them when it is dropped.
struct Door<S> {
    drain: Drain,
    service: S,
    local: Addr,
    cut: Cut,
}

/// Ends every [`Life`] that listens, when dropped.
#[derive(Default)]
struct Cut(Bell);

/// A connection's whole life, which can be cut.
#[pin_project]
struct Life<F> {
    #[pin]
    cut: Heard,
    #[pin]
    life: F,
}

// === impl Door ===

impl<S> Door<S> {
    /// Until closing, or until nobody can come any more.
    async fn welcome<L>(&mut self, listener: &mut L) -> io::Result<()>
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        let mut closing = std::pin::pin!(self.drain.closing());
        let mut backoff = Backoff::default();
        // Readiness never delays the drain, and neither does a connection that may still come: hence `biased`.
        while let Some(ready) = until(closing.as_mut(), poll_fn(|cx| self.poll_ready(cx))).await {
            ready.map_err(io::Error::other)?;
            let Some(accepted) = until(closing.as_mut(), listener.accept()).await else { break };
            match accepted {
                Ok((io, peer)) => {
                    backoff.reset();
                    self.admit(io, peer);
                }
                Err(error) => {
                    let Some(pause) = pause(error, &mut backoff)? else { continue };
                    until(closing.as_mut(), sleep(pause)).await;
                }
            }
        }
        Ok(())
    }

    /// Lets in who came before the listener closes: twice, for those whose handshake was just under way.
    ///
    /// A service that is not ready takes nobody; they are closed with the listener.
    async fn take_queued<L>(&mut self, listener: &mut L)
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        self.take_all(listener).await;
        sleep(HANDSHAKE).await;
        self.take_all(listener).await;
    }

    async fn take_all<L>(&mut self, listener: &mut L)
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        for _ in 0..QUEUE {
            if !poll_fn(|cx| Poll::Ready(matches!(self.poll_ready(cx), Poll::Ready(Ok(()))))).await {
                return;
            }
            match listener.try_accept() {
                Ok(Some((io, peer))) => self.admit(io, peer),
                Ok(None) => return,
                Err(error) if Fault::of(&error) == Fault::Passing => {}
                Err(error) => return tracing::warn!(%error, "connections left in the queue"),
            }
        }
    }

    fn poll_ready<Io>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>
    where
        S: Service<Accepted<Io>, Error: Into<BoxError>>,
    {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn admit<Io>(&mut self, io: Io, peer: Addr)
    where
        S: Service<Accepted<Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        let accepted = Accepted::new(&self.drain, io, peer, self.local.clone());
        tokio::spawn(Life { cut: self.cut.0.heard(), life: self.service.call(accepted) });
    }
}

/// `None` when closing comes first.
async fn until<F: Future>(closing: Pin<&mut Reached>, future: F) -> Option<F::Output> {
    select! {
        biased;
        () = closing => None,
        output = future => Some(output),
    }
}

/// How long to wait after an accept error, if at all.
fn pause(error: io::Error, backoff: &mut Backoff) -> io::Result<Option<Duration>> {
    match Fault::of(&error) {
        Fault::Passing => Ok(None),
        Fault::Scarce => {
            let pause = backoff.next();
            tracing::warn!(%error, ?pause, "accept: out of resources");
            Ok(Some(pause))
        }
        Fault::Fatal => Err(error),
    }
}

// === impl Cut ===

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.ring();
    }
}

// === impl Life ===

impl<F, T, E> Future for Life<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.cut.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.life.poll(cx).map(|result| {
            if let Err(error) = result {
                tracing::debug!(error = &*error.into() as &dyn std::error::Error, "connection");
            }
        })
    }
}

/// How long the last handshakes get before the listener closes.
const HANDSHAKE: Duration = Duration::from_millis(10);
/// How many are taken from the queue in one go: Linux's default longest queue. A client that never stops coming must
/// not keep the listener open.
const QUEUE: usize = 4096;
