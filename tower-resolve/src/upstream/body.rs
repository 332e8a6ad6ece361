use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{connection::Connection, pool::Pool};

/// A response body. Returns its connection to the pool at its end; if dropped before that, it closes it.
pub struct UpstreamBody<B: Send + 'static> {
    incoming: Incoming,
    lent: Option<Lent<B>>,
}

struct Lent<B> {
    connection: Connection<B>,
    pool: Arc<Pool<B>>,
}

// === impl UpstreamBody ===

impl<B: Send + 'static> UpstreamBody<B> {
    pub(super) fn new(incoming: Incoming, connection: Connection<B>, pool: Arc<Pool<B>>) -> Self {
        let mut body = Self {
            incoming,
            lent: Some(Lent { connection, pool }),
        };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(Lent {
            mut connection,
            pool,
        }) = self.lent.take()
        {
            connection.be_reused();
            pool.put(connection);
        }
    }
}

impl<B: Send + 'static> Body for UpstreamBody<B> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            None => self.give_back(),
            Some(Ok(_)) if self.incoming.is_end_stream() => self.give_back(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lent = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl<B: Send + 'static> fmt::Debug for UpstreamBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}
