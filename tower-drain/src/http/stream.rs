//! The stream under hyper: it detects the protocol, records what arrives and what cannot be written, lingers when it is
//! closed, and is cut when the drain is done.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{
    ahead::{Ahead, Peer},
    http2::Wire,
    kernel::unacknowledged,
    shared::ConnShared,
};
use crate::{
    accepted::{Accepted, Place},
    bell::Heard,
};

/// A stream that keeps its connection's guard, so that the drain waits for an upgraded stream in any task.
pub(super) struct Stream<Io> {
    io: Io,
    sniffed: Sniffed,
    ahead: Ahead,
    /// A read by hyper has returned `Pending`, so it is woken when bytes arrive: since the last flush, and since it got
    /// the last bytes.
    asked: bool,
    emptied: bool,
    /// The last bytes that hyper got end with a line.
    line_ended: bool,
    conn: Arc<ConnShared>,
    /// Set only for an upgraded connection, which is no longer in the future that would be cut. Its halves may be in two
    /// tasks, and both are woken.
    cut: [Option<Pin<Box<Heard>>>; 2],
    /// Set only for HTTP/2.
    pub(super) wire: Option<Box<Wire>>,
    close: Close,
    /// Shutdown of the write half was requested, and nothing else is written.
    ending: bool,
    place: Place,
}

/// How far the stream is closed.
enum Close {
    /// -> `Ended` when the peer has closed its half, `Lingering` when the write half is closed, or `Closed` if it need not
    /// linger.
    Open,
    /// The peer has closed its half. -> `Closed` when the write half is closed too.
    Ended,
    /// The peer may still be sending: closing with unread bytes resets the connection, and the response may be lost.
    /// -> `Closed` when the peer has closed too, or when the time is up.
    Lingering(Pin<Box<Sleep>>),
    /// Both halves are, or need not be waited for.
    Closed,
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
    /// It ended without a byte.
    Nothing,
}

/// The first bytes, which are read twice.
#[derive(Default)]
struct Sniffed {
    bytes: [u8; PREFACE.len()],
    filled: u8,
    given: u8,
}

// === impl Stream ===

impl<Io> Stream<Io> {
    pub(super) fn new(accepted: Accepted<Io>, conn: Arc<ConnShared>) -> Self {
        let (io, rest) = accepted.split();
        let (sniffed, place) = (Sniffed::default(), rest.into_place());
        let (cut, close) = ([None, None], Close::Open);
        Self {
            io,
            sniffed,
            ahead: Ahead::default(),
            asked: false,
            emptied: true,
            line_ended: true,
            conn,
            cut,
            wire: None,
            close,
            ending: false,
            place,
        }
    }

    /// An upgraded connection is in a task of the application, where only its stream can end it.
    fn check(&mut self, half: usize, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.conn.is_upgraded() {
            return Ok(());
        }
        let cut = self.cut[half].get_or_insert_with(|| Box::pin(self.conn.shared().done.heard()));
        match cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the drain is done",
            )),
            Poll::Pending => Ok(()),
        }
    }

    fn note_read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if bytes.is_empty() {
            self.close = Close::Ended;
            return Ok(());
        }
        if let Some(wire) = &mut self.wire {
            return wire.note_read(bytes, &self.conn);
        }
        self.conn.heard(bytes);
        self.emptied = false;
        self.line_ended = bytes.ends_with(b"\n");
        Ok(())
    }

    /// Reads the acknowledgement of the GOAWAY's ping that is made here, when it is due.
    fn answer_ping(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        self.wire
            .as_mut()
            .is_some_and(|wire| wire.answer_ping(buf, &self.conn))
    }

    /// Reads the rest of it.
    fn say(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        self.wire.as_mut().is_some_and(|wire| wire.say(buf))
    }

    fn note_sent(&mut self, bufs: &[io::IoSlice<'_>], written: &Poll<io::Result<usize>>) {
        if let Some(wire) = &mut self.wire {
            wire.note_sent(bufs, written, &self.conn);
        }
    }

    fn note_write<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>>
    where
        Io: 'static,
    {
        // hyper flushes before it polls for the shutdown, and a flush of nothing is no progress.
        if polled.is_pending() || !self.ending {
            self.conn.set_stalled(polled.is_pending());
        }
        self.answer_lifecycle(polled.is_pending());
        polled
    }

    fn answer_lifecycle(&self, stalled: bool)
    where
        Io: 'static,
    {
        if stalled && self.conn.is_asked() {
            self.conn.set_unacknowledged(unacknowledged(&self.io));
        }
    }

    fn linger(&self) -> Close {
        match self.conn.linger() {
            Duration::ZERO => Close::Closed,
            linger => Close::Lingering(Box::pin(sleep(linger))),
        }
    }
}

impl<Io: AsyncRead + Unpin> Stream<Io> {
    /// Reads until the protocol is known.
    pub(super) fn poll_sniff(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Protocol>> {
        self.place.register(&self.conn, cx.waker());
        loop {
            if let Some(protocol) = self.sniffed.protocol() {
                return Poll::Ready(Ok(protocol));
            }
            let mut buf = ReadBuf::new(self.sniffed.rest());
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let read = buf.filled().len();
            if read == 0 {
                return Poll::Ready(Ok(self.sniffed.ended()));
            }
            self.sniffed.fill(read);
        }
    }

    /// What was sniffed and what follows it, in one go: hyper wants 8 KiB of space for each read, so after a first one of
    /// 24 bytes it would double its buffer, which lasts as long as the connection.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let given = self.sniffed.give(buf) | self.ahead.give(buf);
        if given && buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            // The next read returns the end or the error again.
            Poll::Ready(Err(_)) | Poll::Pending if given => Poll::Ready(Ok(())),
            read => read,
        }
    }

    /// Bounds what hyper reads of a head.
    fn poll_bounded(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = self.conn.head_budget();
        if buf.remaining() <= budget {
            return self.poll_bytes(cx, buf);
        }
        if budget == 0 {
            // The connection handles it after this.
            self.conn.reject_head();
            return Poll::Pending;
        }
        let mut bounded = ReadBuf::new(buf.initialize_unfilled_to(budget));
        let read = self.poll_bytes(cx, &mut bounded);
        let given = bounded.filled().len();
        buf.advance(given);
        read
    }

    /// Detects that the peer of an HTTP/1 request is gone while hyper does not read. hyper reads nothing during a request
    /// while it has buffered bytes after it, even a line end, and nothing of a body that the app does not poll.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let asked = std::mem::take(&mut self.asked);
        if self.wire.is_some() {
            return Ok(());
        }
        if !self.emptied && !self.line_ended {
            self.conn.note_behind();
        }
        if asked || !self.conn.must_watch() {
            return Ok(());
        }
        let peer = self.ahead.read(&mut self.io, cx)?;
        if peer == Peer::Closed && !self.conn.settings.half_close {
            let gone = "the client closed the connection before its response";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, gone));
        }
        Ok(())
    }

    /// Reads what the peer still sends, and discards it.
    fn poll_read_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 1024];
        for _ in 0..READ_OUT {
            let mut buf = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        // It sends more than is worth reading for the end of a response.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Stream<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(READ, cx)?;
        // No bytes of the peer come between two pieces.
        if self.say(buf) {
            return Poll::Ready(Ok(()));
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        match self.poll_bounded(cx, buf)? {
            Poll::Ready(()) if room == 0 => Poll::Ready(Ok(())),
            Poll::Ready(()) => Poll::Ready(self.note_read(&mut buf.filled_mut()[before..])),
            Poll::Pending if self.answer_ping(buf) => Poll::Ready(Ok(())),
            Poll::Pending => {
                (self.asked, self.emptied) = (true, true);
                Poll::Pending
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin + 'static> Stream<Io> {
    /// Closes the write half; TLS writes its close notification.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ending = true;
        let ended = Pin::new(&mut self.io).poll_shutdown(cx);
        self.conn.set_stalled(ended.is_pending());
        self.answer_lifecycle(ended.is_pending());
        ended
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + 'static> AsyncWrite for Stream<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(WRITE, cx)?;
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_sent(&[io::IoSlice::new(buf)], &written);
        if written.is_pending() {
            self.watch(cx)?;
        }
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(WRITE, cx)?;
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_sent(bufs, &written);
        if written.is_pending() {
            self.watch(cx)?;
        }
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(WRITE, cx)?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx)?;
        self.note_write(flushed)
    }

    /// Closes the write half, and then reads for a while what the peer still sends.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The halves of a tunnel close independently.
        if this.conn.is_upgraded() {
            return Pin::new(&mut this.io).poll_shutdown(cx);
        }
        loop {
            this.close = match &mut this.close {
                Close::Open => {
                    ready!(this.poll_end(cx))?;
                    this.linger()
                }
                Close::Ended => {
                    ready!(this.poll_end(cx))?;
                    Close::Closed
                }
                Close::Lingering(alarm) => {
                    if alarm.as_mut().poll(cx).is_pending() {
                        ready!(this.poll_read_out(cx));
                    }
                    Close::Closed
                }
                Close::Closed => return Poll::Ready(Ok(())),
            };
        }
    }
}

impl<Io> Drop for Stream<Io> {
    fn drop(&mut self) {
        self.conn.ended();
    }
}

// === impl Sniffed ===

impl Sniffed {
    fn protocol(&self) -> Option<Protocol> {
        let bytes = self.bytes();
        if bytes != &PREFACE[..bytes.len()] {
            return Some(Protocol::Http1);
        }
        (bytes.len() == PREFACE.len()).then_some(Protocol::Http2)
    }

    fn ended(&self) -> Protocol {
        // A partial preface is an invalid request, to which HTTP/1 responds.
        if self.filled == 0 {
            Protocol::Nothing
        } else {
            Protocol::Http1
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.filled)]
    }

    fn rest(&mut self) -> &mut [u8] {
        &mut self.bytes[usize::from(self.filled)..]
    }

    fn fill(&mut self, read: usize) {
        // At most 24.
        self.filled += read as u8;
    }

    /// Copies the bytes to their second reader; `false` if there are none left.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let bytes = &self.bytes[usize::from(self.given)..usize::from(self.filled)];
        let given = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..given]);
        self.given += given as u8;
        given > 0
    }
}

/// The halves.
const READ: usize = 0;
const WRITE: usize = 1;
/// How many pieces are read out in one go.
const READ_OUT: usize = 16;
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn sniffed(bytes: &[u8]) -> Sniffed {
        let mut sniffed = Sniffed::default();
        sniffed.rest()[..bytes.len()].copy_from_slice(bytes);
        sniffed.fill(bytes.len());
        sniffed
    }

    #[test]
    fn the_protocol_is_known_at_the_first_byte_that_differs() {
        assert_eq!(sniffed(b"").protocol(), None);
        assert_eq!(sniffed(b"P").protocol(), None);
        assert_eq!(sniffed(b"PO").protocol(), Some(Protocol::Http1));
        assert_eq!(
            sniffed(b"GET / HTTP/1.1\r\n").protocol(),
            Some(Protocol::Http1)
        );
        assert_eq!(sniffed(&PREFACE[..23]).protocol(), None);
        assert_eq!(sniffed(PREFACE).protocol(), Some(Protocol::Http2));
    }

    #[test]
    fn what_was_sniffed_is_read_again_in_pieces_of_any_size() {
        let mut sniffed = sniffed(b"GET /");
        let (mut space, mut seen) = ([0; 2], Vec::new());
        loop {
            let mut buf = ReadBuf::new(&mut space);
            if !sniffed.give(&mut buf) {
                break;
            }
            seen.extend_from_slice(buf.filled());
        }
        assert_eq!(seen, b"GET /");
    }
}
