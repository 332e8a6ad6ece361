//! The tasks of HTTP/2 streams: hyper's, with an eye on peers that do not take what they asked for.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::{Said, listen};

/// Spawns the streams of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    /// How long a piece of an answer may wait for the peer to take it.
    pub(super) stall: Duration,
}

/// One stream's task. Dropping what is inside resets the stream.
#[pin_project(project = TaskProj)]
enum Task<F> {
    Running {
        #[pin]
        stream: F,
        stall: Duration,
        /// Set while a piece is on its way.
        #[pin]
        alarm: Option<Sleep>,
    },
    Reset,
}

// === impl Streams ===

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Task::Running {
            stream,
            stall: self.stall,
            alarm: None,
        });
    }
}

// === impl Task ===

impl<F: Future> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let TaskProj::Running {
            stream,
            stall,
            mut alarm,
        } = self.as_mut().project()
        else {
            return Poll::Ready(());
        };
        let (polled, said) = listen(|| stream.poll(cx));
        if polled.is_ready() {
            return Poll::Ready(());
        }
        match said {
            // hyper asks for the next piece only when it has got rid of the last one.
            Some(Said::Gave(bytes)) => {
                alarm.set(Some(sleep_until(Instant::now() + allowance(*stall, bytes))))
            }
            Some(Said::Waiting) => alarm.set(None),
            None => {}
        }
        let stalled = alarm
            .as_pin_mut()
            .is_some_and(|alarm| alarm.poll(cx).is_ready());
        if stalled {
            tracing::debug!("stream reset: its peer does not take the answer");
            self.set(Self::Reset);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A large piece may take longer: at least 4 KiB a second.
fn allowance(stall: Duration, bytes: usize) -> Duration {
    stall + Duration::from_secs(bytes as u64 / 4096)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use http_body::Body;
    use http_body_util::{BodyExt, Full};
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::http::body::ResponseBody;

    const STALL: Duration = Duration::from_secs(30);

    fn running<F: Future>(stream: F) -> task::Spawn<Task<F>> {
        task::spawn(Task::Running {
            stream,
            stall: STALL,
            alarm: None,
        })
    }

    async fn pass(secs: u64) {
        tokio::time::advance(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_body_gave_something_that_is_not_taken_is_reset() {
        let mut body = Box::pin(ResponseBody::new(Full::new(bytes::Bytes::from("piece"))));
        let (held, mut given) = (Arc::new(()), false);
        let inside = Arc::downgrade(&held);
        let mut task = running(poll_fn(move |cx| {
            let _held = &held;
            if !given {
                assert!(body.as_mut().poll_frame(cx).is_ready());
                given = true;
            }
            Poll::<()>::Pending
        }));
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
        let mut body = Box::pin(ResponseBody::new(
            testkit::Script::new([testkit::Step::Hang]).map_err(|error| error),
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

    #[test]
    fn a_large_piece_has_more_time() {
        assert_eq!(allowance(STALL, 100), STALL);
        assert_eq!(allowance(STALL, 4096 * 600), STALL * 21);
    }
}
