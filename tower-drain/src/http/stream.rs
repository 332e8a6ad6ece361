//! The stream under hyper: it sniffs the protocol, notes what comes in, and is cut when the drain is done.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::app::Conversation;
use crate::{accepted::Accepted, bell::Heard};

/// A stream that keeps its connection's guard: wherever an upgrade takes it, the drain waits for it.
pub(super) struct Stream<Io> {
    io: Io,
    sniffed: Sniffed,
    conversation: Arc<Conversation>,
    /// Set only for an upgraded connection, which has left the future that would be cut.
    cut: Option<Pin<Box<Heard>>>,
    _rest: Accepted<()>,
}

/// What a connection speaks.
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
    pub(super) fn new(accepted: Accepted<Io>, conversation: Arc<Conversation>) -> Self {
        let (io, rest) = accepted.split();
        Self { io, sniffed: Sniffed::default(), conversation, cut: None, _rest: rest }
    }

    /// An upgraded connection lives in a task of the user's, where only its stream can end it.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.conversation.is_upgraded() {
            return Ok(());
        }
        let cut = self.cut.get_or_insert_with(|| Box::pin(self.conversation.shared().done.heard()));
        match cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the drain is done")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<Io: AsyncRead + Unpin> Stream<Io> {
    /// Reads until it is clear which protocol it is.
    pub(super) fn poll_sniff(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Protocol>> {
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
}

impl<Io: AsyncRead + Unpin> AsyncRead for Stream<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        if !self.sniffed.give(buf) {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        }
        if buf.filled().len() > before {
            self.conversation.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Stream<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<Io> Drop for Stream<Io> {
    fn drop(&mut self) {
        self.conversation.ended();
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
        // Half a preface is a broken request, which HTTP/1 has an answer for.
        if self.filled == 0 { Protocol::Nothing } else { Protocol::Http1 }
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

    /// Gives the bytes to their second reader; `false` if there are none left.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let bytes = &self.bytes[usize::from(self.given)..usize::from(self.filled)];
        let given = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..given]);
        self.given += given as u8;
        given > 0
    }
}

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
    fn the_protocol_is_told_at_the_first_byte_that_differs() {
        assert_eq!(sniffed(b"").protocol(), None);
        assert_eq!(sniffed(b"P").protocol(), None);
        assert_eq!(sniffed(b"PO").protocol(), Some(Protocol::Http1));
        assert_eq!(sniffed(b"GET / HTTP/1.1\r\n").protocol(), Some(Protocol::Http1));
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
