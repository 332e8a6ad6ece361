use std::{fmt, time::Duration};

/// How a drain went.
///
/// Guests are connections, upgraded connections, and the [`Guard`](crate::Guard)s of tasks. Requests are counted
/// beside them, because a request inside [`DrainLayer`](crate::DrainLayer) usually has a connection that is counted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Guests that left by themselves between the order to leave and the end of closing.
    pub drained: usize,
    /// Guests that were still there when the drain was forced.
    pub forced: usize,
    /// Upgraded connections (WebSocket, `CONNECT`) that were open when closing began.
    pub upgraded: usize,
    /// Guests that were still there at the very end: they ignored the cancellation and were cut.
    pub leaked: usize,
    /// The same for the requests inside [`DrainLayer`](crate::DrainLayer).
    pub requests: Requests,
    /// From the order to leave until the end.
    pub took: Duration,
}

/// How the requests inside [`DrainLayer`](crate::DrainLayer) fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Answered, or given up by their clients, between the order to leave and the end of closing.
    pub drained: usize,
    /// Not yet answered when the drain was forced.
    pub forced: usize,
    /// Not yet answered at the very end.
    pub leaked: usize,
}

/// What a [`Drain`](crate::Drain) counts at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The phase.
    pub phase: crate::Phase,
    /// Connections, upgraded connections and guards of tasks.
    pub guests: usize,
    /// Requests inside [`DrainLayer`](crate::DrainLayer).
    pub requests: usize,
    /// Upgraded connections among the guests.
    pub upgraded: usize,
}

/// Numbers of both sorts of guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) guests: usize,
    pub(crate) requests: usize,
}

/// What the heart is told about the world outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Census {
    pub(crate) here: Tally,
    /// Those that left while the drain was announcing or closing.
    pub(crate) left: Tally,
    pub(crate) upgraded: usize,
    /// Accept loops that may still let somebody in.
    pub(crate) loops: usize,
}

// === impl Report ===

impl Report {
    pub(crate) const fn new(
        took: Duration,
        upgraded: usize,
        forced: Tally,
        census: &Census,
    ) -> Self {
        let Census { here, left, .. } = census;
        let requests = Requests {
            drained: left.requests,
            forced: forced.requests,
            leaked: here.requests,
        };
        Self {
            drained: left.guests,
            forced: forced.guests,
            upgraded,
            leaked: here.guests,
            requests,
            took,
        }
    }

    /// How many guests and requests ignored the cancellation: what `nursery.leaked_tasks` counts elsewhere.
    ///
    /// A request inside [`DrainLayer`](crate::DrainLayer) is not counted again for its connection.
    #[must_use]
    pub const fn leaked_tasks(&self) -> usize {
        if self.leaked > self.requests.leaked {
            self.leaked
        } else {
            self.requests.leaked
        }
    }

    /// Whether everybody left by themselves.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.forced == 0
            && self.leaked == 0
            && self.requests.forced == 0
            && self.requests.leaked == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            drained,
            forced,
            upgraded,
            leaked,
            requests,
            took,
        } = self;
        write!(
            f,
            "{drained} drained, {forced} forced, {leaked} leaked, {upgraded} upgraded, "
        )?;
        if *requests != Requests::default() {
            let Requests {
                drained,
                forced,
                leaked,
            } = requests;
            write!(
                f,
                "requests: {drained} drained, {forced} forced, {leaked} leaked, "
            )?;
        }
        write!(f, "in {took:.1?}")
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) const NONE: Self = Self {
        guests: 0,
        requests: 0,
    };
}

// === impl Census ===

impl Census {
    pub(crate) const fn is_empty(&self) -> bool {
        self.here.guests == 0 && self.here.requests == 0 && self.loops == 0
    }
}
