//! The heart: what a keeper does next. No clock, no task, no socket.
//!
//! Every input comes with the time at which it was handled, and that is also the time before which none of the outputs
//! can have been sent.

use std::{num::NonZeroU64, time::Duration};

use fastrand::Rng;

use crate::{BootInstant, ClaimId, Fault, Lost, Revision, State, snapshot::Counts, terms::Terms};

#[cfg(test)]
mod tests;

/// The keeper's state machine.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    terms: Terms,
    rng: Rng,
    phase: Phase,
    own_watch: OwnWatch,
    /// What was told last.
    told: State,
    /// This keeper's claim number 0; the epochs' claims count up from it.
    first_claim: ClaimId,
    claims: u64,
    /// The claim to which a holder elsewhere may hand over; a new one after each that was used.
    heir: ClaimId,
    requests: u64,
    /// The highest epoch held so far: no path leads back to it.
    highest: u64,
    /// A claim of ours that may still hold the key, and is to be released before the next one tries.
    orphan: Option<ClaimId>,
    stepping_down: bool,
    /// Whether it is to be handed over when it is given back.
    hands_over: bool,
    counts: Counts,
    outputs: Vec<Output>,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Start,
    Acquired(Sent, Result<Reply, Fault>),
    Renewed(Sent, Result<Duration, Fault>),
    /// A release was answered; true if it is known to have worked.
    Released(ClaimId, bool),
    /// A transfer of this claim was answered; true if it is known to have worked.
    Transferred(ClaimId, bool),
    Watched(Seen),
    StepDown {
        hands_over: bool,
    },
    /// After [`Output::Drain`]: nobody is inside.
    Drained,
    /// The time has come that [`Core::deadline`] told.
    Timer,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    Acquire(Sent),
    Renew(Sent),
    /// Nobody is inside any more: give it back, a clean end.
    Release(ClaimId),
    /// Give it to the successor that was named, a clean end.
    Transfer(ClaimId),
    /// Take away what this claim holds: no clean end, for work may go on under it, or under the epoch before.
    Disown(ClaimId),
    /// Answers to earlier requests are of no interest any more.
    Forget,
    Watch(Revision),
    Unwatch,
    Open(NonZeroU64, BootInstant),
    Extend(BootInstant),
    /// Let nobody new in, and say when nobody is inside.
    Drain,
    Close,
    /// The store granted an epoch that is not above one it granted before.
    Distrust {
        epoch: u64,
        highest: u64,
    },
    Publish(State),
}

/// The stamp of a request, which comes back with its answer, however late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
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

/// What the watch of the own key says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    Held(ClaimId, Revision),
    Vacant(Revision),
    Broken,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Nothing was asked yet. -> `Seeking` on start; `Released` on step-down.
    Idle,
    /// Trying to get it. -> `Held` when granted in time; `Releasing` or `Released` on step-down.
    Seeking(Quest),
    /// It is ours. -> `Fenced` when lost or not renewed in time; `Closing` on step-down.
    Held(Tenure),
    /// Waiting for those inside. -> `Releasing` when they are out, `Emptying` when their time is over; `Fenced` when lost.
    Closing(Tenure, BootInstant),
    /// Closed for those inside too, who are being cancelled. -> `Releasing` when they are out, or at that time.
    Emptying(ClaimId, BootInstant),
    /// Handing it over. -> `Released` when that is done; `Releasing` when it is not, or not known in time.
    HandingOver(ClaimId, BootInstant),
    /// Giving it back. -> `Released` when answered, or not answered in time.
    Releasing(ClaimId, BootInstant),
    /// Lost. -> `Seeking` at `again`; the end without that.
    Fenced {
        epoch: NonZeroU64,
        cause: Lost,
        again: Option<BootInstant>,
    },
    /// Given back. The end.
    Released,
}

#[derive(Clone, Debug)]
struct Quest {
    claim: ClaimId,
    /// When the earliest request of this claim left that the store may have carried out: validity counts from it.
    first: Option<BootInstant>,
    /// A request of this claim may have been carried out, for all we know.
    unknown: bool,
    failures: u32,
    /// Somebody else holds it: worth watching.
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
    /// An orphan is being taken away. -> asks when answered, or at `by`.
    Clearing { by: BootInstant },
    /// It was handed over to us, at a time that we do not know: so it counts from a renewal of ours. -> `Held` when
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
struct Tenure {
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
    /// `true`: it broke before, and has not reported since that the record is ours.
    Open {
        ailing: bool,
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
    pub(crate) fn new(terms: Terms, first_claim: ClaimId, can_watch: bool, seed: u64) -> Self {
        Self {
            terms,
            rng: Rng::with_seed(seed),
            phase: Phase::Idle,
            own_watch: if can_watch {
                OwnWatch::Off
            } else {
                OwnWatch::Unsupported
            },
            told: State::Idle,
            first_claim,
            claims: 0,
            heir: first_claim,
            requests: 0,
            highest: 0,
            orphan: None,
            stepping_down: false,
            hands_over: false,
            counts: Counts::default(),
            outputs: Vec::new(),
        }
    }

    /// The one entrance. Whatever comes, an expired lease is fenced first, unless it is to go on.
    pub(crate) fn on(&mut self, input: Input, now: BootInstant) -> Vec<Output> {
        if !self.terms.keeps_serving && self.tenure().is_some_and(|tenure| now >= tenure.until) {
            self.fence(Lost::Expired, now);
        }
        match input {
            Input::Start => self.start(now),
            Input::Acquired(sent, Ok(Reply::Granted(granted))) => self.granted(sent, granted, now),
            Input::Acquired(sent, Ok(Reply::Held { claim, expires_in })) => {
                self.taken(sent, claim, expires_in, now)
            }
            Input::Acquired(sent, Err(fault)) => self.unanswered(sent, fault, now),
            Input::Renewed(sent, Ok(ttl)) => self.renewed(sent, ttl, now),
            Input::Renewed(sent, Err(fault)) => self.not_renewed(sent, fault, now),
            Input::Released(claim, certain) => self.released(claim, certain, now),
            Input::Transferred(claim, done) => self.transferred(claim, done, now),
            Input::Watched(seen) => self.watched(seen, now),
            Input::StepDown { hands_over } => self.step_down(hands_over, now),
            Input::Drained => self.drained(now),
            Input::Timer => {}
        }
        self.tick(now);
        self.tend_watch(now);
        self.tell();
        std::mem::take(&mut self.outputs)
    }

    /// When to come with [`Input::Timer`], if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<BootInstant> {
        let phase = match &self.phase {
            Phase::Idle | Phase::Released => None,
            Phase::Seeking(quest) => Some(quest.step.at()),
            Phase::Held(tenure) => Some(self.next_of(tenure)),
            Phase::Closing(tenure, by) => Some(self.next_of(tenure).min(*by)),
            Phase::Emptying(_, by) | Phase::HandingOver(_, by) | Phase::Releasing(_, by) => {
                Some(*by)
            }
            Phase::Fenced { again, .. } => *again,
        };
        match self.own_watch {
            OwnWatch::Broken { again } => Some(phase.map_or(again, |phase| phase.min(again))),
            _ => phase,
        }
    }

    /// Whether nothing will ever happen again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Released | Phase::Fenced { again: None, .. }
        )
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(..) | Phase::Emptying(..))
    }

    /// The claim to which a holder elsewhere may hand over.
    pub(crate) fn heir(&self) -> ClaimId {
        self.heir
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// When the gate opens, or the next attempt to get it is due, if that is known.
    pub(crate) fn next_attempt(&self) -> Option<BootInstant> {
        match &self.phase {
            Phase::Held(tenure) => tenure.opens,
            Phase::Seeking(Quest {
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
            Phase::Seeking(_) => State::Acquiring,
            Phase::Held(Tenure {
                epoch,
                opens: Some(_),
                ..
            }) => State::LockDelay { epoch: *epoch },
            Phase::Held(tenure) if tenure.failures > 0 || self.own_watch.is_ailing() => {
                State::Jeopardy {
                    epoch: tenure.epoch,
                }
            }
            Phase::Held(tenure) => State::Held {
                epoch: tenure.epoch,
            },
            Phase::Closing(tenure, _) => State::Closing {
                epoch: tenure.epoch,
            },
            // Still the state it came from, until the store answers.
            Phase::Emptying(..) | Phase::HandingOver(..) | Phase::Releasing(..) => self.told,
            Phase::Fenced { epoch, cause, .. } => State::Fenced {
                epoch: *epoch,
                cause: *cause,
            },
            Phase::Released => State::Released,
        }
    }

    /// The one door between phases.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.tell();
    }

    fn tell(&mut self) {
        let state = self.state();
        if state != self.told {
            self.told = state;
            self.outputs.push(Output::Publish(state));
        }
    }

    // --- getting it ---

    fn start(&mut self, now: BootInstant) {
        if matches!(self.phase, Phase::Idle) {
            self.seek(now);
        }
    }

    /// Begins a new epoch with a new claim.
    fn seek(&mut self, now: BootInstant) {
        let claim = self.next_claim();
        self.enter(Phase::Seeking(Quest::new(claim, now)));
        self.try_now(now);
    }

    /// Clears what is left of an earlier epoch out of the way, then asks.
    fn try_now(&mut self, now: BootInstant) {
        let by = now.after(self.terms.attempt(self.terms.ttl));
        match (self.orphan, &mut self.phase) {
            (Some(orphan), Phase::Seeking(quest)) => {
                quest.step = Step::Clearing { by };
                self.outputs.push(Output::Disown(orphan));
            }
            _ => self.ask(now),
        }
    }

    fn ask(&mut self, now: BootInstant) {
        let by = now.after(self.terms.attempt(self.terms.ttl));
        let number = self.next_request();
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        // An attempt that may have been carried out fixes the start of validity, however often it is repeated.
        if !quest.unknown {
            quest.first = Some(now);
        }
        quest.step = Step::Asked {
            number,
            by,
            vacated: false,
        };
        self.outputs.push(Output::Acquire(Sent {
            claim: quest.claim,
            number,
            at: now,
        }));
    }

    fn granted(&mut self, sent: Sent, granted: Granted, now: BootInstant) {
        let first = match &self.phase {
            Phase::Seeking(quest) if quest.claim == sent.claim => quest.first.unwrap_or(sent.at),
            // A claim that was given up: the grant is not used, but taken away.
            Phase::Seeking(_) | Phase::Held(_) | Phase::Fenced { again: Some(_), .. }
                if self.held_claim() != Some(sent.claim) =>
            {
                self.outputs.push(Output::Disown(sent.claim));
                return;
            }
            _ => return,
        };
        if granted.epoch.get() <= self.highest {
            // The store has forgotten something.
            self.outputs.push(Output::Distrust {
                epoch: granted.epoch.get(),
                highest: self.highest,
            });
            return self.abandon(now);
        }
        if sent.claim == self.heir {
            return self.confirm(granted, now);
        }
        self.hold(sent.claim, granted, first, now);
    }

    /// It is ours since `first`, or it would be if that were not too long ago.
    fn hold(&mut self, claim: ClaimId, granted: Granted, first: BootInstant, now: BootInstant) {
        let Granted {
            epoch,
            ttl,
            revision,
            is_clean,
        } = granted;
        let until = self.terms.valid_until(first, ttl);
        if now >= until {
            return self.abandon(now);
        }
        let renewal = Renewal::Due(self.renewal_after(first, ttl, now));
        let opens =
            Some(now.after(self.terms.lock_delay)).filter(|opens| !is_clean && *opens > now);
        self.orphan = None;
        self.highest = epoch.get();
        self.counts.acquisitions += 1;
        self.own_watch.reset();
        self.outputs.push(Output::Unwatch);
        if opens.is_none() {
            self.outputs
                .push(Output::Open(epoch, self.open_until(until)));
        }
        self.enter(Phase::Held(Tenure {
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
        if self.terms.keeps_serving {
            BootInstant::END
        } else {
            until
        }
    }

    /// the lock delay is over.
    fn open(&mut self) {
        let Phase::Held(tenure) = &mut self.phase else {
            return;
        };
        tenure.opens = None;
        let (epoch, until) = (tenure.epoch, tenure.until);
        self.outputs
            .push(Output::Open(epoch, self.open_until(until)));
    }

    // --- getting it from a predecessor ---

    /// A holder handed over to us: asks for the token.
    fn inherit(&mut self, now: BootInstant) {
        let heir = self.heir;
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        if quest.claim != heir {
            // What this one asked for and got no answer to can still come: but not while the key is held.
            self.orphan = Some(quest.claim).filter(|_| quest.unknown).or(self.orphan);
            *quest = Quest::new(heir, now);
            self.ask(now);
        }
    }

    /// The transfer gave us the TTL from some time before we asked, so it is renewed before it is used.
    fn confirm(&mut self, granted: Granted, now: BootInstant) {
        if matches!(
            &self.phase,
            Phase::Seeking(Quest {
                step: Step::Confirming { .. },
                ..
            })
        ) {
            return;
        }
        let by = now.after(self.terms.attempt(granted.ttl));
        let number = self.next_request();
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        quest.step = Step::Confirming {
            number,
            by,
            granted,
        };
        self.outputs.push(Output::Renew(Sent {
            claim: quest.claim,
            number,
            at: now,
        }));
    }

    fn confirmed(&mut self, sent: Sent, ttl: Duration, now: BootInstant) {
        let Phase::Seeking(Quest {
            claim,
            step: Step::Confirming {
                number, granted, ..
            },
            ..
        }) = &self.phase
        else {
            return;
        };
        if *claim == sent.claim && *number == sent.number {
            let granted = Granted { ttl, ..*granted };
            self.heir = self.next_claim();
            self.hold(sent.claim, granted, sent.at, now);
        }
    }

    /// Asks again for what was handed over; or begins anew, if that is lost already.
    fn not_confirmed(&mut self, sent: Sent, fault: Fault, now: BootInstant) {
        let at = self.backoff(now);
        let fresh = self.next_claim();
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        if !matches!(quest.step, Step::Confirming { number, .. } if number == sent.number) {
            return;
        }
        if fault == Fault::Lost {
            *quest = Quest {
                contended: true,
                ..Quest::new(fresh, at)
            };
        } else {
            quest.step = Step::Waiting { at };
        }
    }

    /// Gives up a claim that may hold the key, and tries with another one after a pause.
    fn abandon(&mut self, now: BootInstant) {
        let claim = self.next_claim();
        let at = self.long_backoff(now);
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        quest.failures = quest.failures.saturating_add(1);
        let old = std::mem::replace(&mut quest.claim, claim);
        (quest.first, quest.unknown) = (None, false);
        quest.step = Step::Waiting { at };
        self.orphan = Some(old);
        self.outputs.push(Output::Disown(old));
    }

    fn taken(
        &mut self,
        sent: Sent,
        holder: ClaimId,
        expires_in: Option<Duration>,
        now: BootInstant,
    ) {
        let fresh = self.next_claim();
        let (at_once, soon) = (self.after_vacancy(now), self.backoff(now));
        let later = self.renewal_after(now, self.terms.ttl, now);
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        if quest.claim != sent.claim {
            return;
        }
        if holder == self.heir {
            return self.inherit(now);
        }
        let vacated = matches!(quest.step, Step::Asked { vacated: true, .. });
        let ours = self.orphan == Some(holder);
        // What was not answered may still be carried out: then it is an orphan. Otherwise the next round is a new one.
        self.orphan = if ours {
            Some(holder)
        } else {
            Some(quest.claim).filter(|_| quest.unknown)
        };
        let at = match expires_in {
            _ if ours => soon,
            _ if vacated => at_once,
            Some(wait) => later.min(soon.after(wait)),
            None => later,
        };
        *quest = Quest {
            contended: !ours,
            ..Quest::new(fresh, at)
        };
    }

    fn unanswered(&mut self, sent: Sent, fault: Fault, now: BootInstant) {
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        if quest.claim != sent.claim {
            return;
        }
        self.counts.failures.count(fault);
        quest.unknown |= fault == Fault::Unknown;
        // Of a request that was already given up for lost, only that matters.
        if matches!(quest.step, Step::Asked { number, .. } if number == sent.number) {
            self.ask_again(now);
        }
    }

    /// the same claim again; unless even a grant would come too late by now.
    fn ask_again(&mut self, now: BootInstant) {
        let pause = self.long_backoff(now);
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        quest.failures = quest.failures.saturating_add(1);
        let first = quest.first.filter(|_| quest.unknown);
        if first.is_some_and(|first| now >= self.terms.valid_until(first, self.terms.ttl)) {
            return self.abandon(now);
        }
        quest.step = Step::Waiting {
            at: if quest.failures == 1 { now } else { pause },
        };
    }

    // --- keeping it ---

    fn renewed(&mut self, sent: Sent, ttl: Duration, now: BootInstant) {
        if ttl.is_zero() {
            // no time left is lost, whatever the status says.
            return self.not_renewed(sent, Fault::Lost, now);
        }
        // The period counts from this request; the extension too, however late the answer is.
        let until = self.terms.valid_until(sent.at, ttl);
        let due = self.renewal_after(sent.at, ttl, now);
        let Some(tenure) = self
            .tenure_mut()
            .filter(|tenure| tenure.claim == sent.claim)
        else {
            return self.confirmed(sent, ttl, now);
        };
        let extends = until > tenure.until;
        let awaited =
            matches!(tenure.renewal, Renewal::Asked { number, .. } if number == sent.number);
        if !extends && !awaited {
            return;
        }
        let left = tenure.until.since(now);
        let is_open = tenure.opens.is_none();
        tenure.failures = 0;
        if awaited || matches!(tenure.renewal, Renewal::Due(_)) {
            tenure.renewal = Renewal::Due(due);
            tenure.ttl = ttl;
        }
        if extends {
            tenure.until = until;
        }
        self.counts.renewed(left, now.since(sent.at));
        if extends && is_open && !self.terms.keeps_serving {
            self.outputs.push(Output::Extend(until));
        }
    }

    /// nothing but an explicit success extends, and nothing but an explicit loss shortens.
    fn not_renewed(&mut self, sent: Sent, fault: Fault, now: BootInstant) {
        let Some(tenure) = self.tenure().filter(|tenure| tenure.claim == sent.claim) else {
            return self.not_confirmed(sent, fault, now);
        };
        let awaited =
            matches!(tenure.renewal, Renewal::Asked { number, .. } if number == sent.number);
        self.counts.failures.count(fault);
        if fault == Fault::Lost {
            self.fence(Lost::Gone, now);
        } else if awaited {
            self.renew_again(now);
        }
    }

    /// at once the first time, then with a pause, until it is over. R-13: that is jeopardy. R-31: who serves on after
    /// that asks ever more rarely.
    fn renew_again(&mut self, now: BootInstant) {
        let is_over = self.tenure().is_some_and(|tenure| now >= tenure.until);
        let pause = if is_over {
            self.long_backoff(now)
        } else {
            self.backoff(now)
        };
        let Some(tenure) = self.tenure_mut() else {
            return;
        };
        tenure.failures = tenure.failures.saturating_add(1);
        tenure.renewal = Renewal::Due(if tenure.failures == 1 { now } else { pause });
    }

    fn renew(&mut self, now: BootInstant) {
        let number = self.next_request();
        let Some(ttl) = self.tenure().map(|tenure| tenure.ttl) else {
            return;
        };
        let by = now.after(self.terms.attempt(ttl));
        let Some(tenure) = self.tenure_mut() else {
            return;
        };
        tenure.renewal = Renewal::Asked { number, by };
        let sent = Sent {
            claim: tenure.claim,
            number,
            at: now,
        };
        self.outputs.push(Output::Renew(sent));
    }

    // --- losing it, giving it back ---

    /// the gate closes before anything else, and this epoch never opens again.
    fn fence(&mut self, cause: Lost, now: BootInstant) {
        let again = (self.terms.reacquire && !self.stepping_down).then(|| self.backoff(now));
        let Some((epoch, claim)) = self.tenure().map(|tenure| (tenure.epoch, tenure.claim)) else {
            return;
        };
        self.counts.losses.count(cause);
        // A rewound store may have our record still, or again.
        self.orphan = Some(claim).filter(|_| matches!(cause, Lost::Expired | Lost::Rewound));
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
        let by = now.after(self.terms.drain_within);
        match std::mem::replace(&mut self.phase, Phase::Released) {
            // It never opened, so nobody is inside; but the epoch before it may be at work still.
            Phase::Held(tenure) if tenure.opens.is_some() => self.disown(Some(tenure.claim), now),
            Phase::Held(tenure) => {
                self.hands_over = hands_over;
                self.outputs.push(Output::Drain);
                self.enter(Phase::Closing(tenure, by));
            }
            Phase::Seeking(quest) => {
                let asked = quest.unknown
                    || !matches!(quest.step, Step::Waiting { .. } | Step::Clearing { .. });
                self.disown(Some(quest.claim).filter(|_| asked).or(self.orphan), now);
            }
            Phase::Fenced { again: Some(_), .. } => self.disown(self.orphan, now),
            Phase::Idle => self.disown(None, now),
            same => self.phase = same,
        }
    }

    /// Nobody is inside: a clean end.
    fn drained(&mut self, now: BootInstant) {
        let claim = match &self.phase {
            Phase::Closing(tenure, _) => tenure.claim,
            Phase::Emptying(claim, _) => *claim,
            _ => return,
        };
        self.outputs.push(Output::Close);
        self.outputs.push(Output::Forget);
        let by = now.after(self.terms.attempt(self.terms.ttl));
        if self.hands_over {
            self.outputs.push(Output::Transfer(claim));
            self.enter(Phase::HandingOver(claim, by));
        } else {
            self.release(claim, now);
        }
    }

    /// those who are still inside are cancelled, and get a moment to notice.
    fn empty(&mut self, now: BootInstant) {
        let Some(claim) = self.held_claim() else {
            return;
        };
        let by = now.after(self.terms.attempt(self.terms.ttl));
        self.outputs.push(Output::Close);
        self.enter(Phase::Emptying(claim, by));
    }

    fn release(&mut self, claim: ClaimId, now: BootInstant) {
        self.outputs.push(Output::Release(claim));
        let by = now.after(self.terms.attempt(self.terms.ttl));
        self.enter(Phase::Releasing(claim, by));
    }

    /// Leaves, with what this claim may hold; no clean end.
    fn disown(&mut self, claim: Option<ClaimId>, now: BootInstant) {
        self.outputs.push(Output::Forget);
        let Some(claim) = claim else {
            return self.enter(Phase::Released);
        };
        self.outputs.push(Output::Disown(claim));
        let by = now.after(self.terms.attempt(self.terms.ttl));
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
        if certain && self.orphan == Some(claim) {
            self.orphan = None;
        }
        match &self.phase {
            // an unknown result is "released" here; the TTL cleans up there.
            Phase::Releasing(which, _) if *which == claim => self.enter(Phase::Released),
            Phase::Seeking(Quest {
                step: Step::Clearing { .. },
                ..
            }) => self.ask(now),
            _ => {}
        }
    }

    // --- watching it ---

    fn watched(&mut self, seen: Seen, now: BootInstant) {
        if let Seen::Broken = seen {
            return self.watch_broke(now);
        }
        match seen {
            _ if self.tenure().is_some() => self.watched_own(seen, now),
            Seen::Held(claim, _) if claim == self.heir => self.inherit(now),
            Seen::Vacant(_) => self.hurry(now),
            _ => {}
        }
    }

    /// gone or another's is lost, at once. Only a report that it is ours is a sign of health.
    ///
    /// The watch was opened for this epoch, from the grant's revision on. So a report from before that is no old news: the
    /// store does not know of the grant any more.
    fn watched_own(&mut self, seen: Seen, now: BootInstant) {
        let Some(tenure) = self.tenure() else { return };
        let cause = match seen {
            Seen::Broken => return,
            Seen::Vacant(revision) | Seen::Held(_, revision) if revision < tenure.revision => {
                Lost::Rewound
            }
            Seen::Vacant(_) => Lost::Gone,
            Seen::Held(claim, _) if claim != tenure.claim => Lost::Replaced,
            Seen::Held(..) => {
                if let OwnWatch::Open { ailing } = &mut self.own_watch {
                    *ailing = false;
                }
                return;
            }
        };
        self.fence(cause, now);
    }

    /// contenders come after a vacancy, but not all at once. One that has just asked may be told of the time before
    /// it: the two come by different ways.
    fn hurry(&mut self, now: BootInstant) {
        let soon = self.after_vacancy(now);
        match &mut self.phase {
            Phase::Seeking(Quest {
                contended: true,
                step: Step::Waiting { at },
                ..
            }) => *at = soon.min(*at),
            Phase::Seeking(Quest {
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
    fn tend_watch(&mut self, now: BootInstant) {
        let wanted = match &self.phase {
            Phase::Seeking(quest) => Some(Revision::START).filter(|_| quest.contended),
            Phase::Held(tenure) | Phase::Closing(tenure, _) => Some(tenure.revision),
            _ => None,
        };
        match (wanted, &self.own_watch) {
            (Some(from), OwnWatch::Off) => self.open_watch(from, false),
            (Some(from), OwnWatch::Broken { again }) if now >= *again => {
                self.open_watch(from, true)
            }
            (None, OwnWatch::Open { .. } | OwnWatch::Broken { .. }) => {
                self.own_watch = OwnWatch::Off;
                self.outputs.push(Output::Unwatch);
            }
            _ => {}
        }
    }

    fn open_watch(&mut self, from: Revision, ailing: bool) {
        self.own_watch = OwnWatch::Open { ailing };
        self.outputs.push(Output::Watch(from));
    }

    // --- time ---

    /// Does what is due.
    fn tick(&mut self, now: BootInstant) {
        match &self.phase {
            Phase::Seeking(quest) if now >= quest.step.at() => self.quest_due(now),
            Phase::Closing(_, by) if now >= *by => self.empty(now),
            // Someone is inside still, and may be at work: no clean end.
            Phase::Emptying(claim, by) if now >= *by => self.disown(Some(*claim), now),
            Phase::HandingOver(claim, by) if now >= *by => self.release(*claim, now),
            Phase::Held(tenure) if tenure.opens.is_some_and(|opens| now >= opens) => {
                self.open();
                self.tick(now);
            }
            Phase::Held(tenure) | Phase::Closing(tenure, _) => match tenure.renewal {
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
            } if now >= *again => self.seek(now),
            _ => {}
        }
    }

    fn quest_due(&mut self, now: BootInstant) {
        let Phase::Seeking(quest) = &mut self.phase else {
            return;
        };
        match quest.step {
            Step::Waiting { .. } => self.try_now(now),
            Step::Clearing { .. } | Step::Confirming { .. } => self.ask(now),
            Step::Asked { .. } => {
                self.counts.failures.timed_out += 1;
                quest.unknown = true;
                self.ask_again(now);
                if self.next_attempt().is_some_and(|at| now >= at) {
                    self.try_now(now);
                }
            }
        }
    }

    fn renew_if_due(&mut self, now: BootInstant) {
        if self
            .tenure()
            .is_some_and(|tenure| matches!(tenure.renewal, Renewal::Due(at) if now >= at))
        {
            self.renew(now);
        }
    }

    /// the period counts from the sending, with jitter only to the early side.
    fn renewal_after(&mut self, sent: BootInstant, ttl: Duration, now: BootInstant) -> BootInstant {
        let period = self.terms.renew_every(ttl).max(self.terms.least_period());
        let due = sent.after(period.mul_f64(0.8 + 0.2 * self.rng.f64()));
        due.max(now)
    }

    fn backoff(&mut self, now: BootInstant) -> BootInstant {
        now.after(Duration::from_millis(self.rng.u64(BACKOFF_MS)))
    }

    /// While nothing is held there is no hurry: doubles up to the renewal period, so that a store that comes back is
    /// not run over.
    fn long_backoff(&mut self, now: BootInstant) -> BootInstant {
        let failures = match &self.phase {
            Phase::Seeking(quest) => quest.failures,
            _ => self.tenure().map_or(0, |tenure| tenure.failures),
        };
        let longest = self
            .terms
            .renew_every(self.terms.ttl)
            .max(Duration::from_millis(*BACKOFF_MS.end()));
        let pause = Duration::from_millis(self.rng.u64(BACKOFF_MS))
            * (1 << failures.saturating_sub(1).min(6));
        now.after(pause.min(longest))
    }

    // --- bookkeeping ---

    fn tenure(&self) -> Option<&Tenure> {
        match &self.phase {
            Phase::Held(tenure) | Phase::Closing(tenure, _) => Some(tenure),
            _ => None,
        }
    }

    fn tenure_mut(&mut self) -> Option<&mut Tenure> {
        match &mut self.phase {
            Phase::Held(tenure) | Phase::Closing(tenure, _) => Some(tenure),
            _ => None,
        }
    }

    /// When something is due for a lease that is held.
    fn next_of(&self, tenure: &Tenure) -> BootInstant {
        let (Renewal::Due(renewal) | Renewal::Asked { by: renewal, .. }) = tenure.renewal;
        let end = if self.terms.keeps_serving {
            BootInstant::END
        } else {
            tenure.until
        };
        renewal
            .min(end)
            .min(tenure.opens.unwrap_or(BootInstant::END))
    }

    fn held_claim(&self) -> Option<ClaimId> {
        self.tenure().map(|tenure| tenure.claim)
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

// === impl Quest, Step, OwnWatch ===

impl Quest {
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
    const fn is_ailing(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Open { ailing: true })
    }

    fn reset(&mut self) {
        if *self != Self::Unsupported {
            *self = Self::Off;
        }
    }
}
