//! The keeper's state machine: events and times in, actions out. No clock, no task, no socket.
//!
//! Every input comes with the time at which it was handled, and that is also the time before which none of the outputs
//! can have been sent.

use std::{num::NonZeroU64, time::Duration};

use fastrand::Rng;

use crate::{BootInstant, ClaimId, Fault, Lost, Revision, State, snapshot::Counts, timing::Timing};

#[cfg(test)]
mod tests;

/// The keeper's state machine.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    timing: Timing,
    rng: Rng,
    phase: Phase,
    own_watch: OwnWatch,
    /// The state that was published last.
    published: State,
    /// This keeper's claim number 0; the epochs' claims count up from it.
    first_claim: ClaimId,
    claims: u64,
    /// The claim to which a holder elsewhere may hand over; a new one after each that was used.
    handover_claim: ClaimId,
    requests: u64,
    /// The highest epoch held so far: no path leads back to it.
    highest: u64,
    /// An earlier claim of this keeper that may still hold the key; it is revoked before the next one tries.
    unreleased_claim: Option<ClaimId>,
    stepping_down: bool,
    /// A second claim to revoke at the end: a handover to it may have gone unnoticed.
    also_revoke: Option<ClaimId>,
    /// Whether it is to be handed over when it is given back.
    hands_over: bool,
    counts: Counts,
    outputs: Vec<Output>,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Start,
    Acquired(RequestStamp, Result<Reply, Fault>),
    Renewed(RequestStamp, Result<Duration, Fault>),
    /// A release was answered; true if it is known to have worked.
    Released(ClaimId, bool),
    /// A transfer of this claim was answered; true if it is known to have worked.
    Transferred(ClaimId, bool),
    Watched(WatchReport),
    StepDown {
        hands_over: bool,
    },
    /// After [`Output::Drain`]: no request is in flight.
    Drained,
    /// The time that [`Core::deadline`] returned has come.
    Timer,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    Acquire(RequestStamp),
    Renew(RequestStamp),
    /// No request is in flight any more: release it, a clean end.
    Release(ClaimId),
    /// Give it to the successor that was named, a clean end.
    Transfer(ClaimId),
    /// Take away what this claim holds: no clean end, for work may go on under it, or under the epoch before.
    RevokeOwn(ClaimId),
    /// Answers to earlier requests are of no interest any more.
    Forget,
    Watch(Revision),
    Unwatch,
    Open(NonZeroU64, BootInstant),
    Extend(BootInstant),
    /// Admit no more requests, and report when none is in flight.
    Drain,
    Close,
    /// The store granted an epoch that is not above one it granted before.
    NonMonotonicToken {
        epoch: u64,
        highest: u64,
    },
    Publish(State),
}

/// The stamp of a request, which comes back with its answer, however late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestStamp {
    pub(crate) claim: ClaimId,
    number: u64,
    at: BootInstant,
}

/// A store's answer to `acquire`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Granted(Granted),
    Held {
        claim: ClaimId,
        expires_in: Option<Duration>,
    },
}

/// What a store granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    pub(crate) epoch: NonZeroU64,
    pub(crate) ttl: Duration,
    pub(crate) revision: Revision,
    /// Whether the epoch before it ended in good order.
    pub(crate) is_clean: bool,
}

/// A report of the watch of the own key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WatchReport {
    Held(ClaimId, Revision),
    Vacant(Revision),
    Broken,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Nothing was asked yet. -> `Acquiring` on start; `Released` on step-down.
    Idle,
    /// Trying to get it. -> `Held` when granted in time; `Releasing` or `Released` on step-down.
    Acquiring(Acquisition),
    /// It is ours. -> `Fenced` when lost or not renewed in time; `Closing` on step-down.
    Held(HeldLease),
    /// Waiting for those inside. -> `Releasing` when they are out, `Cancelling` when their time is over; `Fenced` when lost.
    Closing(HeldLease, BootInstant),
    /// Closed; the requests in flight are being cancelled. -> `Releasing` when they have ended, or at that time.
    Cancelling(ClaimId, BootInstant),
    /// Handing it over. -> `Released` when that is done; `Releasing` when it is not, or not known in time.
    HandingOver(ClaimId, BootInstant),
    /// Giving it back. -> `Released` when answered, or not answered in time.
    Releasing(ClaimId, BootInstant),
    /// Lost. -> `Acquiring` at `again`; the end without that.
    Fenced {
        epoch: NonZeroU64,
        cause: Lost,
        again: Option<BootInstant>,
    },
    /// Given back. The end.
    Released,
}

#[derive(Clone, Debug)]
struct Acquisition {
    claim: ClaimId,
    /// When the earliest request of this claim left that the store may have carried out: validity counts from it.
    first: Option<BootInstant>,
    /// A request of this claim may have been carried out, for all we know.
    unknown: bool,
    failures: u32,
    /// Another claim holds it: worth watching.
    contended: bool,
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    /// -> an answer, or taken as unknown at `by`. `vacated`: the key was seen vacant meanwhile, so "held" is old news.
    Asked {
        number: u64,
        by: BootInstant,
        vacated: bool,
    },
    /// An unreleased claim is being revoked. -> asks when answered, or at `by`.
    Clearing { by: BootInstant },
    /// It was handed over to us, at an unknown time, so validity counts from the next renewal. -> `Held` when
    /// that is answered; asks again at `by`.
    Confirming {
        number: u64,
        by: BootInstant,
        granted: Granted,
    },
    /// -> asks at `at`, or soon after the key is seen vacant.
    Waiting { at: BootInstant },
}

#[derive(Clone, Debug)]
struct HeldLease {
    claim: ClaimId,
    epoch: NonZeroU64,
    revision: Revision,
    until: BootInstant,
    ttl: Duration,
    failures: u32,
    renewal: Renewal,
    /// The gate stays closed until then.
    opens: Option<BootInstant>,
}

#[derive(Clone, Debug)]
enum Renewal {
    Due(BootInstant),
    /// -> an answer, or failed at `by`.
    Asked {
        number: u64,
        by: BootInstant,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum OwnWatch {
    Unsupported,
    Off,
    /// `unconfirmed`: it broke before, or did not report in time, and has not reported since that the record is ours.
    Open {
        unconfirmed: bool,
        /// When the first report of a held lease is late.
        report_by: Option<BootInstant>,
    },
    Broken {
        again: BootInstant,
    },
}

/// after the first retry, which is immediate.
const BACKOFF_MS: std::ops::RangeInclusive<u64> = 100..=500;
/// so that contenders woken by the same event do not meet.
const CONTENDER_JITTER_MS: std::ops::RangeInclusive<u64> = 0..=50;

// === impl Core ===

impl Core {
    pub(crate) fn new(timing: Timing, first_claim: ClaimId, can_watch: bool, seed: u64) -> Self {
        Self {
            timing,
            rng: Rng::with_seed(seed),
            phase: Phase::Idle,
            own_watch: if can_watch {
                OwnWatch::Off
            } else {
                OwnWatch::Unsupported
            },
            published: State::Idle,
            first_claim,
            claims: 0,
            handover_claim: first_claim,
            requests: 0,
            highest: 0,
            unreleased_claim: None,
            stepping_down: false,
            also_revoke: None,
            hands_over: false,
            counts: Counts::default(),
            outputs: Vec::new(),
        }
    }

    /// Handles an input. An expired lease is fenced before that, unless it is to go on.
    pub(crate) fn on(&mut self, input: Input, now: BootInstant) -> Vec<Output> {
        if !self.timing.keeps_serving && self.held().is_some_and(|held| now >= held.until) {
            self.fence(Lost::Expired, now);
        }
        match input {
            Input::Start => self.start(now),
            Input::Acquired(stamp, Ok(Reply::Granted(granted))) => {
                self.granted(stamp, granted, now)
            }
            Input::Acquired(stamp, Ok(Reply::Held { claim, expires_in })) => {
                self.taken(stamp, claim, expires_in, now)
            }
            Input::Acquired(stamp, Err(fault)) => self.unanswered(stamp, fault, now),
            Input::Renewed(stamp, Ok(ttl)) => self.renewed(stamp, ttl, now),
            Input::Renewed(stamp, Err(fault)) => self.not_renewed(stamp, fault, now),
            Input::Released(claim, certain) => self.released(claim, certain, now),
            Input::Transferred(claim, done) => self.transferred(claim, done, now),
            Input::Watched(report) => self.watched(report, now),
            Input::StepDown { hands_over } => self.step_down(hands_over, now),
            Input::Drained => self.drained(now),
            Input::Timer => {}
        }
        self.tick(now);
        self.update_watch(now);
        self.publish();
        std::mem::take(&mut self.outputs)
    }

    /// When to come with [`Input::Timer`], if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<BootInstant> {
        let phase = match &self.phase {
            Phase::Idle | Phase::Released => None,
            Phase::Acquiring(acquisition) => Some(acquisition.step.at()),
            Phase::Held(held) => Some(self.next_of(held)),
            Phase::Closing(held, by) => Some(self.next_of(held).min(*by)),
            Phase::Cancelling(_, by) | Phase::HandingOver(_, by) | Phase::Releasing(_, by) => {
                Some(*by)
            }
            Phase::Fenced { again, .. } => *again,
        };
        let watch = match self.own_watch {
            OwnWatch::Broken { again } => Some(again),
            OwnWatch::Open { report_by, .. } => report_by,
            OwnWatch::Unsupported | OwnWatch::Off => None,
        };
        phase.into_iter().chain(watch).min()
    }

    /// Whether nothing will ever happen again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Released | Phase::Fenced { again: None, .. }
        )
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(..) | Phase::Cancelling(..))
    }

    /// The claim to which a holder elsewhere may hand over.
    pub(crate) fn handover_claim(&self) -> ClaimId {
        self.handover_claim
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// When the gate opens, or the next attempt to get it is due, if that is known.
    pub(crate) fn next_attempt(&self) -> Option<BootInstant> {
        match &self.phase {
            Phase::Held(held) => held.opens,
            Phase::Acquiring(Acquisition {
                step: Step::Waiting { at },
                ..
            }) => Some(*at),
            Phase::Fenced { again, .. } => *again,
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> State {
        match &self.phase {
            Phase::Idle => State::Idle,
            Phase::Acquiring(_) => State::Acquiring,
            Phase::Held(HeldLease {
                epoch,
                opens: Some(_),
                ..
            }) => State::LockDelay { epoch: *epoch },
            Phase::Held(held) if held.failures > 0 || self.own_watch.is_unconfirmed() => {
                State::Jeopardy { epoch: held.epoch }
            }
            Phase::Held(held) => State::Held { epoch: held.epoch },
            Phase::Closing(held, _) => State::Closing { epoch: held.epoch },
            // Still the state it came from, until the store answers.
            Phase::Cancelling(..) | Phase::HandingOver(..) | Phase::Releasing(..) => self.published,
            Phase::Fenced { epoch, cause, .. } => State::Fenced {
                epoch: *epoch,
                cause: *cause,
            },
            Phase::Released => State::Released,
        }
    }

    /// Every change of phase is made here.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.publish();
    }

    fn publish(&mut self) {
        let state = self.state();
        if state != self.published {
            self.published = state;
            self.outputs.push(Output::Publish(state));
        }
    }

    // --- getting it ---

    fn start(&mut self, now: BootInstant) {
        if matches!(self.phase, Phase::Idle) {
            self.start_acquisition(now);
        }
    }

    /// Begins a new epoch with a new claim.
    fn start_acquisition(&mut self, now: BootInstant) {
        let claim = self.next_claim();
        self.enter(Phase::Acquiring(Acquisition::new(claim, now)));
        self.try_now(now);
    }

    /// Clears what is left of an earlier epoch out of the way, then asks.
    fn try_now(&mut self, now: BootInstant) {
        let by = now.after(self.timing.attempt(self.timing.ttl));
        match (self.unreleased_claim, &mut self.phase) {
            (Some(unreleased_claim), Phase::Acquiring(acquisition)) => {
                acquisition.step = Step::Clearing { by };
                self.outputs.push(Output::RevokeOwn(unreleased_claim));
            }
            _ => self.ask(now),
        }
    }

    fn ask(&mut self, now: BootInstant) {
        let by = now.after(self.timing.attempt(self.timing.ttl));
        let number = self.next_request();
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        // An attempt that may have been carried out fixes the start of validity, however often it is repeated.
        if !acquisition.unknown {
            acquisition.first = Some(now);
        }
        acquisition.step = Step::Asked {
            number,
            by,
            vacated: false,
        };
        self.outputs.push(Output::Acquire(RequestStamp {
            claim: acquisition.claim,
            number,
            at: now,
        }));
    }

    fn granted(&mut self, stamp: RequestStamp, granted: Granted, now: BootInstant) {
        let first = match &self.phase {
            Phase::Acquiring(acquisition) if acquisition.claim == stamp.claim => {
                acquisition.first.unwrap_or(stamp.at)
            }
            // A claim that was given up: the grant is not used, but taken away.
            Phase::Acquiring(_) | Phase::Held(_) | Phase::Fenced { again: Some(_), .. }
                if self.held_claim() != Some(stamp.claim) =>
            {
                self.outputs.push(Output::RevokeOwn(stamp.claim));
                return;
            }
            _ => return,
        };
        if granted.epoch.get() <= self.highest {
            // The store has forgotten something.
            self.outputs.push(Output::NonMonotonicToken {
                epoch: granted.epoch.get(),
                highest: self.highest,
            });
            return self.abandon(now);
        }
        if stamp.claim == self.handover_claim {
            return self.confirm(granted, now);
        }
        self.hold(stamp.claim, granted, first, now);
    }

    /// It is ours since `first`, or it would be if that were not too long ago.
    fn hold(&mut self, claim: ClaimId, granted: Granted, first: BootInstant, now: BootInstant) {
        let Granted {
            epoch,
            ttl,
            revision,
            is_clean,
        } = granted;
        let until = self.timing.valid_until(first, ttl);
        if now >= until {
            return self.abandon(now);
        }
        let renewal = Renewal::Due(self.renewal_after(first, ttl, now));
        let opens =
            Some(now.after(self.timing.lock_delay)).filter(|opens| !is_clean && *opens > now);
        self.unreleased_claim = None;
        self.highest = epoch.get();
        self.counts.acquisitions += 1;
        self.own_watch.reset();
        self.outputs.push(Output::Unwatch);
        if opens.is_none() {
            self.outputs
                .push(Output::Open(epoch, self.open_until(until)));
        }
        self.enter(Phase::Held(HeldLease {
            claim,
            epoch,
            revision,
            until,
            ttl,
            failures: 0,
            renewal,
            opens,
        }));
    }

    /// Until when the gate is open if nothing else happens. R-31: one that serves on has no such time.
    fn open_until(&self, until: BootInstant) -> BootInstant {
        if self.timing.keeps_serving {
            BootInstant::END
        } else {
            until
        }
    }

    /// the lock delay is over.
    fn open(&mut self) {
        let Phase::Held(held) = &mut self.phase else {
            return;
        };
        held.opens = None;
        let (epoch, until) = (held.epoch, held.until);
        self.outputs
            .push(Output::Open(epoch, self.open_until(until)));
    }

    // --- getting it from a predecessor ---

    /// A holder handed over to us: asks for the token.
    fn take_over(&mut self, now: BootInstant) {
        let handover_claim = self.handover_claim;
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        if acquisition.claim != handover_claim {
            // What this one asked for and got no answer to can still come: but not while the key is held.
            self.unreleased_claim = Some(acquisition.claim)
                .filter(|_| acquisition.unknown)
                .or(self.unreleased_claim);
            *acquisition = Acquisition::new(handover_claim, now);
            self.ask(now);
        }
    }

    /// The transfer gave us the TTL from some time before we asked, so it is renewed before it is used.
    fn confirm(&mut self, granted: Granted, now: BootInstant) {
        if matches!(
            &self.phase,
            Phase::Acquiring(Acquisition {
                step: Step::Confirming { .. },
                ..
            })
        ) {
            return;
        }
        let by = now.after(self.timing.attempt(granted.ttl));
        let number = self.next_request();
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        acquisition.step = Step::Confirming {
            number,
            by,
            granted,
        };
        self.outputs.push(Output::Renew(RequestStamp {
            claim: acquisition.claim,
            number,
            at: now,
        }));
    }

    fn confirmed(&mut self, stamp: RequestStamp, ttl: Duration, now: BootInstant) {
        let Phase::Acquiring(Acquisition {
            claim,
            step: Step::Confirming {
                number, granted, ..
            },
            ..
        }) = &self.phase
        else {
            return;
        };
        if *claim == stamp.claim && *number == stamp.number {
            let granted = Granted { ttl, ..*granted };
            self.handover_claim = self.next_claim();
            self.hold(stamp.claim, granted, stamp.at, now);
        }
    }

    /// Asks again for what was handed over; or begins anew, if that is lost already.
    fn not_confirmed(&mut self, stamp: RequestStamp, fault: Fault, now: BootInstant) {
        let at = self.backoff(now);
        let fresh = self.next_claim();
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        if !matches!(acquisition.step, Step::Confirming { number, .. } if number == stamp.number) {
            return;
        }
        if fault == Fault::Lost {
            *acquisition = Acquisition {
                contended: true,
                ..Acquisition::new(fresh, at)
            };
        } else {
            acquisition.step = Step::Waiting { at };
        }
    }

    /// Gives up a claim that may hold the key, and tries with another one after a pause.
    fn abandon(&mut self, now: BootInstant) {
        let claim = self.next_claim();
        let at = self.long_backoff(now);
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        acquisition.failures = acquisition.failures.saturating_add(1);
        let old = std::mem::replace(&mut acquisition.claim, claim);
        (acquisition.first, acquisition.unknown) = (None, false);
        acquisition.step = Step::Waiting { at };
        self.unreleased_claim = Some(old);
        self.outputs.push(Output::RevokeOwn(old));
    }

    fn taken(
        &mut self,
        stamp: RequestStamp,
        holder: ClaimId,
        expires_in: Option<Duration>,
        now: BootInstant,
    ) {
        let fresh = self.next_claim();
        let (at_once, soon) = (self.after_vacancy(now), self.backoff(now));
        let later = self.renewal_after(now, self.timing.ttl, now);
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        if acquisition.claim != stamp.claim {
            return;
        }
        if holder == self.handover_claim {
            return self.take_over(now);
        }
        let vacated = matches!(acquisition.step, Step::Asked { vacated: true, .. });
        let ours = self.unreleased_claim == Some(holder);
        // What was not answered may still be carried out: it is remembered as unreleased. Otherwise the next round is a new one.
        self.unreleased_claim = if ours {
            Some(holder)
        } else {
            Some(acquisition.claim).filter(|_| acquisition.unknown)
        };
        let at = match expires_in {
            _ if ours => soon,
            _ if vacated => at_once,
            Some(wait) => later.min(soon.after(wait)),
            None => later,
        };
        *acquisition = Acquisition {
            contended: !ours,
            ..Acquisition::new(fresh, at)
        };
    }

    fn unanswered(&mut self, stamp: RequestStamp, fault: Fault, now: BootInstant) {
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        if acquisition.claim != stamp.claim {
            return;
        }
        self.counts.failures.count(fault);
        acquisition.unknown |= fault == Fault::Unknown;
        // Of a request that was already given up for lost, only that matters.
        if matches!(acquisition.step, Step::Asked { number, .. } if number == stamp.number) {
            self.ask_again(now);
        }
    }

    /// the same claim again; unless even a grant would come too late by now.
    fn ask_again(&mut self, now: BootInstant) {
        let pause = self.long_backoff(now);
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        acquisition.failures = acquisition.failures.saturating_add(1);
        let first = acquisition.first.filter(|_| acquisition.unknown);
        if first.is_some_and(|first| now >= self.timing.valid_until(first, self.timing.ttl)) {
            return self.abandon(now);
        }
        acquisition.step = Step::Waiting {
            at: if acquisition.failures == 1 {
                now
            } else {
                pause
            },
        };
    }

    // --- keeping it ---

    fn renewed(&mut self, stamp: RequestStamp, ttl: Duration, now: BootInstant) {
        if ttl.is_zero() {
            // no time left is lost, even with a status of success.
            return self.not_renewed(stamp, Fault::Lost, now);
        }
        // The period counts from this request; the extension too, however late the answer is.
        let until = self.timing.valid_until(stamp.at, ttl);
        let due = self.renewal_after(stamp.at, ttl, now);
        let Some(held) = self.held_mut().filter(|held| held.claim == stamp.claim) else {
            return self.confirmed(stamp, ttl, now);
        };
        let extends = until > held.until;
        let awaited =
            matches!(held.renewal, Renewal::Asked { number, .. } if number == stamp.number);
        if !extends && !awaited {
            return;
        }
        let left = held.until.since(now);
        let is_open = held.opens.is_none();
        held.failures = 0;
        if awaited || matches!(held.renewal, Renewal::Due(_)) {
            held.renewal = Renewal::Due(due);
            held.ttl = ttl;
        }
        if extends {
            held.until = until;
        }
        self.counts.renewed(left, now.since(stamp.at));
        if extends && is_open && !self.timing.keeps_serving {
            self.outputs.push(Output::Extend(until));
        }
    }

    /// nothing but an explicit success extends, and nothing but an explicit loss shortens.
    fn not_renewed(&mut self, stamp: RequestStamp, fault: Fault, now: BootInstant) {
        let Some(held) = self.held().filter(|held| held.claim == stamp.claim) else {
            return self.not_confirmed(stamp, fault, now);
        };
        let awaited =
            matches!(held.renewal, Renewal::Asked { number, .. } if number == stamp.number);
        self.counts.failures.count(fault);
        if fault == Fault::Lost {
            self.fence(Lost::Gone, now);
        } else if awaited {
            self.renew_again(now);
        }
    }

    /// at once the first time, then with a pause, until it is over. R-13: that is jeopardy. R-31: a
    /// membership that serves past its end retries with a growing pause.
    fn renew_again(&mut self, now: BootInstant) {
        let is_over = self.held().is_some_and(|held| now >= held.until);
        let pause = if is_over {
            self.long_backoff(now)
        } else {
            self.backoff(now)
        };
        let Some(held) = self.held_mut() else {
            return;
        };
        held.failures = held.failures.saturating_add(1);
        held.renewal = Renewal::Due(if held.failures == 1 { now } else { pause });
    }

    fn renew(&mut self, now: BootInstant) {
        let number = self.next_request();
        let Some(ttl) = self.held().map(|held| held.ttl) else {
            return;
        };
        let by = now.after(self.timing.attempt(ttl));
        let Some(held) = self.held_mut() else {
            return;
        };
        held.renewal = Renewal::Asked { number, by };
        let stamp = RequestStamp {
            claim: held.claim,
            number,
            at: now,
        };
        self.outputs.push(Output::Renew(stamp));
    }

    // --- losing it, giving it back ---

    /// the gate closes before anything else, and this epoch never opens again.
    fn fence(&mut self, cause: Lost, now: BootInstant) {
        let again = (self.timing.reacquire && !self.stepping_down).then(|| self.backoff(now));
        let Some((epoch, claim)) = self.held().map(|held| (held.epoch, held.claim)) else {
            return;
        };
        self.counts.losses.count(cause);
        // A rewound store may have our record still, or again.
        self.unreleased_claim =
            Some(claim).filter(|_| matches!(cause, Lost::Expired | Lost::Rewound));
        self.outputs.push(Output::Close);
        self.enter(Phase::Fenced {
            epoch,
            cause,
            again,
        });
    }

    /// closes to new ones, waits for those inside, and only then gives it back.
    fn step_down(&mut self, hands_over: bool, now: BootInstant) {
        self.stepping_down = true;
        let by = now.after(self.timing.drain_within);
        match std::mem::replace(&mut self.phase, Phase::Released) {
            // It never opened, so no request is in flight; but the epoch before it may be at work still.
            Phase::Held(held) if held.opens.is_some() => self.revoke_own(Some(held.claim), now),
            Phase::Held(held) => {
                self.hands_over = hands_over;
                self.outputs.push(Output::Drain);
                self.enter(Phase::Closing(held, by));
            }
            Phase::Acquiring(acquisition) => {
                // The holder may have handed over to this keeper, with the report still on its way.
                self.also_revoke = Some(self.handover_claim)
                    .filter(|claim| acquisition.contended && acquisition.claim != *claim);
                let asked = acquisition.unknown
                    || !matches!(
                        acquisition.step,
                        Step::Waiting { .. } | Step::Clearing { .. }
                    );
                self.revoke_own(
                    Some(acquisition.claim)
                        .filter(|_| asked)
                        .or(self.unreleased_claim),
                    now,
                );
            }
            Phase::Fenced { again: Some(_), .. } => self.revoke_own(self.unreleased_claim, now),
            Phase::Idle => self.revoke_own(None, now),
            same => self.phase = same,
        }
    }

    /// No request is in flight: a clean end.
    fn drained(&mut self, now: BootInstant) {
        let claim = match &self.phase {
            Phase::Closing(held, _) => held.claim,
            Phase::Cancelling(claim, _) => *claim,
            _ => return,
        };
        self.outputs.push(Output::Close);
        self.outputs.push(Output::Forget);
        let by = now.after(self.timing.attempt(self.timing.ttl));
        if self.hands_over {
            self.outputs.push(Output::Transfer(claim));
            self.enter(Phase::HandingOver(claim, by));
        } else {
            self.release(claim, now);
        }
    }

    /// the requests still in flight are cancelled, and get a moment to notice.
    fn cancel_requests(&mut self, now: BootInstant) {
        let Some(claim) = self.held_claim() else {
            return;
        };
        let by = now.after(self.timing.attempt(self.timing.ttl));
        self.outputs.push(Output::Close);
        self.enter(Phase::Cancelling(claim, by));
    }

    fn release(&mut self, claim: ClaimId, now: BootInstant) {
        self.outputs.push(Output::Release(claim));
        let by = now.after(self.timing.attempt(self.timing.ttl));
        self.enter(Phase::Releasing(claim, by));
    }

    /// Leaves, with what this claim may hold; no clean end.
    fn revoke_own(&mut self, claim: Option<ClaimId>, now: BootInstant) {
        self.outputs.push(Output::Forget);
        let Some(claim) = claim.or_else(|| self.also_revoke.take()) else {
            return self.enter(Phase::Released);
        };
        self.outputs.push(Output::RevokeOwn(claim));
        let by = now.after(self.timing.attempt(self.timing.ttl));
        self.enter(Phase::Releasing(claim, by));
    }

    /// If it is not known to be handed over it is released: that is guarded, so it does not hit a successor.
    fn transferred(&mut self, claim: ClaimId, done: bool, now: BootInstant) {
        if !matches!(&self.phase, Phase::HandingOver(which, _) if *which == claim) {
            return;
        }
        if done {
            self.enter(Phase::Released)
        } else {
            self.release(claim, now)
        }
    }

    fn released(&mut self, claim: ClaimId, certain: bool, now: BootInstant) {
        if certain && self.unreleased_claim == Some(claim) {
            self.unreleased_claim = None;
        }
        match &self.phase {
            // an unknown result is "released" here; the TTL cleans up there.
            Phase::Releasing(which, _) if *which == claim => match self.also_revoke.take() {
                Some(next) => self.revoke_own(Some(next), now),
                None => self.enter(Phase::Released),
            },
            Phase::Acquiring(Acquisition {
                step: Step::Clearing { .. },
                ..
            }) => self.ask(now),
            _ => {}
        }
    }

    // --- watching it ---

    fn watched(&mut self, report: WatchReport, now: BootInstant) {
        if let WatchReport::Broken = report {
            return self.watch_broke(now);
        }
        match report {
            _ if self.held().is_some() => self.watched_own(report, now),
            WatchReport::Held(claim, _) if claim == self.handover_claim => self.take_over(now),
            WatchReport::Vacant(_) => self.on_vacancy(now),
            _ => {}
        }
    }

    /// gone or another's is lost, at once. Only a report that it is ours is a sign of health.
    ///
    /// The watch was opened for this epoch, from the grant's revision on. So a report from before that is no old news: the
    /// store does not know of the grant any more.
    fn watched_own(&mut self, report: WatchReport, now: BootInstant) {
        let Some(held) = self.held() else { return };
        let cause = match report {
            WatchReport::Broken => return,
            WatchReport::Vacant(revision) | WatchReport::Held(_, revision)
                if revision < held.revision =>
            {
                Lost::Rewound
            }
            WatchReport::Vacant(_) => Lost::Gone,
            WatchReport::Held(claim, _) if claim != held.claim => Lost::Replaced,
            WatchReport::Held(..) => {
                if let OwnWatch::Open { .. } = self.own_watch {
                    self.own_watch = OwnWatch::Open {
                        unconfirmed: false,
                        report_by: None,
                    };
                }
                return;
            }
        };
        self.fence(cause, now);
    }

    /// contenders come after a vacancy, but not all at once. A report may be older than the request just
    /// sent, because the two take different connections.
    fn on_vacancy(&mut self, now: BootInstant) {
        let soon = self.after_vacancy(now);
        match &mut self.phase {
            Phase::Acquiring(Acquisition {
                contended: true,
                step: Step::Waiting { at },
                ..
            }) => *at = soon.min(*at),
            Phase::Acquiring(Acquisition {
                step: Step::Asked { vacated, .. },
                ..
            }) => *vacated = true,
            _ => {}
        }
    }

    fn after_vacancy(&mut self, now: BootInstant) -> BootInstant {
        now.after(Duration::from_millis(self.rng.u64(CONTENDER_JITTER_MS)))
    }

    fn watch_broke(&mut self, now: BootInstant) {
        if matches!(self.own_watch, OwnWatch::Open { .. }) {
            self.own_watch = OwnWatch::Broken {
                again: self.backoff(now),
            };
            self.outputs.push(Output::Unwatch);
        }
    }

    /// Opens the watch when it is wanted, and closes it when it is not.
    fn update_watch(&mut self, now: BootInstant) {
        let wanted = match &self.phase {
            Phase::Acquiring(acquisition) => {
                Some(Revision::START).filter(|_| acquisition.contended)
            }
            Phase::Held(held) | Phase::Closing(held, _) => Some(held.revision),
            _ => None,
        };
        match (wanted, &self.own_watch) {
            (Some(from), OwnWatch::Off) => self.open_watch(from, false, now),
            (Some(from), OwnWatch::Broken { again }) if now >= *again => {
                self.open_watch(from, true, now)
            }
            (
                Some(_),
                OwnWatch::Open {
                    report_by: Some(by),
                    ..
                },
            ) if now >= *by => {
                self.own_watch = OwnWatch::Open {
                    unconfirmed: true,
                    report_by: None,
                };
            }
            (None, OwnWatch::Open { .. } | OwnWatch::Broken { .. }) => {
                self.own_watch = OwnWatch::Off;
                self.outputs.push(Output::Unwatch);
            }
            _ => {}
        }
    }

    fn open_watch(&mut self, from: Revision, unconfirmed: bool, now: BootInstant) {
        let report_by = self
            .held()
            .map(|held| now.after(self.timing.attempt(held.ttl)));
        self.own_watch = OwnWatch::Open {
            unconfirmed,
            report_by,
        };
        self.outputs.push(Output::Watch(from));
    }

    // --- time ---

    /// Does what is due.
    fn tick(&mut self, now: BootInstant) {
        match &self.phase {
            Phase::Acquiring(acquisition) if now >= acquisition.step.at() => {
                self.acquisition_due(now)
            }
            Phase::Closing(_, by) if now >= *by => self.cancel_requests(now),
            // Someone is inside still, and may be at work: no clean end.
            Phase::Cancelling(claim, by) if now >= *by => self.revoke_own(Some(*claim), now),
            Phase::HandingOver(claim, by) if now >= *by => self.release(*claim, now),
            Phase::Held(held) if held.opens.is_some_and(|opens| now >= opens) => {
                self.open();
                self.tick(now);
            }
            Phase::Held(held) | Phase::Closing(held, _) => match held.renewal {
                Renewal::Due(at) if now >= at => self.renew(now),
                Renewal::Asked { by, .. } if now >= by => {
                    self.counts.failures.timed_out += 1;
                    self.renew_again(now);
                    self.renew_if_due(now);
                }
                _ => {}
            },
            Phase::Releasing(_, by) if now >= *by => self.enter(Phase::Released),
            Phase::Fenced {
                again: Some(again), ..
            } if now >= *again => self.start_acquisition(now),
            _ => {}
        }
    }

    fn acquisition_due(&mut self, now: BootInstant) {
        let Phase::Acquiring(acquisition) = &mut self.phase else {
            return;
        };
        match acquisition.step {
            Step::Waiting { .. } => self.try_now(now),
            Step::Clearing { .. } | Step::Confirming { .. } => self.ask(now),
            Step::Asked { .. } => {
                self.counts.failures.timed_out += 1;
                acquisition.unknown = true;
                self.ask_again(now);
                if self.next_attempt().is_some_and(|at| now >= at) {
                    self.try_now(now);
                }
            }
        }
    }

    fn renew_if_due(&mut self, now: BootInstant) {
        if self
            .held()
            .is_some_and(|held| matches!(held.renewal, Renewal::Due(at) if now >= at))
        {
            self.renew(now);
        }
    }

    /// the period counts from the sending, with jitter only to the early side.
    fn renewal_after(
        &mut self,
        stamp: BootInstant,
        ttl: Duration,
        now: BootInstant,
    ) -> BootInstant {
        let period = self.timing.renew_every(ttl).max(self.timing.least_period());
        let due = stamp.after(period.mul_f64(0.8 + 0.2 * self.rng.f64()));
        due.max(now)
    }

    fn backoff(&mut self, now: BootInstant) -> BootInstant {
        now.after(Duration::from_millis(self.rng.u64(BACKOFF_MS)))
    }

    /// While nothing is held there is no hurry: doubles up to the renewal period, so that a store that comes back is
    /// not run over.
    fn long_backoff(&mut self, now: BootInstant) -> BootInstant {
        let failures = match &self.phase {
            Phase::Acquiring(acquisition) => acquisition.failures,
            _ => self.held().map_or(0, |held| held.failures),
        };
        let longest = self
            .timing
            .renew_every(self.timing.ttl)
            .max(Duration::from_millis(*BACKOFF_MS.end()));
        let pause = Duration::from_millis(self.rng.u64(BACKOFF_MS))
            * (1 << failures.saturating_sub(1).min(6));
        now.after(pause.min(longest))
    }

    // --- bookkeeping ---

    fn held(&self) -> Option<&HeldLease> {
        match &self.phase {
            Phase::Held(held) | Phase::Closing(held, _) => Some(held),
            _ => None,
        }
    }

    fn held_mut(&mut self) -> Option<&mut HeldLease> {
        match &mut self.phase {
            Phase::Held(held) | Phase::Closing(held, _) => Some(held),
            _ => None,
        }
    }

    /// When something is due for a lease that is held.
    fn next_of(&self, held: &HeldLease) -> BootInstant {
        let (Renewal::Due(renewal) | Renewal::Asked { by: renewal, .. }) = held.renewal;
        let end = if self.timing.keeps_serving {
            BootInstant::END
        } else {
            held.until
        };
        renewal.min(end).min(held.opens.unwrap_or(BootInstant::END))
    }

    fn held_claim(&self) -> Option<ClaimId> {
        self.held().map(|held| held.claim)
    }

    fn next_claim(&mut self) -> ClaimId {
        self.claims += 1;
        self.first_claim.numbered(self.claims)
    }

    fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }
}

// === impl Acquisition, Step, OwnWatch ===

impl Acquisition {
    const fn new(claim: ClaimId, at: BootInstant) -> Self {
        Self {
            claim,
            first: None,
            unknown: false,
            failures: 0,
            contended: false,
            step: Step::Waiting { at },
        }
    }
}

impl Step {
    const fn at(&self) -> BootInstant {
        let (Self::Asked { by: at, .. }
        | Self::Clearing { by: at }
        | Self::Confirming { by: at, .. }
        | Self::Waiting { at }) = self;
        *at
    }
}

impl OwnWatch {
    const fn is_unconfirmed(&self) -> bool {
        matches!(
            self,
            Self::Broken { .. }
                | Self::Open {
                    unconfirmed: true,
                    ..
                }
        )
    }

    fn reset(&mut self) {
        if *self != Self::Unsupported {
            *self = Self::Off;
        }
    }
}
