//! The state machine of an HTTP/2 connection's frames, in both directions: which streams are open, and how much a peer
//! sends that costs it nothing.
//!
//! hyper reports neither resets nor control frames, nor the acknowledgement of its GOAWAY's ping, nor when the last byte
//! of a response was sent. All of it can be read from the bytes.

use std::time::Duration;

use tokio::time::Instant;

/// Follows the frames in the bytes of both directions, however they are cut.
#[derive(Debug)]
pub(super) struct Frames {
    received: Scanner,
    sent: Scanner,
    /// Streams that are not closed, by ascending identifier.
    streams: Vec<OpenStream>,
    /// The header block that has begun.
    block: Option<Block>,
    /// The greatest identifier a peer has used.
    newest: u32,
    /// The last stream identifier in the GOAWAY that was sent last.
    goaway: u32,
    /// Frames sent that the peer has to acknowledge.
    pings: u32,
    settings: u32,
    /// The peer's window for the whole connection.
    window: i64,
    resets: Budget,
    controls: Budget,
    totals: Totals,
    acknowledged: bool,
    hidden: bool,
    /// The rest of the acknowledgement that is made here.
    unsaid: &'static [u8],
}

/// The limits of what peers may send in ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Early resets, less the streams with a response.
    pub(super) resets: u32,
    /// Control frames without a stream's frame between them.
    pub(super) controls: u32,
}

/// The kind of frames of which a peer has sent too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flood {
    Resets,
    Controls,
}

/// The error code of a GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NoError,
    EnhanceYourCalm,
}

/// Totals of the connection's streams. The first two are the open streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Streams whose response has not been sent completely.
    pub(super) responses: u32,
    /// Streams whose response has, but whose request has not ended.
    pub(super) uploads: u32,
    /// Grows with each frame of a response. It may wrap.
    pub(super) sent: u32,
    /// Grows with each frame of a request. It may wrap.
    pub(super) received: u32,
}

/// The frame boundaries in one direction.
#[derive(Debug)]
struct Scanner {
    /// Of the preface, then of each frame's payload.
    skip: usize,
    /// The head of a frame, and for some the beginning of its payload.
    head: [u8; HEAD + INSIDE],
    filled: usize,
    /// The stream that the frame under way ends.
    ends: Option<u32>,
}

struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
    length: usize,
    payload: [u8; INSIDE],
}

#[derive(Debug)]
struct OpenStream {
    id: u32,
    began: Instant,
    /// Its response has begun.
    answered: bool,
    sent_end: bool,
    received_end: bool,
}

#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    /// The frame under way is its last.
    whole: bool,
}

#[derive(Debug)]
struct Budget {
    began: Option<Instant>,
    spent: u32,
}

// === impl Frames ===

impl Frames {
    pub(super) const fn new() -> Self {
        Self {
            received: Scanner::new(PREFACE),
            sent: Scanner::new(0),
            streams: Vec::new(),
            block: None,
            newest: 0,
            goaway: MAX_STREAM,
            pings: 0,
            settings: 0,
            window: DEFAULT_WINDOW,
            resets: Budget::new(),
            controls: Budget::new(),
            totals: Totals {
                responses: 0,
                uploads: 0,
                sent: 0,
                received: 0,
            },
            acknowledged: false,
            hidden: false,
            unsaid: &[],
        }
    }

    /// Whether the ping of the GOAWAY was acknowledged.
    pub(super) const fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// Whether hyper does not know of that.
    pub(super) const fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// Whether a frame may be put here between those that are received.
    pub(super) const fn is_between(&self) -> bool {
        self.received.is_between() && self.block.is_none()
    }

    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether the peer takes no more data on any stream.
    pub(super) const fn is_window_shut(&self) -> bool {
        self.window <= 0
    }

    /// The acknowledgement will be made here.
    pub(super) const fn answer(&mut self) {
        self.unsaid = &ANSWER;
    }

    /// As much of it as there is room for. The reader may have room for the head of a frame only.
    pub(super) fn say(&mut self, room: usize) -> &'static [u8] {
        let (now, later) = self.unsaid.split_at(self.unsaid.len().min(room));
        self.unsaid = later;
        now
    }

    /// A last frame to send: `None` in the middle of a frame that is being sent.
    pub(super) fn goaway(&self, reason: Reason, debug: &str) -> Option<Vec<u8>> {
        if !self.sent.is_between() {
            return None;
        }
        let length = (GOAWAY_LENGTH + debug.len()) as u32;
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([GOAWAY_FRAME, 0, 0, 0, 0, 0]);
        frame.extend(self.newest.min(self.goaway).to_be_bytes());
        frame.extend(reason.code().to_be_bytes());
        frame.extend_from_slice(debug.as_bytes());
        Some(frame)
    }

    /// Follows the bytes from the peer. The acknowledgement of the GOAWAY's ping is hidden from hyper if it arrives in one
    /// piece.
    pub(super) fn receive(
        &mut self,
        bytes: &mut [u8],
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Flood> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.received.pass(&bytes[at..]);
            if let Some(head) = self.received.head() {
                self.begin_received(&head, &mut bytes[..at], limits, now)?;
            }
            if self.received.is_between() {
                self.end_received(now);
            }
        }
        Ok(())
    }

    /// Follows the bytes to the peer.
    pub(super) fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let passed = self.sent.pass(bytes);
            bytes = &bytes[passed..];
            if let Some(head) = self.sent.head() {
                self.begin_sent(&head);
            }
            if self.sent.is_between()
                && let Some(stream) = self.sent.ends.take()
            {
                self.end_response(stream);
            }
        }
    }

    /// `read`: all up to the end of the head.
    fn begin_received(
        &mut self,
        head: &Head,
        read: &mut [u8],
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Flood> {
        let cost = match head.kind {
            HEADERS_FRAME => {
                self.block = Some(Block {
                    stream: head.stream,
                    ends_stream: head.has(END_STREAM),
                    whole: head.has(END_HEADERS),
                });
                self.note_received();
                FREE
            }
            CONTINUATION_FRAME => {
                let ends = head.has(END_HEADERS);
                if let Some(block) = &mut self.block {
                    block.whole = ends;
                }
                if head.length > 0 || ends {
                    FREE
                } else {
                    CONTROL
                }
            }
            DATA_FRAME if head.length > 0 || head.has(END_STREAM) => {
                self.received.ends = head.has(END_STREAM).then_some(head.stream);
                self.note_received();
                FREE
            }
            RESET_FRAME => match self.remove(head.stream) {
                Some(stream) if stream.is_early(now) => {
                    let within = self.resets.spend(1, limits.resets, now);
                    return if within { Ok(()) } else { Err(Flood::Resets) };
                }
                Some(_) => FREE,
                None => CONTROL,
            },
            PING_FRAME if head.has(ACK) => {
                if head.payload == GOAWAY_PING {
                    self.acknowledged = true;
                    self.hidden = hide(read);
                }
                acknowledge(&mut self.pings)
            }
            SETTINGS_FRAME if head.has(ACK) => acknowledge(&mut self.settings),
            WINDOW_UPDATE_FRAME => {
                if head.stream == 0 {
                    self.window += i64::from(head.number() & MAX_STREAM);
                }
                UPDATE
            }
            _ => CONTROL,
        };
        let max = limits.controls.saturating_mul(CONTROL);
        if cost == FREE || self.controls.spend(cost, max, now) {
            Ok(())
        } else {
            Err(Flood::Controls)
        }
    }

    fn end_received(&mut self, now: Instant) {
        if let Some(stream) = self.received.ends.take() {
            self.end_request(stream);
        }
        if let Some(block) = self.block.take_if(|block| block.whole) {
            if block.stream > self.newest {
                self.open(block.stream, now);
            }
            if block.ends_stream {
                self.end_request(block.stream);
            }
        }
    }

    fn begin_sent(&mut self, head: &Head) {
        match head.kind {
            HEADERS_FRAME | DATA_FRAME => {
                let (ends, counts) = (head.has(END_STREAM), head.length > 0);
                self.sent.ends = ends.then_some(head.stream);
                if head.kind == DATA_FRAME {
                    self.window -= head.length as i64;
                } else if let Some(stream) = self.find(head.stream) {
                    self.streams[stream].answered = true;
                }
                if ends || counts {
                    self.totals.sent = self.totals.sent.wrapping_add(1);
                    self.controls.restart();
                }
            }
            RESET_FRAME => drop(self.remove(head.stream)),
            PING_FRAME if !head.has(ACK) => self.pings += 1,
            SETTINGS_FRAME if !head.has(ACK) => self.settings += 1,
            GOAWAY_FRAME => {
                // Streams beyond it get neither a response nor a reset any more.
                self.goaway = head.number() & MAX_STREAM;
                while let Some(id) = self.streams.last().map(|stream| stream.id)
                    && id > self.goaway
                {
                    self.remove(id);
                }
            }
            _ => {}
        }
    }

    /// A frame of a request has arrived.
    const fn note_received(&mut self) {
        self.totals.received = self.totals.received.wrapping_add(1);
        self.controls.restart();
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.streams
            .binary_search_by_key(&id, |stream| stream.id)
            .ok()
    }

    fn open(&mut self, id: u32, began: Instant) {
        self.newest = id;
        if id <= self.goaway {
            self.totals.responses += 1;
            self.streams.push(OpenStream {
                id,
                began,
                answered: false,
                sent_end: false,
                received_end: false,
            });
        }
    }

    fn end_request(&mut self, id: u32) {
        let Some(at) = self.find(id) else { return };
        self.streams[at].received_end = true;
        if self.streams[at].sent_end {
            self.remove(id);
        }
    }

    fn end_response(&mut self, id: u32) {
        let Some(at) = self.find(id) else { return };
        let stream = &mut self.streams[at];
        if !std::mem::replace(&mut stream.sent_end, true) {
            self.totals.responses -= 1;
            self.totals.uploads += 1;
            self.resets.give_back();
        }
        if stream.received_end {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) -> Option<OpenStream> {
        let stream = self.streams.remove(self.find(id)?);
        if stream.sent_end {
            self.totals.uploads -= 1;
        } else {
            self.totals.responses -= 1;
        }
        Some(stream)
    }
}

// === impl Flood ===

impl Flood {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Resets => "too many streams reset",
            Self::Controls => "too many control frames",
        }
    }
}

// === impl Reason ===

impl Reason {
    const fn code(self) -> u32 {
        match self {
            Self::NoError => 0,
            Self::EnhanceYourCalm => 11,
        }
    }
}

// === impl Scanner ===

impl Scanner {
    const fn new(skip: usize) -> Self {
        Self {
            skip,
            head: [0; HEAD + INSIDE],
            filled: 0,
            ends: None,
        }
    }

    /// Whether the last byte was a frame's last.
    const fn is_between(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    /// Takes bytes to skip, or a piece of the head, and returns how many.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        if self.skip > 0 {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            return skipped;
        }
        let taken = (self.wants() - self.filled).min(bytes.len());
        self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// The head of a frame, once, when it is complete.
    fn head(&mut self) -> Option<Head> {
        if self.skip > 0 || self.filled < self.wants() {
            return None;
        }
        let [_, _, _, kind, flags, stream @ .., _, _, _, _, _, _, _, _] = self.head;
        let mut payload = [0; INSIDE];
        let inside = self.filled - HEAD;
        payload[..inside].copy_from_slice(&self.head[HEAD..self.filled]);
        let length = self.length();
        (self.skip, self.filled) = (length - inside, 0);
        Some(Head {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & MAX_STREAM,
            length,
            payload,
        })
    }

    /// Inspects the payload of some frames.
    fn wants(&self) -> usize {
        let looked_into = self.filled >= HEAD
            && matches!(
                self.head[3],
                PING_FRAME | WINDOW_UPDATE_FRAME | GOAWAY_FRAME
            );
        if looked_into {
            HEAD + self.length().min(INSIDE)
        } else {
            HEAD
        }
    }

    const fn length(&self) -> usize {
        u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize
    }
}

// === impl Head ===

impl Head {
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The first of its payload.
    const fn number(&self) -> u32 {
        let [a, b, c, d, ..] = self.payload;
        u32::from_be_bytes([a, b, c, d])
    }
}

// === impl OpenStream ===

impl OpenStream {
    /// Whether the request has cost the peer no more than opening and resetting it. The reset of an older one may have
    /// been due to a deadline.
    fn is_early(&self, now: Instant) -> bool {
        !self.answered && now < self.began + EARLY
    }
}

// === impl Budget ===

impl Budget {
    const fn new() -> Self {
        Self {
            began: None,
            spent: 0,
        }
    }

    fn spend(&mut self, cost: u32, max: u32, now: Instant) -> bool {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            *self = Self {
                began: Some(now),
                spent: 0,
            };
        }
        self.spent = self.spent.saturating_add(cost);
        self.spent <= max
    }

    const fn give_back(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }

    const fn restart(&mut self) {
        self.spent = 0;
    }
}

/// An acknowledgement is free if there is something to acknowledge.
const fn acknowledge(pending: &mut u32) -> u32 {
    if *pending == 0 {
        return CONTROL;
    }
    *pending -= 1;
    FREE
}

/// Makes the frame at the end of `read` one of an unknown type, which is ignored; `false` if it does not begin there.
fn hide(read: &mut [u8]) -> bool {
    let Some(at) = read.len().checked_sub(ANSWER.len()) else {
        return false;
    };
    read[at + 3] = UNKNOWN_FRAME;
    true
}

/// The acknowledgement of the GOAWAY's ping.
const ANSWER: [u8; HEAD + 8] = [
    0, 0, 8, PING_FRAME, ACK, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54,
];

/// The payload of the ping that the h2 crate sends with a GOAWAY. The tests with a peer that never acknowledges it fail if
/// it changes.
const GOAWAY_PING: [u8; INSIDE] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
const WINDOW: Duration = Duration::from_secs(10);
/// How soon after its request a reset counts as early.
const EARLY: Duration = Duration::from_secs(1);
/// The cost of frames. A client sends mostly window updates, two or more for each frame that it receives.
const FREE: u32 = 0;
const UPDATE: u32 = 1;
const CONTROL: u32 = 10;
const PREFACE: usize = 24;
const HEAD: usize = 9;
/// How much of a payload is inspected.
const INSIDE: usize = 8;
/// Last stream and reason.
const GOAWAY_LENGTH: usize = 8;
/// The first bit of a stream's identifier, and of a window's increment, is reserved.
const MAX_STREAM: u32 = 0x7fff_ffff;
const DEFAULT_WINDOW: i64 = 65_535;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const DATA_FRAME: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const RESET_FRAME: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const PING_FRAME: u8 = 6;
const GOAWAY_FRAME: u8 = 7;
const WINDOW_UPDATE_FRAME: u8 = 8;
const CONTINUATION_FRAME: u8 = 9;
/// Reserved for experiments (RFC 9113, 11.2), so it is not in use.
const UNKNOWN_FRAME: u8 = 0xfa;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        resets: 100,
        controls: 1000,
    };
    const PRIORITY_FRAME: u8 = 2;

    fn frame_of(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        frame_of(1, kind, flags, payload)
    }

    fn opened() -> Frames {
        let mut frames = Frames::new();
        frames
            .receive(&mut [0; PREFACE], &LIMITS, Instant::now())
            .unwrap();
        frames
    }

    fn receive(frames: &mut Frames, frame: &[u8], now: Instant) -> Result<(), Flood> {
        frames.receive(&mut frame.to_vec(), &LIMITS, now)
    }

    fn ask(frames: &mut Frames, stream: u32, now: Instant) {
        let headers = frame_of(stream, HEADERS_FRAME, END_HEADERS | END_STREAM, b"get");
        receive(frames, &headers, now).unwrap();
    }

    fn answer(frames: &mut Frames, stream: u32) {
        frames.send(&frame_of(stream, HEADERS_FRAME, END_HEADERS, b"ok"));
        frames.send(&frame_of(stream, DATA_FRAME, END_STREAM, b"body"));
    }

    fn open(frames: &Frames) -> (u32, u32) {
        (frames.totals.responses, frames.totals.uploads)
    }

    #[test]
    fn the_answer_to_our_goaway_is_seen_and_no_other() {
        let now = Instant::now();
        let mut frames = opened();
        assert!(frames.is_between());
        for mut other in [
            frame(PING_FRAME, ACK, &[7; 8]),
            frame(PING_FRAME, 0, &GOAWAY_PING),
            frame(DATA_FRAME, 1, &ANSWER),
        ] {
            let before = other.clone();
            frames.receive(&mut other, &LIMITS, now).unwrap();
            assert!(!frames.is_acknowledged() && frames.is_between());
            assert_eq!(other, before);
        }
        let mut answer = [
            &frame(DATA_FRAME, 0, b"before")[..],
            &ANSWER,
            &frame(DATA_FRAME, 0, b"after"),
        ]
        .concat();
        frames.receive(&mut answer, &LIMITS, now).unwrap();
        assert!(frames.is_acknowledged() && frames.is_hidden() && frames.is_between());
        assert_eq!(answer[15..][..9], [0, 0, 8, UNKNOWN_FRAME, ACK, 0, 0, 0, 0]);
    }

    #[test]
    fn an_acknowledgement_made_here_is_read_whole_with_any_buffer_size() {
        let mut frames = opened();
        assert_eq!(frames.say(100), b"");
        frames.answer();
        let pieces: Vec<u8> = [9, 0, 3, 100, 100]
            .into_iter()
            .flat_map(|room| frames.say(room))
            .copied()
            .collect();
        assert_eq!(pieces, ANSWER);
    }

    #[test]
    fn an_answer_in_two_pieces_is_seen_and_not_hidden() {
        let mut frames = opened();
        let (mut head, mut tail) = (ANSWER[..12].to_vec(), ANSWER[12..].to_vec());
        frames.receive(&mut head, &LIMITS, Instant::now()).unwrap();
        frames.receive(&mut tail, &LIMITS, Instant::now()).unwrap();
        assert!(frames.is_acknowledged() && !frames.is_hidden());
        assert_eq!([head, tail].concat(), ANSWER);
    }

    #[test]
    fn nothing_may_come_between_the_frames_of_a_header_block() {
        let (mut frames, now) = (opened(), Instant::now());
        receive(&mut frames, &frame(HEADERS_FRAME, 0, b"half"), now).unwrap();
        assert!(!frames.is_between() && open(&frames) == (0, 0));
        let rest = frame(CONTINUATION_FRAME, END_HEADERS, b"half");
        receive(&mut frames, &rest, now).unwrap();
        assert!(frames.is_between() && open(&frames) == (1, 0));
    }

    #[test]
    fn a_stream_is_open_until_both_its_halves_have_ended() {
        let (mut frames, now) = (opened(), Instant::now());
        ask(&mut frames, 1, now);
        receive(
            &mut frames,
            &frame_of(3, HEADERS_FRAME, END_HEADERS, b"post"),
            now,
        )
        .unwrap();
        assert_eq!(open(&frames), (2, 0));
        answer(&mut frames, 1);
        assert_eq!(open(&frames), (1, 0));
        answer(&mut frames, 3);
        assert_eq!(open(&frames), (0, 1), "its request goes on");
        receive(&mut frames, &frame_of(3, DATA_FRAME, 0, b"data"), now).unwrap();
        assert_eq!(open(&frames), (0, 1));
        let trailers = frame_of(3, HEADERS_FRAME, END_HEADERS | END_STREAM, b"end");
        receive(&mut frames, &trailers, now).unwrap();
        assert_eq!(open(&frames), (0, 0));
    }

    #[test]
    fn a_response_has_left_with_the_last_byte_of_its_last_frame() {
        let (mut frames, now) = (opened(), Instant::now());
        ask(&mut frames, 1, now);
        let (head, tail) = (frame(DATA_FRAME, END_STREAM, b"body")[..11].to_vec(), b"dy");
        frames.send(&head);
        assert_eq!(open(&frames), (1, 0));
        frames.send(tail);
        assert_eq!(open(&frames), (0, 0));
    }

    #[test]
    fn resets_of_either_side_close_a_stream_and_so_does_the_last_goaway() {
        let (mut frames, now) = (opened(), Instant::now());
        for stream in [1, 3, 5, 7] {
            ask(&mut frames, stream, now);
        }
        receive(&mut frames, &frame_of(1, RESET_FRAME, 0, &[0; 4]), now).unwrap();
        frames.send(&frame_of(5, RESET_FRAME, 0, &[0; 4]));
        assert_eq!(open(&frames), (2, 0));
        frames.send(&frame_of(
            0,
            GOAWAY_FRAME,
            0,
            &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ));
        assert_eq!(open(&frames), (2, 0));
        frames.send(&frame_of(0, GOAWAY_FRAME, 0, &[0, 0, 0, 3, 0, 0, 0, 0]));
        assert_eq!(open(&frames), (1, 0), "7 will not be answered");
        ask(&mut frames, 9, now);
        assert_eq!(open(&frames), (1, 0));
    }

    #[test]
    fn the_last_goaway_names_the_newest_stream_and_never_a_newer_one_than_before() {
        let mut frames = opened();
        ask(&mut frames, 5, Instant::now());
        let goaway = frames.goaway(Reason::EnhanceYourCalm, "why").unwrap();
        assert_eq!(goaway, *b"\0\0\x0b\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x0bwhy");
        frames.send(&frame_of(0, GOAWAY_FRAME, 0, &[0, 0, 0, 3, 0, 0, 0, 0]));
        assert_eq!(
            frames.goaway(Reason::NoError, "").unwrap()[9..],
            [0, 0, 0, 3, 0, 0, 0, 0]
        );
        frames.send(&frame(DATA_FRAME, 0, b"data")[..10]);
        assert_eq!(
            frames.goaway(Reason::NoError, ""),
            None,
            "in the middle of a frame"
        );
    }

    #[test]
    fn the_connections_window_is_followed() {
        let (mut frames, now) = (opened(), Instant::now());
        ask(&mut frames, 1, now);
        for _ in 0..4 {
            assert!(!frames.is_window_shut());
            frames.send(&frame(DATA_FRAME, 0, &[0; 16_384]));
        }
        assert!(frames.is_window_shut());
        receive(
            &mut frames,
            &frame_of(1, WINDOW_UPDATE_FRAME, 0, &[0, 0, 9, 0]),
            now,
        )
        .unwrap();
        assert!(frames.is_window_shut(), "that was the stream's");
        receive(
            &mut frames,
            &frame_of(0, WINDOW_UPDATE_FRAME, 0, &[0, 0, 9, 0]),
            now,
        )
        .unwrap();
        assert!(!frames.is_window_shut());
    }

    /// Opens a stream and resets it after some time.
    fn reset_after(
        frames: &mut Frames,
        stream: u32,
        now: Instant,
        wait: Duration,
    ) -> Result<(), Flood> {
        ask(frames, stream, now);
        receive(
            frames,
            &frame_of(stream, RESET_FRAME, 0, &[0; 4]),
            now + wait,
        )
    }

    #[test]
    fn early_resets_have_a_budget_that_comes_back_with_time_and_with_answers() {
        let start = Instant::now();
        let mut frames = opened();
        for request in 0..LIMITS.resets {
            reset_after(&mut frames, request * 2 + 1, start, Duration::ZERO).unwrap();
        }
        let one_more = reset_after(
            &mut frames,
            1001,
            start + Duration::from_secs(9),
            Duration::ZERO,
        );
        assert_eq!(one_more, Err(Flood::Resets));

        let mut frames = opened();
        for second in 0..1000 {
            let now = start + Duration::from_secs(u64::from(second));
            reset_after(&mut frames, second * 2 + 1, now, Duration::ZERO).expect("one a second");
        }

        let mut frames = opened();
        for request in 0..1000 {
            ask(&mut frames, request * 4 + 1, start);
            reset_after(&mut frames, request * 4 + 3, start, Duration::ZERO).expect("every other");
            answer(&mut frames, request * 4 + 1);
        }
    }

    #[test]
    fn a_reset_that_is_late_or_of_a_response_that_has_begun_is_none_of_an_attack() {
        let (mut frames, start) = (opened(), Instant::now());
        for request in 0..1000 {
            reset_after(&mut frames, request * 2 + 1, start, EARLY).unwrap();
        }
        for request in 1000..2000 {
            let stream = request * 2 + 1;
            ask(&mut frames, stream, start);
            frames.send(&frame_of(stream, HEADERS_FRAME, END_HEADERS, b"ok"));
            receive(
                &mut frames,
                &frame_of(stream, RESET_FRAME, 0, &[0; 4]),
                start,
            )
            .unwrap();
        }
    }

    #[test]
    fn pings_settings_and_empty_data_share_a_budget() {
        let now = Instant::now();
        for (flood, times) in [
            (frame(PING_FRAME, 0, &[0; 8]), 1),
            (frame(PING_FRAME, ACK, &[0; 8]), 1),
            (frame(SETTINGS_FRAME, 0, &[]), 1),
            (frame(SETTINGS_FRAME, ACK, &[]), 1),
            (frame(PRIORITY_FRAME, 0, &[0; 5]), 1),
            (frame(DATA_FRAME, 0, &[]), 1),
            (frame(CONTINUATION_FRAME, 0, &[]), 1),
            (frame(UNKNOWN_FRAME, 0, &[]), 1),
            (frame(RESET_FRAME, 0, &[0; 4]), 1),
            (frame(WINDOW_UPDATE_FRAME, 0, &[0, 0, 0, 1]), 10),
        ] {
            let mut frames = opened();
            for _ in 0..LIMITS.controls * times {
                receive(&mut frames, &flood, now).unwrap();
            }
            assert_eq!(
                receive(&mut frames, &flood, now),
                Err(Flood::Controls),
                "{flood:?}"
            );
        }
    }

    #[test]
    fn a_streams_frame_of_either_side_begins_that_budget_anew() {
        let now = Instant::now();
        let ping = frame(PING_FRAME, 0, &[0; 8]);
        for from_us in [false, true] {
            let mut frames = opened();
            for _ in 0..10 * LIMITS.controls {
                receive(&mut frames, &ping, now).unwrap();
                if from_us {
                    frames.send(&frame(DATA_FRAME, 0, b"data"));
                } else {
                    receive(&mut frames, &frame(DATA_FRAME, 0, b"data"), now).unwrap();
                }
            }
        }
    }

    #[test]
    fn an_acknowledgement_of_a_frame_we_sent_is_free() {
        let (mut frames, now) = (opened(), Instant::now());
        for _ in 0..10 * LIMITS.controls {
            frames.send(&frame_of(0, PING_FRAME, 0, &[7; 8]));
            frames.send(&frame_of(0, SETTINGS_FRAME, 0, &[]));
            receive(&mut frames, &frame_of(0, PING_FRAME, ACK, &[7; 8]), now).unwrap();
            receive(&mut frames, &frame_of(0, SETTINGS_FRAME, ACK, &[]), now).unwrap();
        }
    }

    /// As the peer sends it, in pieces.
    fn in_pieces(bytes: &[u8], cuts: &[usize], mut take: impl FnMut(&[u8])) {
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            take(piece);
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            kinds in proptest::collection::vec((0_u8..12, 0_u8..8, 0_usize..40, 0_u32..8), 0..40),
            cuts in proptest::collection::vec(1_usize..30, 1..200),
        ) {
            let now = Instant::now();
            let mut bytes = Vec::new();
            for (kind, flags, length, stream) in &kinds {
                bytes.extend(frame_of(*stream, *kind, *flags, &vec![1; *length]));
            }
            bytes.extend(ANSWER);
            let (mut whole, mut pieces) = (opened(), opened());
            let expected = receive(&mut whole, &bytes, now);
            let mut outcome = Ok(());
            in_pieces(&bytes, &cuts, |piece| outcome = outcome.and_then(|()| receive(&mut pieces, piece, now)));
            prop_assert_eq!(outcome, expected);
            whole.send(&bytes);
            in_pieces(&bytes, &cuts, |piece| pieces.send(piece));
            pieces.hidden = whole.hidden;
            (pieces.received.head, pieces.sent.head) = (whole.received.head, whole.sent.head);
            prop_assert_eq!(format!("{pieces:?}"), format!("{whole:?}"));
            prop_assert!(pieces.acknowledged && pieces.sent.is_between() && pieces.received.is_between());
            // What is counted is what there is.
            let (responses, uploads): (Vec<_>, Vec<_>) = whole.streams.iter().partition(|stream| !stream.sent_end);
            prop_assert_eq!(open(&whole), (responses.len() as u32, uploads.len() as u32));
            prop_assert!(whole.streams.is_sorted_by_key(|stream| stream.id));
        }
    }
}
