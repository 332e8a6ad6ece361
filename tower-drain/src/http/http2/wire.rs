//! What a stream records of the frames that pass, and the acknowledgement that it makes for the server's own ping.

use std::{io, task::Poll};

use tokio::{io::ReadBuf, time::Instant};

use super::{
    super::{lifecycle::Ping, shared::ConnShared},
    frames::{Flood, Frames, Reason},
};

/// The frames of a connection, in both directions.
pub(in crate::http) struct Wire {
    frames: Frames,
    /// The kind of frames of which the peer has sent too many.
    flood: Option<Flood>,
}

// === impl Wire ===

impl Wire {
    pub(super) const fn new() -> Self {
        Self {
            frames: Frames::new(),
            flood: None,
        }
    }

    /// The kind of frames of which the peer has sent too many, if the connection ended for that reason.
    pub(super) const fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// The last frame for the peer, if one can be sent now.
    pub(super) fn goaway(&self, reason: Reason, debug: &str) -> Option<Vec<u8>> {
        self.frames.goaway(reason, debug)
    }

    pub(in crate::http) fn note_read(
        &mut self,
        bytes: &mut [u8],
        conn: &ConnShared,
    ) -> io::Result<()> {
        let frames = &mut self.frames;
        if let Err(flood) = frames.receive(bytes, &conn.settings.http2.frames, Instant::now()) {
            self.flood = Some(flood);
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                flood.as_str(),
            ));
        }
        conn.note_frames(frames.totals(), false);
        if frames.is_acknowledged() && conn.ping() == Ping::Unanswered {
            conn.set_ping(if frames.is_hidden() {
                Ping::Hidden
            } else {
                Ping::Answered
            });
        }
        Ok(())
    }

    /// Makes the acknowledgement of the GOAWAY's ping, so that hyper ends the connection gracefully: the peer has sent none,
    /// or long enough ago that no stream which it had opened before it received the GOAWAY is still in transit.
    pub(in crate::http) fn answer_ping(
        &mut self,
        buf: &mut ReadBuf<'_>,
        conn: &ConnShared,
    ) -> bool {
        if self.frames.is_between() && conn.ping() == Ping::Wanted {
            self.frames.answer();
            conn.set_ping(Ping::Answered);
        }
        self.say(buf)
    }

    /// Reads the rest of it.
    pub(in crate::http) fn say(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let piece = self.frames.say(buf.remaining());
        buf.put_slice(piece);
        !piece.is_empty()
    }

    pub(in crate::http) fn note_sent(
        &mut self,
        bufs: &[io::IoSlice<'_>],
        written: &Poll<io::Result<usize>>,
        conn: &ConnShared,
    ) {
        let Poll::Ready(Ok(written)) = written else {
            return;
        };
        let (frames, mut left) = (&mut self.frames, *written);
        let before = frames.totals();
        for buf in bufs {
            let sent = &buf[..buf.len().min(left)];
            frames.send(sent);
            left -= sent.len();
        }
        let totals = frames.totals();
        if totals != before {
            // After this data: if it has used up the window, waiting streams are blocked.
            conn.note_frames(totals, frames.is_window_shut());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        Accepted, Addr, Drain,
        http::{http2::session::expect_frames, stream::Stream},
    };

    #[tokio::test]
    async fn our_answer_to_a_goaways_ping_is_read_whole_and_nothing_comes_between() {
        let (drain, (mut client, server)) = (Drain::new(), tokio::io::duplex(64));
        let accepted = Accepted::new(&drain, server, Addr::Other, Addr::Other);
        let conn = Arc::new(ConnShared::new(
            &drain,
            Arc::default(),
            &accepted,
            Instant::now(),
        ));
        let mut stream = Stream::new(accepted, conn.clone());
        expect_frames(&mut stream, &conn);
        client.write_all(PREFACE).await.unwrap();
        stream.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        conn.set_ping(Ping::Wanted);
        let (mut head, mut payload, mut settings) = ([0; 9], [0; 8], [7; 9]);
        stream.read_exact(&mut head).await.unwrap();
        client
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        stream.read_exact(&mut payload).await.unwrap();
        stream.read_exact(&mut settings).await.unwrap();
        assert_eq!(
            (head[3..5].to_vec(), payload[0], settings[3..5].to_vec()),
            (vec![6, 1], 0x0b, vec![4, 0])
        );
        assert_eq!(conn.ping(), Ping::Answered);
    }

    const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
}
