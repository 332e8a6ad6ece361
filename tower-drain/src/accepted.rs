use std::fmt;

use crate::{count::Kind, drain::Drain, guard::Guard, limit::Permit, listen::Addr};

/// A connection as a request: the stream, where it comes from, and the guard that the drain waits for.
///
/// A `Service<Accepted<Io>>` is called with it, and its future is the connection's whole life. Wrapping the stream (TLS,
/// counting, logging) is [`split`](Self::split) and [`with`](Accepted::with):
///
/// ```
/// # use tower_drain::Accepted;
/// # fn wrap<T>(io: T) -> Option<T> { Some(io) }
/// fn wrapped<Io>(accepted: Accepted<Io>) -> Option<Accepted<Io>> {
///     let (io, rest) = accepted.split();
///     Some(rest.with(wrap(io)?))
/// }
/// ```
///
/// Keep what [`split`](Self::split) gives beside the stream for as long as the stream lives: it *is* the connection, for
/// the drain and for a [`ConnectionLimit`](crate::ConnectionLimit).
#[must_use = "dropping it closes the connection"]
pub struct Accepted<Io> {
    io: Io,
    peer: Addr,
    local: Addr,
    guard: Guard,
    permit: Option<Permit>,
}

// === impl Accepted ===

impl<Io> Accepted<Io> {
    /// A connection from an accept loop of your own.
    pub fn new(drain: &Drain, io: Io, peer: Addr, local: Addr) -> Self {
        Self { io, peer, local, guard: drain.guard_of(Kind::Guest), permit: None }
    }

    /// The stream.
    pub const fn io(&self) -> &Io {
        &self.io
    }

    /// Where it comes from.
    pub const fn peer(&self) -> &Addr {
        &self.peer
    }

    /// The listener's address.
    pub const fn local(&self) -> &Addr {
        &self.local
    }

    /// The stream by itself, and all the rest.
    pub fn split(self) -> (Io, Accepted<()>) {
        let Self { io, peer, local, guard, permit } = self;
        (io, Accepted { io: (), peer, local, guard, permit })
    }

    pub(crate) fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }
}

impl Accepted<()> {
    /// Puts a stream back.
    pub fn with<Io>(self, io: Io) -> Accepted<Io> {
        let Self { io: (), peer, local, guard, permit } = self;
        Accepted { io, peer, local, guard, permit }
    }
}

impl<Io> fmt::Debug for Accepted<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("peer", &self.peer).field("local", &self.local).finish_non_exhaustive()
    }
}
