//! The end of a connection that is not served any further: nothing arrived in time, a head took too long, the protocol is
//! not supported, or an HTTP/2 peer misbehaves. hyper would close without a response, and with a reset.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};

use super::stream::Stream;
use crate::limit::PATIENCE;

/// Writes the last bytes, closes, lingers.
pub(super) struct Late<Io> {
    stream: Stream<Io>,
    unwritten: Bytes,
    alarm: Pin<Box<Sleep>>,
}

// === impl Late ===

impl<Io> Late<Io> {
    pub(super) fn new(stream: Stream<Io>, answer: Bytes) -> Self {
        Self {
            stream,
            unwritten: answer,
            alarm: Box::pin(sleep(2 * PATIENCE)),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + 'static> Future for Late<Io> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.alarm.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while !this.unwritten.is_empty() {
            match ready!(Pin::new(&mut this.stream).poll_write(cx, &this.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => this.unwritten.advance(written),
            }
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

pub(super) const TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
pub(super) const TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
pub(super) const NOT_SPOKEN: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
