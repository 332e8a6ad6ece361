//! The accept loop: connections as requests to a service.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    select,
    time::{Instant, sleep},
};
use tower_outcome::BoxError;
use tower_service::Service;

use crate::{
    accepted::Accepted,
    count::Kind,
    drain::Drain,
    fault::{Backoff, Fault},
    guard::Guard,
    listen::{Addr, Listen},
    lives::Lives,
    report::Report,
    reserve::Reserve,
    wait::Reached,
};

/// Serves connections until the drain is over. The drain waits for it from now on, not only from the first poll.
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
    let mut door = Door {
        drain: drain.clone(),
        service,
        local,
        lives: Lives::default(),
        reserve: Reserve::new(),
    };
    let outcome = door.welcome(&mut listener).await;
    if outcome.is_err() {
        // No connection can be accepted any more; open ones are drained.
        drain.shutdown();
    } else {
        // Queued connections are served, but not once the drain is forced.
        until(pin!(drain.forced()), door.take_queued(&mut listener)).await;
    }
    drop(listener);
    drop(open);
    let report = drain.done().await;
    outcome.map(|()| report)
}

/// Accepts connections, and cuts the open ones when it is dropped.
struct Door<S> {
    drain: Drain,
    service: S,
    local: Addr,
    lives: Lives,
    reserve: Reserve,
}

// === impl Door ===

impl<S> Door<S> {
    /// Accepts until closing begins, or until no more connections can be accepted.
    async fn welcome<L>(&mut self, listener: &mut L) -> io::Result<()>
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        let mut closing = pin!(self.drain.closing());
        let mut backoff = Backoff::default();
        // Neither readiness nor another connection delays the drain: hence `biased`.
        while let Some(ready) = until(closing.as_mut(), poll_fn(|cx| self.poll_ready(cx))).await {
            ready.map_err(io::Error::other)?;
            let Some(accepted) = until(closing.as_mut(), listener.accept()).await else {
                break;
            };
            match accepted {
                Ok((io, peer)) => {
                    backoff.reset();
                    self.admit(io, peer);
                }
                Err(error) => {
                    let again = backoff.is_running() && Fault::of(&error) == Fault::Full;
                    let Some(pause) = pause(error, &mut backoff)? else {
                        continue;
                    };
                    if again {
                        self.turn_away(listener);
                    }
                    until(closing.as_mut(), sleep(pause)).await;
                }
            }
        }
        Ok(())
    }

    /// Out of descriptors for longer than a moment: closes queued connections, so that clients connect elsewhere instead of
    /// hanging.
    fn turn_away<L: Listen>(&mut self, listener: &mut L) {
        let turned = self.reserve.lend(|| {
            let turned = (0..TURNED_AWAY).map_while(|_| listener.try_accept().ok().flatten());
            turned.count()
        });
        tracing::warn!(turned, "accept: connections closed for lack of descriptors");
    }

    /// Accepts queued connections before the listener closes, until none arrived for a while: handshakes may be under way.
    ///
    /// If the service is not ready, none are accepted; they are closed with the listener.
    async fn take_queued<L>(&mut self, listener: &mut L)
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        listener.begin_close();
        let end = Instant::now() + LONGEST;
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < QUIET && Instant::now() < end || listener.expects_more() {
            if self.take_all(listener).await > 0 {
                quiet_since = Instant::now();
            }
            sleep(GLANCE).await;
        }
        self.take_all(listener).await;
    }

    /// Returns how many it took.
    async fn take_all<L>(&mut self, listener: &mut L) -> usize
    where
        L: Listen,
        S: Service<Accepted<L::Io>, Future: Send + 'static, Error: Into<BoxError>>,
    {
        for taken in 0..QUEUE {
            if !poll_fn(|cx| Poll::Ready(matches!(self.poll_ready(cx), Poll::Ready(Ok(()))))).await
            {
                return taken;
            }
            match listener.try_accept() {
                Ok(Some((io, peer))) => self.admit(io, peer),
                Ok(None) => return taken,
                Err(error) if Fault::of(&error) == Fault::Passing => {}
                Err(error) => {
                    tracing::warn!(%error, "connections left in the queue");
                    return taken;
                }
            }
        }
        QUEUE
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
        self.lives.begin(self.service.call(accepted));
    }
}

/// `None` if closing begins first.
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
        Fault::Scarce | Fault::Full => {
            let pause = backoff.next();
            tracing::warn!(%error, ?pause, "accept: out of resources");
            Ok(Some(pause))
        }
        Fault::Fatal => Err(error),
    }
}

/// How long no connection may have arrived before the listener is closed.
const QUIET: Duration = Duration::from_millis(100);
/// How often the queue is polled meanwhile.
const GLANCE: Duration = Duration::from_millis(10);
/// Clients that keep connecting must not keep the listener open.
const LONGEST: Duration = Duration::from_secs(1);
/// How many are taken from the queue at once: Linux's default limit of a queue.
const QUEUE: usize = 4096;
/// How many are closed at once when descriptors run out.
const TURNED_AWAY: usize = 64;
