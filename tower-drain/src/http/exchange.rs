//! The state that a request with a body shares with its response.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;

/// What the timer of a request's body depends on, beside the body. There is one for each request with a body.
#[derive(Default)]
pub(crate) struct Exchange {
    state: AtomicU8,
    /// The task that reads the body.
    reader: AtomicWaker,
}

/// What the client must send to the reader of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owes {
    /// The next bytes, within the timeout.
    Request,
    /// Nothing: the request is a bidirectional stream, which may be silent.
    Nothing,
    /// The rest of a request whose response has ended.
    Rest,
}

/// Marks the response as ended when dropped.
#[derive(Debug)]
pub(super) struct Ending(pub(super) Option<Arc<Exchange>>);

// === impl Exchange ===

impl Exchange {
    /// The server has decided that the body may be silent.
    pub(crate) fn allow_silence(&self) {
        self.note(SILENT);
    }

    pub(super) fn begin_response(&self) {
        self.note(BEGUN);
    }

    pub(super) fn owes(&self) -> Owes {
        match self.state.load(Acquire) {
            state if state & ENDED != 0 => Owes::Rest,
            0 => Owes::Request,
            _ => Owes::Nothing,
        }
    }

    /// Wakes the reader when [`owes`](Self::owes) changes after the call of it that follows this one.
    pub(super) fn register(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    fn note(&self, what: u8) {
        self.state.fetch_or(what, AcqRel);
        self.reader.wake();
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exchange").field(&self.owes()).finish()
    }
}

// === impl Ending ===

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(exchange) = &self.0 {
            exchange.note(ENDED);
        }
    }
}

const BEGUN: u8 = 1;
const ENDED: u8 = 2;
const SILENT: u8 = 4;
