//! Response bodies over HTTP/2: in pieces of a bounded size, with a record of what the last poll returned.

use std::{
    cell::Cell,
    fmt,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::{super::response::Held, shared::Taken, state::Slot};

/// A body over HTTP/2: it splits data into pieces that hyper may hold at once, and records for the task that polls it
/// whether it returned one.
///
/// hyper passes a piece to h2 as a whole once a single byte of it may be sent. From then on neither hyper nor this crate
/// can take it back, and the peer decides how long it is held. A large piece is therefore passed in parts.
///
/// hyper is between a body and its task and reports neither to the other, but polls both in one call; hence a
/// thread-local record rather than a shared allocation per request.
#[pin_project]
pub(super) struct Http2Body<B: Body> {
    #[pin]
    body: B,
    /// The rest of a piece that was too large.
    rest: Option<B::Data>,
    held: Held,
}

/// A piece of a body.
#[derive(Debug)]
pub(super) struct Piece<D> {
    data: Data<D>,
    /// Counts that some of it was taken, unless its stream has ended.
    taken: Option<Taken>,
}

#[derive(Debug)]
enum Data<D> {
    Whole(D),
    Part(Bytes),
}

/// What a body returned when it was last polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing yet.
    Waiting,
    /// A piece, which is now being sent, and the counter of its progress.
    Gave(Slot),
}

thread_local! {
    static SAID: Cell<Option<Said>> = const { Cell::new(None) };
}

// === impl Http2Body ===

impl<B: Body> Http2Body<B> {
    pub(super) const fn new(body: B, held: Held) -> Self {
        Self {
            body,
            rest: None,
            held,
        }
    }
}

impl<B: Body> Body for Http2Body<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = match this.rest.take() {
            Some(rest) => Poll::Ready(Some(Ok(Frame::data(rest)))),
            None => this.body.as_mut().poll_frame(cx),
        };
        SAID.set(Some(match frame {
            Poll::Ready(Some(Ok(_))) => Said::Gave(this.held.guard.slot()),
            _ => Said::Waiting,
        }));
        frame.map_ok(|frame| {
            frame.map_data(|data| {
                let (data, rest) = split(data);
                *this.rest = rest;
                // With the last one the stream's task is done.
                let is_last = this.rest.is_none() && this.body.is_end_stream();
                let taken = (!is_last).then(|| this.held.guard.taken());
                Piece { data, taken }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(rest) = &self.rest {
            let rest = rest.remaining() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + rest);
            }
            hint.set_lower(hint.lower() + rest);
        }
        hint
    }
}

impl<B: Body> fmt::Debug for Http2Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http2Body")
    }
}

/// For `Bytes`, which most bodies return, neither copies.
fn split<D: Buf>(mut data: D) -> (Data<D>, Option<D>) {
    if data.remaining() <= LARGEST {
        return (Data::Whole(data), None);
    }
    let part = data.copy_to_bytes(LARGEST);
    (Data::Part(part), Some(data))
}

// === impl Piece ===

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        match &self.data {
            Data::Whole(data) => data.remaining(),
            Data::Part(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            Data::Whole(data) => data.chunk(),
            Data::Part(data) => data.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        match &self.data {
            Data::Whole(data) => data.chunks_vectored(dst),
            Data::Part(data) => data.chunks_vectored(dst),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            Data::Whole(data) => data.advance(count),
            Data::Part(data) => data.advance(count),
        }
        if let Some(taken) = &self.taken {
            taken.note();
        }
    }
}

/// Runs `poll`, and also returns what the body polled inside returned last, if one was polled.
pub(super) fn listen<T>(poll: impl FnOnce() -> T) -> (T, Option<Said>) {
    SAID.set(None);
    let output = poll();
    (output, SAID.take())
}

/// One DATA frame of the size that every peer takes.
const LARGEST: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio_test::{assert_ready, task};

    use super::*;
    use crate::http::{exchange::Ending, shared::ConnShared};

    fn held(conn: &std::sync::Arc<ConnShared>) -> Held {
        Held {
            guard: conn.take_request(),
            _ending: Ending(None),
        }
    }

    #[test]
    fn a_large_piece_comes_in_parts_and_is_whole_in_the_end() {
        let conn = ConnShared::for_test();
        conn.speak_http2();
        let data: Bytes = (0..40_000_u32).flat_map(u32::to_be_bytes).collect();
        let body = Http2Body::new(Full::new(data.clone()), held(&conn));
        let (mut body, mut read, mut counted) = (task::spawn(body), Vec::new(), 0);
        assert_eq!(body.size_hint().exact(), Some(160_000));
        while !body.is_end_stream() {
            let (frame, said) = listen(|| body.enter(|cx, body| body.poll_frame(cx)));
            let mut piece = assert_ready!(frame).unwrap().unwrap().into_data().unwrap();
            assert!(piece.remaining() <= LARGEST);
            let Some(Said::Gave(slot)) = said else {
                panic!("{said:?}")
            };
            while piece.has_remaining() {
                let count = conn.taken(slot);
                read.extend(piece.copy_to_bytes(piece.remaining().min(9_000)));
                counted += u32::from(conn.taken(slot) != count);
            }
            assert_eq!(
                body.size_hint().exact(),
                Some((160_000 - read.len()) as u64)
            );
        }
        assert_eq!(read, data);
        assert_eq!(counted, 2 * 9, "but for the last piece's");
    }
}
