//! What decides about a request: one limiter, or several, and what is asked of them.
//!
//! ```text
//!   BucketLayer<And<Tuned<Limiter, Cost<F>>, Keyed<PeerIp, ClientIp>>>
//!
//!   charge:  request ──► whose bucket, how many tokens, what quota       once, by the outermost
//!   take: all of them peek; if none refuses all take, and if one of those lost a race the rest give back
//!   count: when it is known what became of the request
//! ```

/// What a limit around another one leaves as it is.
macro_rules! as_inside {
    () => {
        const LIMITERS: u32 = L::LIMITERS;
        type Charge = L::Charge;
        type Taken = L::Taken;
        type Turn = L::Turn;

        fn peek(&self, charge: L::Charge, now: Instant, max_wait: u64) -> Result<(), Denial> {
            self.limit.peek(charge, now, max_wait)
        }

        fn take(&self, charge: L::Charge, now: Instant, max_wait: u64) -> Result<L::Taken, Denial> {
            self.limit.take(charge, now, max_wait)
        }

        fn give_back(&self, charge: L::Charge, taken: L::Taken, now: Instant) {
            self.limit.give_back(charge, taken, now);
        }

        fn queue(
            &self,
            charge: L::Charge,
            now: Instant,
            max_wait: u64,
        ) -> Result<(L::Taken, L::Turn), Denial> {
            self.limit.queue(charge, now, max_wait)
        }

        fn poll_turn(
            &self,
            charge: L::Charge,
            taken: L::Taken,
            turn: &mut L::Turn,
            now: Instant,
            waker: &std::task::Waker,
        ) -> Option<Instant> {
            self.limit.poll_turn(charge, taken, turn, now, waker)
        }

        fn leave(&self, charge: L::Charge, taken: L::Taken, turn: L::Turn, now: Instant) {
            self.limit.leave(charge, taken, turn, now);
        }

        fn keyed_buckets(
            charge: L::Charge,
            taken: L::Taken,
            first: u32,
            buckets: &mut Vec<crate::waiters::LimiterKey>,
        ) {
            L::keyed_buckets(charge, taken, first, buckets);
        }

        fn count_passed(&self, charge: L::Charge, taken: L::Taken, waited: bool) {
            self.limit.count_passed(charge, taken, waited);
        }

        fn count_abandoned(&self, charge: L::Charge) {
            self.limit.count_abandoned(charge);
        }

        fn count_denied(&self, charge: L::Charge, by: u32) {
            self.limit.count_denied(charge, by);
        }

        fn standing(&self, charge: L::Charge, decision: Result<L::Taken, Denial>) -> Standing {
            self.limit.standing(charge, decision)
        }
    };
}

mod and;
mod keyed;
mod shared;
mod tuned;
mod with_headers;

use self::sealed::Decide;
pub use self::{
    and::And,
    keyed::Keyed,
    tuned::{Cost, QuotaFn, Shadow, Tuned},
    with_headers::WithHeaders,
};
use crate::{
    Admitted, Exhausted, Quota, error::Reason, gcra::Charge, queue::Turn, snapshot::Decision,
    store::Debit,
};

/// Decides about requests: a [`Limiter`](crate::Limiter), a [`Keyed`] one, [`And`] of two, or one that is [`Tuned`].
/// Implemented here only;
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
    charge: Charge,
    quota: Quota,
}

/// The reason of a rejection, and which limiters rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub struct Denial {
    reason: Reason,
    /// One bit for each limiter, in the order in which they stand.
    by: u32,
}

/// The state of a bucket, for header fields.
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
    Bucket(Debit),
    /// Nothing was taken: it costs nothing, or requests without a key may pass.
    Free,
    /// Nothing was taken, because nothing is there.
    Shadow,
}

pub(crate) mod sealed {
    use std::task::Waker;

    use tokio::time::Instant;

    use super::{Denial, Standing, Terms};
    use crate::waiters::LimiterKey;

    /// How a limit decides. `take` and `peek` count nothing: the caller counts the decision.
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Decide<Req> {
        /// How many limiters it is.
        const LIMITERS: u32;
        /// What a request asks, found out once.
        type Charge: Copy + Send + Sync + 'static;
        /// What was taken, to be given back or reported.
        type Taken: Copy + Send + Sync + 'static;
        /// Where one stands that may wait.
        type Turn: Copy + Send + Sync + 'static;
        /// What is added to a response.
        type Note: Copy + Send + Sync + 'static;

        fn charge(&self, request: &Req, terms: Terms) -> Self::Charge;
        fn peek(&self, charge: Self::Charge, now: Instant, max_wait: u64) -> Result<(), Denial>;
        fn take(
            &self,
            charge: Self::Charge,
            now: Instant,
            max_wait: u64,
        ) -> Result<Self::Taken, Denial>;
        /// For what was taken, if the request is not let through after all.
        fn give_back(&self, charge: Self::Charge, taken: Self::Taken, now: Instant);
        /// Takes, behind all that wait. Then either [`poll_turn`](Self::poll_turn) returns that the turn has come, or it
        /// [leaves](Self::leave).
        fn queue(
            &self,
            charge: Self::Charge,
            now: Instant,
            max_wait: u64,
        ) -> Result<(Self::Taken, Self::Turn), Denial>;
        /// `None`: its turn has come. `Some`: it comes then; or earlier, and then the waker is woken.
        fn poll_turn(
            &self,
            charge: Self::Charge,
            taken: Self::Taken,
            turn: &mut Self::Turn,
            now: Instant,
            waker: &Waker,
        ) -> Option<Instant>;
        fn leave(&self, charge: Self::Charge, taken: Self::Taken, turn: Self::Turn, now: Instant);
        /// The buckets that are one key's, and which limiters they belong to, of those that begin with `first`.
        fn keyed_buckets(
            charge: Self::Charge,
            taken: Self::Taken,
            first: u32,
            buckets: &mut Vec<LimiterKey>,
        );
        fn count_passed(&self, charge: Self::Charge, taken: Self::Taken, waited: bool);
        fn count_abandoned(&self, charge: Self::Charge);
        fn count_denied(&self, charge: Self::Charge, by: u32);
        fn standing(&self, charge: Self::Charge, decision: Result<Self::Taken, Denial>)
        -> Standing;
        fn note(&self, charge: Self::Charge, decision: Result<Self::Taken, Denial>) -> Self::Note;
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
        max_wait: u64,
        take: impl FnOnce(&Charge) -> Result<Debit, u64>,
    ) -> Result<Taken, Denial> {
        if self.tokens == 0 {
            return Ok(Taken::NOTHING);
        }
        let Some(charge) = Charge::tokens(now, quota, self.tokens) else {
            return self.refuse(Reason::Cost);
        };
        // A shadowed request is not delayed.
        let charge = if self.shadow {
            charge
        } else {
            charge.with_max_wait(max_wait)
        };
        match take(&charge) {
            Ok(debit) => Ok(Taken {
                from: From::Bucket(debit),
                charge,
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
        max_wait: u64,
        queue: impl FnOnce(&Charge) -> Result<(Debit, Turn), u64>,
    ) -> Result<(Taken, Turn), Denial> {
        let mut turn = Turn::Came(now);
        let taken = self.take(now, quota, max_wait, |charge| {
            let debit;
            (debit, turn) = queue(charge)?;
            Ok(debit)
        })?;
        Ok((taken, turn))
    }

    fn peek(
        self,
        now: u64,
        quota: Quota,
        max_wait: u64,
        peek: impl FnOnce(&Charge) -> Result<u64, u64>,
    ) -> Result<(), Denial> {
        self.take(now, quota, max_wait, |charge| peek(charge).map(Debit::from))
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
        charge: Charge::NOTHING,
        quota: Quota::ONE_A_SECOND,
    };
    const IN_SHADOW: Self = Self {
        from: From::Shadow,
        ..Self::NOTHING
    };

    /// The turn of one that did not wait.
    pub(crate) const fn at_once(&self) -> Turn {
        Turn::Came(self.charge.now)
    }

    fn now(self) -> (Self, Turn) {
        (self, self.at_once())
    }

    /// `None`: nothing was.
    pub(crate) const fn debit(self) -> Option<Debit> {
        match self.from {
            From::Bucket(debit) => Some(debit),
            From::Free | From::Shadow => None,
        }
    }

    pub(crate) const fn charge(&self) -> &Charge {
        &self.charge
    }

    #[inline]
    pub(crate) fn decision(self, waited: bool) -> Decision {
        match self.from {
            From::Shadow => Decision::Shadowed,
            _ if waited => Decision::Waited,
            _ => Decision::Allowed,
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

    /// As seen from outside, with `others` limiters before it.
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

    /// And, with the longer wait.
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
                from: From::Bucket(debit),
                quota,
                ..
            }) => Self::Admitted(Admitted::new(debit.debt, quota)),
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
