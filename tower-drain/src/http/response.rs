//! Response bodies as passed to hyper.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::{exchange::Ending, shared::RequestGuard};

/// A body over HTTP/1, which writes one response at a time, from where it is.
#[pin_project]
pub(super) struct Http1Body<B> {
    #[pin]
    body: B,
    held: Held,
}

/// Kept with a body: hyper drops it at the body's end.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) guard: RequestGuard,
    pub(super) _ending: Ending,
}

// === impl Http1Body ===

impl<B> Http1Body<B> {
    pub(super) const fn new(body: B, held: Held) -> Self {
        Self { body, held }
    }
}

impl<B: Body> Body for Http1Body<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Http1Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Body")
            .field("guard", &self.held.guard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::http::shared::ConnShared;

    #[tokio::test]
    async fn over_http_1_a_piece_comes_whole() {
        let held = Held {
            guard: ConnShared::for_test().take_request(),
            _ending: Ending(None),
        };
        let mut body = Http1Body::new(Full::new(Bytes::from(vec![0; 160_000])), held);
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece.len(), 160_000);
    }
}
