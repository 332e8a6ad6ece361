//! Bytes of an HTTP/1 connection that were read before hyper asked for them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes buffered for hyper. Most connections never have any, so the empty buffer is one word, and the first bytes allocate.
#[derive(Debug, Default)]
pub(super) struct Ahead(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    given: usize,
}

/// The state of the peer's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    There,
    /// Closed: the peer sends no more.
    Closed,
}

// === impl Ahead ===

impl Ahead {
    /// Copies buffered bytes to hyper; `false` if there are none.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(Waiting { bytes, given }) = self.0.as_deref_mut() else {
            return false;
        };
        let now = (bytes.len() - *given).min(buf.remaining());
        buf.put_slice(&bytes[*given..*given + now]);
        *given += now;
        if *given == bytes.len() {
            self.0 = None;
        }
        now > 0
    }

    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.bytes.len())
    }

    /// Reads until the socket is empty, the peer has closed its half, or the buffer is full. An error counts as closed.
    pub(super) fn read<Io: AsyncRead + Unpin>(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> io::Result<Peer> {
        let mut bytes = [0; 1024];
        while self.len() < MOST {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buf)? {
                Poll::Ready(()) if buf.filled().is_empty() => return Ok(Peer::Closed),
                Poll::Ready(()) => {
                    let waiting = self.0.get_or_insert_default();
                    waiting.bytes.extend_from_slice(buf.filled());
                }
                Poll::Pending => break,
            }
        }
        Ok(Peer::There)
    }
}

/// A few requests of the usual size: the bound on what a client can have buffered.
const MOST: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn it_is_bounded_and_loses_nothing() {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        let sent: Vec<u8> = (0..50_000_u32).map(|at| at as u8).collect();
        client.write_all(&sent).await.unwrap();
        drop(client);
        let (mut ahead, mut read, mut ended) = (Ahead::default(), Vec::new(), false);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while !ended || ahead.len() > 0 {
            ended = ahead.read(&mut server, &mut cx).unwrap() == Peer::Closed;
            assert!(ahead.len() < MOST + 1024);
            let mut space = [0; 700];
            loop {
                let mut buf = ReadBuf::new(&mut space);
                if !ahead.give(&mut buf) {
                    break;
                }
                read.extend_from_slice(buf.filled());
            }
        }
        assert_eq!(read, sent);
        assert!(ahead.0.is_none());
    }
}
