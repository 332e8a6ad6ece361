//! A stream that is lent to hyper for an HTTP/2 connection and returned when hyper has ended: a last frame may have to be
//! sent to the peer.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::stream::Stream;

pub(super) struct Lent<Io> {
    /// Until it is dropped.
    stream: Option<Stream<Io>>,
    owner: Arc<Mutex<Option<Stream<Io>>>>,
}

/// Has the stream once the [`Lent`] one is dropped.
pub(super) struct Owner<Io>(Arc<Mutex<Option<Stream<Io>>>>);

pub(super) fn lend<Io>(stream: Stream<Io>) -> (Lent<Io>, Owner<Io>) {
    let owner = Arc::new(Mutex::new(None));
    let lent = Lent {
        stream: Some(stream),
        owner: owner.clone(),
    };
    (lent, Owner(owner))
}

// === impl Owner ===

impl<Io> Owner<Io> {
    pub(super) fn take(&self) -> Option<Stream<Io>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

// === impl Lent ===

impl<Io> Lent<Io> {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut Stream<Io>>
    where
        Io: Unpin,
    {
        Pin::new(self.get_mut().stream.as_mut().expect("until it is dropped"))
    }
}

impl<Io> Drop for Lent<Io> {
    fn drop(&mut self) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = self.stream.take();
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Lent<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + 'static> AsyncWrite for Lent<Io> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
