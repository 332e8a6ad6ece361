//! The state that the stream of an HTTP/2 connection, its requests and its future share.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use tokio::time::Instant;

use super::{
    super::{
        lifecycle::{Activity, Ping},
        moment::Moment,
    },
    frames::Totals,
};

/// The part of a connection's shared state that only HTTP/2 has.
#[derive(Debug)]
pub(in crate::http) struct State {
    /// When the connection's window last blocked its streams, and made progress.
    congested: Moment,
    /// Totals of its streams.
    frames: FrameTotals,
    /// Incremented when a peer takes some of a response. Two responses may share a counter: then the progress of one counts
    /// for both.
    taken: [AtomicU32; SLOTS],
    ping: AtomicU8,
}

/// The index of a response's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Slot(u8);

#[derive(Debug)]
struct FrameTotals {
    responses: AtomicU32,
    uploads: AtomicU32,
    sent: AtomicU32,
    received: AtomicU32,
}

// === impl State ===

impl State {
    pub(super) const fn new() -> Self {
        Self {
            congested: Moment::none(),
            frames: FrameTotals {
                responses: AtomicU32::new(0),
                uploads: AtomicU32::new(0),
                sent: AtomicU32::new(0),
                received: AtomicU32::new(0),
            },
            taken: [const { AtomicU32::new(0) }; SLOTS],
            ping: AtomicU8::new(0),
        }
    }

    pub(in crate::http) fn activity(&self) -> Activity {
        if self.frames.responses.load(Relaxed) > 0 {
            Activity::Held
        } else if self.frames.uploads.load(Relaxed) > 0 {
            Activity::Upload
        } else {
            Activity::Idle
        }
    }

    /// Changes with each frame of a response.
    pub(in crate::http) fn sent(&self) -> u32 {
        self.frames.sent.load(Relaxed)
    }

    /// Changes with each frame of a request.
    pub(in crate::http) fn received(&self) -> u32 {
        self.frames.received.load(Relaxed)
    }

    pub(super) fn note_frames(&self, totals: Totals) {
        self.frames.note(totals);
    }

    pub(in crate::http) fn note_congested(&self, born: Instant, now: Instant) {
        self.congested.set(born, now);
    }

    pub(super) fn congested(&self, born: Instant) -> Option<Instant> {
        self.congested.get(born)
    }

    pub(super) fn taken(&self, slot: Slot) -> &AtomicU32 {
        &self.taken[usize::from(slot.0)]
    }

    pub(in crate::http) fn ping(&self) -> Ping {
        match self.ping.load(Relaxed) {
            0 => Ping::Unanswered,
            1 => Ping::Hidden,
            2 => Ping::Wanted,
            _ => Ping::Answered,
        }
    }

    pub(in crate::http) fn set_ping(&self, ping: Ping) {
        self.ping.store(ping as u8, Relaxed);
    }
}

// === impl Slot ===

impl Slot {
    /// For a request, by its number on the connection.
    pub(in crate::http) const fn of(request: u32) -> Self {
        Self((request % SLOTS as u32) as u8)
    }
}

// === impl FrameTotals ===

impl FrameTotals {
    fn note(&self, totals: Totals) {
        self.responses.store(totals.responses, Relaxed);
        self.uploads.store(totals.uploads, Relaxed);
        self.sent.store(totals.sent, Relaxed);
        self.received.store(totals.received, Relaxed);
    }
}

/// The number of counters.
const SLOTS: usize = 64;
