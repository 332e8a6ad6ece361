//! The heart of an HTTP/2 connection's budgets: which frames a peer sends, and how many of those that cost it nothing.
//!
//! hyper tells neither of resets nor of the answer to its GOAWAY's ping, and both are plain to see in the bytes.

use std::time::Duration;

use tokio::time::Instant;

/// Follows the frames in the bytes a peer sends, however they are cut.
#[derive(Debug)]
pub(super) struct Frames {
    /// Of the preface, then of each frame's payload.
    skip: usize,
    /// The head, and the first eight bytes of a ping.
    head: [u8; HEAD + PING],
    filled: usize,
    acknowledged: bool,
    hidden: bool,
    /// What is left to give of the answer that we give ourselves.
    unsaid: &'static [u8],
    resets: Budget,
    controls: Budget,
}

/// How many frames of a sort may come in ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) resets: u32,
    pub(super) controls: u32,
}

/// What a peer has too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flood {
    Resets,
    Controls,
}

#[derive(Debug, Default)]
struct Budget {
    began: Option<Instant>,
    spent: u32,
}

// === impl Frames ===

impl Frames {
    pub(super) const fn new() -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD + PING],
            filled: 0,
            acknowledged: false,
            hidden: false,
            unsaid: &[],
            resets: Budget {
                began: None,
                spent: 0,
            },
            controls: Budget {
                began: None,
                spent: 0,
            },
        }
    }

    /// Whether the ping of our GOAWAY was answered.
    pub(super) const fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// Whether hyper does not know of that.
    pub(super) const fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// Whether the last byte was a frame's last.
    pub(super) const fn is_between(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    /// The answer will be given by us.
    pub(super) const fn answer(&mut self) {
        self.unsaid = &ANSWER;
    }

    /// As much of it as there is room for. Whoever reads may have room for the head of a frame only.
    pub(super) fn say(&mut self, room: usize) -> &'static [u8] {
        let (now, later) = self.unsaid.split_at(self.unsaid.len().min(room));
        self.unsaid = later;
        now
    }

    /// Follows the bytes. The answer to our GOAWAY's ping is hidden from hyper if it is there in one piece.
    pub(super) fn read(
        &mut self,
        bytes: &mut [u8],
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Flood> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.pass(&bytes[at..]);
            if self.skip == 0 && self.filled >= self.wants() {
                self.end_head(&mut bytes[..at], limits, now)?;
            }
        }
        Ok(())
    }

    /// Takes what is to be skipped, or a piece of the head, and tells how much.
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

    /// A ping is looked into.
    const fn wants(&self) -> usize {
        let is_ping = self.filled >= HEAD && self.head[3] == PING_FRAME && self.length() == PING;
        if is_ping { HEAD + PING } else { HEAD }
    }

    const fn length(&self) -> usize {
        u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize
    }

    /// `read`: all up to the end of the head.
    fn end_head(&mut self, read: &mut [u8], limits: &Limits, now: Instant) -> Result<(), Flood> {
        let (kind, flags) = (self.head[3], self.head[4]);
        let payload = self.filled - HEAD;
        if kind == PING_FRAME && flags & ACK != 0 && self.head[HEAD..] == GOAWAY_PING {
            self.acknowledged = true;
            self.hidden = hide(read);
        }
        self.skip = self.length() - payload.min(self.length());
        self.filled = 0;
        let empty = self.length() == 0 && flags & END == 0;
        match kind {
            RESET_FRAME if !self.resets.spend(limits.resets, now) => Err(Flood::Resets),
            PRIORITY_FRAME | SETTINGS_FRAME | PING_FRAME
                if !self.controls.spend(limits.controls, now) =>
            {
                Err(Flood::Controls)
            }
            DATA_FRAME | CONTINUATION_FRAME
                if empty && !self.controls.spend(limits.controls, now) =>
            {
                Err(Flood::Controls)
            }
            _ => Ok(()),
        }
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

// === impl Budget ===

impl Budget {
    fn spend(&mut self, max: u32, now: Instant) -> bool {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            *self = Self {
                began: Some(now),
                spent: 0,
            };
        }
        self.spent += 1;
        self.spent <= max
    }
}

/// Makes the frame at the end of `read` one of a kind that nobody knows, which is ignored; `false` if it does not begin
/// there.
fn hide(read: &mut [u8]) -> bool {
    let Some(at) = read.len().checked_sub(ANSWER.len()) else {
        return false;
    };
    read[at + 3] = UNKNOWN_FRAME;
    true
}

/// What a peer that answers our GOAWAY's ping would send.
const ANSWER: [u8; HEAD + PING] = [
    0, 0, 8, PING_FRAME, ACK, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54,
];

/// The payload that the h2 crate gives to the ping of a GOAWAY. The tests with a peer that never answers fail should it
/// ever change.
const GOAWAY_PING: [u8; PING] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
const WINDOW: Duration = Duration::from_secs(10);
const PREFACE: usize = 24;
const HEAD: usize = 9;
const PING: usize = 8;
const ACK: u8 = 1;
/// `END_STREAM` of data, `END_HEADERS` of a continuation.
const END: u8 = 1 | 4;
const DATA_FRAME: u8 = 0;
const PRIORITY_FRAME: u8 = 2;
const RESET_FRAME: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const PING_FRAME: u8 = 6;
const CONTINUATION_FRAME: u8 = 9;
/// Free for experiments (RFC 9113, 11.2), so nobody's.
const UNKNOWN_FRAME: u8 = 0xfa;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        resets: 100,
        controls: 1000,
    };

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn opened() -> Frames {
        let mut frames = Frames::new();
        frames
            .read(&mut [0; PREFACE], &LIMITS, Instant::now())
            .unwrap();
        frames
    }

    #[test]
    fn the_answer_to_our_goaway_is_seen_and_no_other() {
        let now = Instant::now();
        let mut frames = opened();
        assert!(frames.is_between());
        for mut other in [
            frame(PING_FRAME, ACK, &[7; 8]),
            frame(PING_FRAME, 0, &GOAWAY_PING),
            frame(0, 1, &ANSWER),
        ] {
            let before = other.clone();
            frames.read(&mut other, &LIMITS, now).unwrap();
            assert!(!frames.is_acknowledged() && frames.is_between());
            assert_eq!(other, before);
        }
        let mut answer = [
            &frame(DATA_FRAME, 0, b"before")[..],
            &ANSWER,
            &frame(DATA_FRAME, 0, b"after"),
        ]
        .concat();
        frames.read(&mut answer, &LIMITS, now).unwrap();
        assert!(frames.is_acknowledged() && frames.is_hidden() && frames.is_between());
        assert_eq!(answer[15..][..9], [0, 0, 8, UNKNOWN_FRAME, ACK, 0, 0, 0, 0]);
    }

    #[test]
    fn our_own_answer_is_given_whole_however_little_room_there_is() {
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
        frames.read(&mut head, &LIMITS, Instant::now()).unwrap();
        frames.read(&mut tail, &LIMITS, Instant::now()).unwrap();
        assert!(frames.is_acknowledged() && !frames.is_hidden());
        assert_eq!([head, tail].concat(), ANSWER);
    }

    #[test]
    fn resets_have_a_budget_that_comes_back() {
        let (mut frames, start) = (opened(), Instant::now());
        let reset = frame(RESET_FRAME, 0, &[0; 4]);
        for _ in 0..LIMITS.resets {
            frames.read(&mut reset.clone(), &LIMITS, start).unwrap();
        }
        let mut fresh = opened();
        for second in 0..1000 {
            fresh
                .read(
                    &mut reset.clone(),
                    &LIMITS,
                    start + Duration::from_secs(second),
                )
                .expect("one a second is no flood");
        }
        assert_eq!(
            frames.read(&mut reset.clone(), &LIMITS, start + Duration::from_secs(9)),
            Err(Flood::Resets)
        );
    }

    #[test]
    fn pings_settings_and_empty_data_share_a_budget() {
        let now = Instant::now();
        for flood in [
            frame(PING_FRAME, 0, &[0; 8]),
            frame(SETTINGS_FRAME, 0, &[]),
            frame(PRIORITY_FRAME, 0, &[0; 5]),
            frame(DATA_FRAME, 0, &[]),
            frame(CONTINUATION_FRAME, 0, &[]),
        ] {
            let mut frames = opened();
            for _ in 0..LIMITS.controls {
                frames.read(&mut flood.clone(), &LIMITS, now).unwrap();
            }
            assert_eq!(
                frames.read(&mut flood.clone(), &LIMITS, now),
                Err(Flood::Controls)
            );
        }
        let mut frames = opened();
        for _ in 0..5000 {
            frames
                .read(&mut frame(DATA_FRAME, 0, b"data"), &LIMITS, now)
                .unwrap();
            frames
                .read(&mut frame(DATA_FRAME, 1, b""), &LIMITS, now)
                .unwrap();
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            kinds in proptest::collection::vec((0_u8..12, 0_u8..8, 0_usize..40), 0..40),
            cuts in proptest::collection::vec(1_usize..30, 1..200),
        ) {
            let now = Instant::now();
            let mut bytes = vec![0; PREFACE];
            for (kind, flags, length) in &kinds {
                bytes.extend(frame(*kind, *flags, &vec![1; *length]));
            }
            bytes.extend(ANSWER);
            let mut whole = Frames::new();
            let expected = whole.read(&mut bytes.clone(), &LIMITS, now);
            let (mut pieces, mut rest, mut outcome) = (Frames::new(), &mut bytes[..], Ok(()));
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at_mut((*cut).min(rest.len()));
                outcome = outcome.and_then(|()| pieces.read(piece, &LIMITS, now));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(outcome, expected);
            prop_assert_eq!(format!("{:?}", (pieces.resets, pieces.controls)), format!("{:?}", (whole.resets, whole.controls)));
            prop_assert!(pieces.acknowledged && whole.acknowledged && pieces.skip == 0 && pieces.filled == 0);
        }
    }
}
