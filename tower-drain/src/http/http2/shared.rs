//! The operations on a connection's shared state that only HTTP/2 needs.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::{
    super::shared::{ConnShared, RequestGuard},
    frames::Totals,
    state::{Slot, State},
};

/// A piece of a response, some of which the peer may take.
#[derive(Debug)]
pub(super) struct Taken {
    conn: Arc<ConnShared>,
    slot: Slot,
}

// === impl ConnShared ===

impl ConnShared {
    /// The protocol is known.
    pub(super) fn speak_http2(&self) {
        self.http2.get_or_init(|| Box::new(State::new()));
    }

    /// The totals of the HTTP/2 streams have changed.
    pub(super) fn note_frames(&self, totals: Totals, congested: bool) {
        let Some(http2) = self.http2.get() else {
            return;
        };
        http2.note_frames(totals);
        if congested {
            http2.note_congested(self.born, Instant::now());
        }
    }

    /// Since when an HTTP/2 stream would have made progress if its peer took its data. That does not hold while the
    /// connection's window is exhausted: then its streams get a turn only now and then.
    pub(super) fn uncongested_since(&self) -> Option<Instant> {
        if self.stalled_since().is_some() {
            Some(Instant::now())
        } else {
            self.http2.get()?.congested(self.born)
        }
    }

    /// Changes whenever the peer takes some of a response with this slot.
    pub(super) fn taken(&self, slot: Slot) -> u32 {
        self.http2
            .get()
            .map_or(0, |http2| http2.taken(slot).load(Relaxed))
    }

    /// Another guard, for the rest of a request that is counted.
    pub(super) fn guard(self: &Arc<Self>) -> RequestGuard {
        self.guard_of(Slot::of(0))
    }
}

// === impl RequestGuard ===

impl RequestGuard {
    pub(super) const fn slot(&self) -> Slot {
        self.slot
    }

    pub(super) fn taken(&self) -> Taken {
        Taken {
            conn: self.conn.clone(),
            slot: self.slot,
        }
    }
}

// === impl Taken ===

impl Taken {
    pub(super) fn note(&self) {
        if let Some(http2) = self.conn.http2.get() {
            http2.taken(self.slot).fetch_add(1, Relaxed);
        }
    }
}
