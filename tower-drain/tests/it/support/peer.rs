//! An HTTP/2 peer that speaks frames by hand.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::Dial;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A peer that sends only the frames of the test, and acknowledges nothing by itself.
pub(crate) struct Peer<Io = DuplexStream>(pub(crate) Io);

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Peer {
    pub(crate) async fn open(dial: &Dial) -> Self {
        Self::open_with(dial, &[]).await
    }

    /// With these settings: an identifier and a value each.
    pub(crate) async fn open_with(dial: &Dial, settings: &[(u16, u32)]) -> Self {
        Self::begin(dial.connect().0, settings).await
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Peer<Io> {
    pub(crate) async fn begin(io: Io, settings: &[(u16, u32)]) -> Self {
        let mut peer = Self(io);
        peer.0.write_all(PREFACE).await.unwrap();
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        peer.send(SETTINGS, 0, 0, &payload).await;
        peer
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        assert!(
            self.try_send(kind, flags, stream, payload).await,
            "the connection is there"
        );
    }

    pub(crate) async fn try_send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> bool {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.is_ok()
    }

    /// `GET /` on `http://test`, with a header block of indexed fields.
    pub(crate) async fn get(&mut self, stream: u32) -> bool {
        let fields = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
        self.try_send(HEADERS, END_STREAM | END_HEADERS, stream, &fields)
            .await
    }

    pub(crate) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
            payload,
        })
    }

    pub(crate) async fn wait_for(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

pub(crate) fn last_stream(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[..4].try_into().unwrap())
}
