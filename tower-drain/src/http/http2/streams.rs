//! The tasks of HTTP/2 streams: hyper's tasks, with a timeout for peers that do not take their responses.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    super::shared::{ConnShared, RequestGuard},
    body::{Said, listen},
    state::Slot,
};

/// Spawns the streams of a connection.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    pub(super) conn: Arc<ConnShared>,
}

/// One stream's task. Dropping what is inside resets the stream.
#[pin_project(project = TaskProj)]
enum Task<F> {
    Running {
        #[pin]
        stream: F,
        guard: RequestGuard,
        /// `Some` while a piece is being sent.
        piece: Option<OnItsWay>,
        #[pin]
        alarm: Option<Sleep>,
    },
    Reset,
}

/// A piece of a response that was passed to hyper and not sent completely.
struct OnItsWay {
    slot: Slot,
    /// The value of the slot's counter at the last check.
    taken: u32,
    /// When some of the piece was last taken, or the piece was passed.
    moved: Instant,
}

// === impl Streams ===

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Task::new(stream, &self.conn));
    }
}

// === impl Task ===

impl<F> Task<F> {
    fn new(stream: F, conn: &Arc<ConnShared>) -> Self {
        Self::Running {
            stream,
            guard: conn.guard(),
            piece: None,
            alarm: None,
        }
    }
}

impl<F: Future> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let TaskProj::Running {
            stream,
            guard,
            piece,
            mut alarm,
        } = self.as_mut().project()
        else {
            return Poll::Ready(());
        };
        let (polled, said) = listen(|| stream.poll(cx));
        if polled.is_ready() {
            return Poll::Ready(());
        }
        let conn = guard.conn();
        match said {
            // hyper polls for the next piece only after it has sent the last one.
            Some(Said::Gave(slot)) => {
                let begun = piece.insert(OnItsWay::new(conn, slot));
                alarm.set(Some(sleep_until(begun.moved + stall(conn) / LOOKS)));
            }
            Some(Said::Waiting) => {
                *piece = None;
                alarm.set(None);
            }
            None => {}
        }
        while let (Some(piece), Some(ringing)) = (piece.as_mut(), alarm.as_mut().as_pin_mut()) {
            if ringing.poll(cx).is_pending() {
                break;
            }
            let Some(next) = piece.look(conn, Instant::now()) else {
                tracing::debug!("stream reset: its peer does not take the response");
                self.set(Self::Reset);
                return Poll::Ready(());
            };
            alarm.set(Some(sleep_until(next)));
        }
        Poll::Pending
    }
}

// === impl OnItsWay ===

impl OnItsWay {
    fn new(conn: &ConnShared, slot: Slot) -> Self {
        Self {
            slot,
            taken: conn.taken(slot),
            moved: Instant::now(),
        }
    }

    /// When to check again: `None` if the peer has taken none of it for too long.
    fn look(&mut self, conn: &ConnShared, now: Instant) -> Option<Instant> {
        let taken = conn.taken(self.slot);
        if taken != self.taken {
            (self.taken, self.moved) = (taken, now);
        }
        let free = conn.uncongested_since();
        let end = free.map_or(self.moved, |free| free.max(self.moved)) + stall(conn);
        (now < end).then(|| end.min(now + stall(conn) / LOOKS))
    }
}

fn stall(conn: &ConnShared) -> Duration {
    conn.settings.life.write_stall
}

/// How often a piece is checked before its stream is reset.
const LOOKS: u32 = 4;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body;
    use http_body_util::{BodyExt, Full};
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::http::{exchange::Ending, http2::body::Http2Body, response::Held};

    fn held() -> Held {
        Held {
            guard: ConnShared::for_test().take_request(),
            _ending: Ending(None),
        }
    }

    fn running<F: Future>(stream: F) -> task::Spawn<Task<F>> {
        running_on(&ConnShared::for_test(), stream)
    }

    fn running_on<F: Future>(conn: &Arc<ConnShared>, stream: F) -> task::Spawn<Task<F>> {
        task::spawn(Task::new(stream, conn))
    }

    /// A stream with a piece that the peer does not take.
    fn giving() -> impl Future<Output = ()> {
        let piece = Full::new(bytes::Bytes::from("piece"));
        let (mut body, mut given) = (Box::pin(Http2Body::new(piece, held())), false);
        poll_fn(move |cx| {
            if !given {
                assert!(body.as_mut().poll_frame(cx).is_ready());
                given = true;
            }
            Poll::<()>::Pending
        })
    }

    async fn pass(secs: u64) {
        tokio::time::advance(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_body_gave_something_that_is_not_taken_is_reset() {
        let held = Arc::new(());
        let (inside, giving) = (Arc::downgrade(&held), giving());
        let mut task = running(async move {
            giving.await;
            drop(held);
        });
        assert_pending!(task.poll());
        pass(29).await;
        assert_pending!(task.poll());
        pass(2).await;
        assert!(task.is_woken());
        assert_ready!(task.poll());
        assert_eq!(inside.strong_count(), 0, "and what was inside is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_body_has_nothing_to_give_lives() {
        // Server-sent events, or a gRPC stream without news.
        let mut body = Box::pin(Http2Body::new(
            testkit::Script::new([testkit::Step::Hang]).map_err(|error| error),
            held(),
        ));
        let mut task = running(poll_fn(move |cx| {
            assert!(body.as_mut().poll_frame(cx).is_pending());
            Poll::<()>::Pending
        }));
        assert_pending!(task.poll());
        pass(3600).await;
        assert_pending!(task.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_has_not_answered_lives() {
        let mut task = running(std::future::pending::<()>());
        assert_pending!(task.poll());
        pass(3600).await;
        assert_pending!(task.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_reset_for_the_time_in_which_the_connection_waited() {
        let conn = ConnShared::for_test();
        conn.speak_http2();
        let mut task = running_on(&conn, giving());
        assert_pending!(task.poll());
        pass(10).await;
        conn.set_stalled(true);
        pass(50).await;
        assert_pending!(task.poll());
        conn.set_stalled(false);
        pass(29).await;
        assert_pending!(task.poll());
        conn.note_frames(Default::default(), true);
        pass(29).await;
        assert_pending!(task.poll());
        pass(2).await;
        assert_ready!(task.poll());
    }
}
