use std::{fmt, time::Duration};

/// The result of a drain.
///
/// It counts connections, upgraded connections and tasks by their in-flight [`Guard`](crate::Guard)s. Requests are counted
/// separately, because a request inside [`DrainLayer`](crate::DrainLayer) usually has a connection that is counted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Connections and tasks that ended by themselves between the begin of the drain and the end of closing.
    pub drained: usize,
    /// Connections and tasks that were still in flight when the drain was forced.
    pub forced: usize,
    /// Upgraded connections (WebSocket, `CONNECT`) that were open when closing began.
    pub upgraded: usize,
    /// Connections and tasks that were still in flight when the drain was over: they ignored the cancellation and were
    /// cut.
    pub leaked: usize,
    /// The same for the requests inside [`DrainLayer`](crate::DrainLayer).
    pub requests: Requests,
    /// The time from the begin of the drain until its end.
    pub took: Duration,
}

/// The counts of requests inside [`DrainLayer`](crate::DrainLayer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Completed, or abandoned by their clients, between the begin of the drain and the end of closing.
    pub drained: usize,
    /// Not yet complete when the drain was forced.
    pub forced: usize,
    /// Not yet complete when the drain was over.
    pub leaked: usize,
}

/// The phase and the counts of a [`Drain`](crate::Drain) at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The phase.
    pub phase: crate::Phase,
    /// Connections, upgraded connections and guards of tasks.
    pub guests: usize,
    /// Requests inside [`DrainLayer`](crate::DrainLayer).
    pub requests: usize,
    /// Upgraded connections, which are also among the connections above.
    pub upgraded: usize,
}

/// The number of in-flight guards of both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) guests: usize,
    pub(crate) requests: usize,
}

/// The counts that are the input of the state machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Census {
    pub(crate) here: Tally,
    /// Those that ended while the drain was announcing or closing.
    pub(crate) left: Tally,
    pub(crate) upgraded: usize,
    /// Accept loops that may still accept a connection.
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

    /// How many connections, tasks and requests ignored the cancellation.
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

    /// Whether all connections, tasks and requests ended by themselves.
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
