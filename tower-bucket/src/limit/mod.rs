//! What decides about a request: one limiter, or several, and what is asked of them.
//!
//! ```text
//!   BucketLayer<Both<Tuned<Limiter, Cost<F>>, Keyed<PeerIp, ClientIp>>>
//!
//!   ask:  request ──► whose bucket, how many tokens, what quota       once, by the outermost
//!   take: all of them peek; if none refuses all take, and if one of those lost a race the others give back
//!   count: when it is known what became of the request
//! ```

/// What a limit around another one leaves as it is.
macro_rules! as_inside {
    () => {
        const LIMITERS: u32 = L::LIMITERS;
        type Ask = L::Ask;
        type Taken = L::Taken;
        type Turn = L::Turn;

        fn peek(&self, ask: L::Ask, now: Instant, patience: u64) -> Result<(), Denial> {
            self.limit.peek(ask, now, patience)
        }

        fn take(&self, ask: L::Ask, now: Instant, patience: u64) -> Result<L::Taken, Denial> {
            self.limit.take(ask, now, patience)
        }

        fn give_back(&self, ask: L::Ask, taken: L::Taken, now: Instant) {
            self.limit.give_back(ask, taken, now);
        }

        fn queue(
            &self,
            ask: L::Ask,
            now: Instant,
            patience: u64,
        ) -> Result<(L::Taken, L::Turn), Denial> {
            self.limit.queue(ask, now, patience)
        }

        fn poll_turn(
            &self,
            ask: L::Ask,
            taken: L::Taken,
            turn: &mut L::Turn,
            now: Instant,
            waker: &std::task::Waker,
        ) -> Option<Instant> {
            self.limit.poll_turn(ask, taken, turn, now, waker)
        }

        fn leave(&self, ask: L::Ask, taken: L::Taken, turn: L::Turn, now: Instant) {
            self.limit.leave(ask, taken, turn, now);
        }

        fn keyed_buckets(
            ask: L::Ask,
            taken: L::Taken,
            first: u32,
            buckets: &mut Vec<crate::places::LimiterKey>,
        ) {
            L::keyed_buckets(ask, taken, first, buckets);
        }

        fn count_passed(&self, ask: L::Ask, taken: L::Taken, waited: bool) {
            self.limit.count_passed(ask, taken, waited);
        }

        fn count_abandoned(&self, ask: L::Ask) {
            self.limit.count_abandoned(ask);
        }

        fn count_denied(&self, ask: L::Ask, by: u32) {
            self.limit.count_denied(ask, by);
        }

        fn standing(&self, ask: L::Ask, decision: Result<L::Taken, Denial>) -> Standing {
            self.limit.standing(ask, decision)
        }
    };
}

mod both;
mod keyed;
mod shared;
mod told;
mod tuned;

use self::sealed::Decide;
pub use self::{
    both::Both,
    keyed::Keyed,
    told::Told,
    tuned::{Cost, Plan, Shadow, Tuned},
};
use crate::{
    Admitted, Exhausted, Quota, error::Reason, gcra::Ask, queue::Turn, snapshot::Fate, store::Drawn,
};

/// Decides about requests: a [`Limiter`](crate::Limiter), a [`Keyed`] one, [`Both`] of two, or one that is [`Tuned`]. Implemented here only;
/// [`BucketLayer`](crate::BucketLayer) puts them together.
pub trait Limit<Req>: sealed::Decide<Req> + Clone {}

/// What is asked of a limiter.
#[derive(Clone, Copy, Debug)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct Terms {
    tokens: u32,
    /// `None`: the limiter's own.
    quota: Option<Quota>,
    shadow: bool,
}

/// What was taken from one limiter.
#[derive(Clone, Copy, Debug)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct Taken {
    from: From,
    ask: Ask,
    quota: Quota,
}

/// Why not, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct Denial {
    reason: Reason,
    /// One bit for each limiter, in the order in which they stand.
    by: u32,
}

/// How a bucket stands, for those who tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub enum Standing {
    Admitted(Admitted),
    Denied(Quota, Reason),
    /// The request is not limited.
    None,
}

#[derive(Clone, Copy, Debug)]
enum From {
    Bucket(Drawn),
    /// Nothing was taken: it costs nothing, or all may pass who have no key.
    Free,
    /// Nothing was taken, because nothing is there.
    Shadow,
}

pub(crate) mod sealed {
    use std::task::Waker;

    use tokio::time::Instant;

    use super::{Denial, Standing, Terms};
    use crate::places::LimiterKey;

    /// How a limit decides. `take` and `peek` count nothing: whoever asks knows what becomes of the request, and tells it.
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Decide<Req> {
        /// How many limiters it is.
        const LIMITERS: u32;
        /// What a request asks, found out once.
        type Ask: Copy + Send + Sync + 'static;
        /// What was taken, to be given back or told.
        type Taken: Copy + Send + Sync + 'static;
        /// Where one stands that may wait.
        type Turn: Copy + Send + Sync + 'static;
        /// What an answer is told.
        type Note: Copy + Send + Sync + 'static;

        fn ask(&self, request: &Req, terms: Terms) -> Self::Ask;
        fn peek(&self, ask: Self::Ask, now: Instant, patience: u64) -> Result<(), Denial>;
        fn take(&self, ask: Self::Ask, now: Instant, patience: u64) -> Result<Self::Taken, Denial>;
        /// For what was taken, if the request is not let through after all.
        fn give_back(&self, ask: Self::Ask, taken: Self::Taken, now: Instant);
        /// Takes, behind all that wait. Then either [`poll_turn`](Self::poll_turn) says that the turn has come, or it
        /// [leaves](Self::leave).
        fn queue(
            &self,
            ask: Self::Ask,
            now: Instant,
            patience: u64,
        ) -> Result<(Self::Taken, Self::Turn), Denial>;
        /// `None`: its turn has come. `Some`: it comes then; or earlier, and then the waker is woken.
        fn poll_turn(
            &self,
            ask: Self::Ask,
            taken: Self::Taken,
            turn: &mut Self::Turn,
            now: Instant,
            waker: &Waker,
        ) -> Option<Instant>;
        fn leave(&self, ask: Self::Ask, taken: Self::Taken, turn: Self::Turn, now: Instant);
        /// The buckets that are one key's, and which limiters they belong to, of those that begin with `first`.
        fn keyed_buckets(
            ask: Self::Ask,
            taken: Self::Taken,
            first: u32,
            buckets: &mut Vec<LimiterKey>,
        );
        fn count_passed(&self, ask: Self::Ask, taken: Self::Taken, waited: bool);
        fn count_abandoned(&self, ask: Self::Ask);
        fn count_denied(&self, ask: Self::Ask, by: u32);
        fn standing(&self, ask: Self::Ask, decision: Result<Self::Taken, Denial>) -> Standing;
        fn note(&self, ask: Self::Ask, decision: Result<Self::Taken, Denial>) -> Self::Note;
    }

    /// Changes what is asked.
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Tune<Req> {
        fn tune(&self, request: &Req, terms: Terms) -> Terms;
    }
}

impl<Req, L: Decide<Req> + Clone> Limit<Req> for L {}

// === impl Terms ===

impl Terms {
    /// One token of the limiter's own quota.
    pub(crate) const USUAL: Self = Self {
        tokens: 1,
        quota: None,
        shadow: false,
    };

    #[inline]
    pub(crate) fn quota_or(self, own: Quota) -> Quota {
        self.quota.unwrap_or(own)
    }

    #[inline]
    pub(crate) fn take(
        self,
        now: u64,
        quota: Quota,
        patience: u64,
        take: impl FnOnce(&Ask) -> Result<Drawn, u64>,
    ) -> Result<Taken, Denial> {
        if self.tokens == 0 {
            return Ok(Taken::NOTHING);
        }
        let Some(ask) = Ask::tokens(now, quota, self.tokens) else {
            return self.refuse(Reason::Cost);
        };
        // Who is not held up has nothing to wait for.
        let ask = if self.shadow {
            ask
        } else {
            ask.patience(patience)
        };
        match take(&ask) {
            Ok(drawn) => Ok(Taken {
                from: From::Bucket(drawn),
                ask,
                quota,
            }),
            Err(wait) => self.refuse(Reason::Wait(wait)),
        }
    }

    /// As [`take`](Self::take), behind all that wait.
    pub(crate) fn queue(
        self,
        now: u64,
        quota: Quota,
        patience: u64,
        queue: impl FnOnce(&Ask) -> Result<(Drawn, Turn), u64>,
    ) -> Result<(Taken, Turn), Denial> {
        let mut turn = Turn::Came(now);
        let taken = self.take(now, quota, patience, |ask| {
            let drawn;
            (drawn, turn) = queue(ask)?;
            Ok(drawn)
        })?;
        Ok((taken, turn))
    }

    fn peek(
        self,
        now: u64,
        quota: Quota,
        patience: u64,
        peek: impl FnOnce(&Ask) -> Result<u64, u64>,
    ) -> Result<(), Denial> {
        self.take(now, quota, patience, |ask| peek(ask).map(Drawn::from))
            .map(drop)
    }

    #[cold]
    pub(crate) fn keyless(self) -> Result<Taken, Denial> {
        self.refuse(Reason::Keyless)
    }

    #[cold]
    pub(crate) fn refuse(self, reason: Reason) -> Result<Taken, Denial> {
        if self.shadow {
            Ok(Taken::IN_SHADOW)
        } else {
            Err(Denial { reason, by: 1 })
        }
    }
}

// === impl Taken ===

impl Taken {
    pub(crate) const NOTHING: Self = Self {
        from: From::Free,
        ask: Ask::NOTHING,
        quota: Quota::ONE_A_SECOND,
    };
    const IN_SHADOW: Self = Self {
        from: From::Shadow,
        ..Self::NOTHING
    };

    /// The turn of one that did not wait.
    pub(crate) const fn at_once(&self) -> Turn {
        Turn::Came(self.ask.now)
    }

    fn now(self) -> (Self, Turn) {
        (self, self.at_once())
    }

    /// `None`: nothing was.
    pub(crate) const fn drawn(self) -> Option<Drawn> {
        match self.from {
            From::Bucket(drawn) => Some(drawn),
            From::Free | From::Shadow => None,
        }
    }

    pub(crate) const fn ask(&self) -> &Ask {
        &self.ask
    }

    #[inline]
    pub(crate) fn fate(self, waited: bool) -> Fate {
        match self.from {
            From::Shadow => Fate::Shadowed,
            _ if waited => Fate::Waited,
            _ => Fate::Allowed,
        }
    }
}

// === impl Denial ===

impl Denial {
    #[cold]
    pub(crate) const fn exhausted(&self) -> Exhausted {
        Exhausted::new(self.reason)
    }

    pub(crate) const fn by(&self) -> u32 {
        self.by
    }

    /// As seen from outside, where so many limiters stand before it.
    fn after(self, others: u32) -> Self {
        Self {
            by: self.by.checked_shl(others).unwrap_or(0),
            ..self
        }
    }

    fn of_those_after(self, others: u32) -> Self {
        Self {
            by: self.by.checked_shr(others).unwrap_or(0),
            ..self
        }
    }

    /// Both, with the longer wait.
    fn and(self, other: Self) -> Self {
        Self {
            reason: self.reason.max(other.reason),
            by: self.by | other.by,
        }
    }
}

// === impl Standing ===

impl Standing {
    pub(crate) fn new(decision: Result<Taken, Denial>, quota: impl FnOnce() -> Quota) -> Self {
        match decision {
            Ok(Taken {
                from: From::Bucket(drawn),
                quota,
                ..
            }) => Self::Admitted(Admitted::new(drawn.debt, quota)),
            Err(denial) if denial.by & 1 != 0 => Self::Denied(quota(), denial.reason),
            _ => Self::None,
        }
    }

    /// The one that leaves less.
    fn tighter(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) | (_, other @ Self::Denied(..)) => other,
            (Self::Admitted(mine), Self::Admitted(others))
                if others.remaining() < mine.remaining() =>
            {
                other
            }
            _ => self,
        }
    }
}
