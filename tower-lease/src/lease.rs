//! The heart: what a keeper does next. No clock, no task, no socket.
//!
//! Every input comes with the time at which it was handled, and that is also the time before which none of the outputs
//! can have been sent.

use std::{num::NonZeroU64, time::Duration};

use fastrand::Rng;

use crate::{BootInstant, ClaimId, Fault, Lost, Revision, State, terms::Terms};

/// The keeper's state machine.
#[derive(Debug)]
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
    requests: u64,
    /// The highest epoch held so far: no path leads back to it.
    highest: u64,
    /// A claim of ours that may still hold the key, and is to be released before the next one tries.
    orphan: Option<ClaimId>,
    stepping_down: bool,
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
    Watched(Seen),
    StepDown,
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
    Release(ClaimId),
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
    Granted { epoch: NonZeroU64, ttl: Duration, revision: Revision },
    Held { claim: ClaimId, expires_in: Option<Duration> },
}

/// What the watch of the own key says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    Held(ClaimId, Revision),
    Vacant(Revision),
    Broken,
}

#[derive(Debug)]
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
    /// Giving it back. -> `Released` when answered, or not answered in time.
    Releasing(ClaimId, BootInstant),
    /// Lost. -> `Seeking` at `again`; the end without that.
    Fenced { epoch: NonZeroU64, cause: Lost, again: Option<BootInstant> },
    /// Given back. The end.
    Released,
}

#[derive(Debug)]
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

#[derive(Debug)]
enum Step {
    /// -> an answer, or taken as unknown at `by`.
    Asked { number: u64, by: BootInstant },
    /// An orphan is being released. -> asks when answered, or at `by`.
    Clearing { by: BootInstant },
    /// -> asks at `at`, or soon after the key is seen vacant.
    Waiting { at: BootInstant },
}

#[derive(Debug)]
struct Tenure {
    claim: ClaimId,
    epoch: NonZeroU64,
    revision: Revision,
    until: BootInstant,
    ttl: Duration,
    failures: u32,
    renewal: Renewal,
}

#[derive(Debug)]
enum Renewal {
    Due(BootInstant),
    /// -> an answer, or failed at `by`.
    Asked {
        number: u64,
        by: BootInstant,
    },
}

#[derive(Debug, PartialEq)]
enum OwnWatch {
    Unsupported,
    Off,
    /// `true`: it broke before, and has not reported since.
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
            own_watch: if can_watch { OwnWatch::Off } else { OwnWatch::Unsupported },
            told: State::Idle,
            first_claim,
            claims: 0,
            requests: 0,
            highest: 0,
            orphan: None,
            stepping_down: false,
            outputs: Vec::new(),
        }
    }

    /// The one entrance. Whatever comes, an expired lease is fenced first.
    pub(crate) fn on(&mut self, input: Input, now: BootInstant) -> Vec<Output> {
        if self.tenure().is_some_and(|tenure| now >= tenure.until) {
            self.fence(Lost::Expired, now);
        }
        match input {
            Input::Start => self.start(now),
            Input::Acquired(sent, Ok(Reply::Granted { epoch, ttl, revision })) => {
                self.granted(sent, epoch, ttl, revision, now);
            }
            Input::Acquired(sent, Ok(Reply::Held { claim, expires_in })) => self.taken(sent, claim, expires_in, now),
            Input::Acquired(sent, Err(fault)) => self.unanswered(sent, fault, now),
            Input::Renewed(sent, Ok(ttl)) => self.renewed(sent, ttl, now),
            Input::Renewed(sent, Err(fault)) => self.not_renewed(sent, fault, now),
            Input::Released(claim, certain) => self.released(claim, certain, now),
            Input::Watched(seen) => self.watched(seen, now),
            Input::StepDown => self.step_down(now),
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
            Phase::Held(tenure) => Some(tenure.next()),
            Phase::Closing(tenure, by) => Some(tenure.next().min(*by)),
            Phase::Emptying(_, by) | Phase::Releasing(_, by) => Some(*by),
            Phase::Fenced { again, .. } => *again,
        };
        match self.own_watch {
            OwnWatch::Broken { again } => Some(phase.map_or(again, |phase| phase.min(again))),
            _ => phase,
        }
    }

    /// Whether nothing will ever happen again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Released | Phase::Fenced { again: None, .. })
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(..) | Phase::Emptying(..))
    }

    /// When the next attempt to get it is due, if it is not ours and that is known.
    pub(crate) fn next_attempt(&self) -> Option<BootInstant> {
        match &self.phase {
            Phase::Seeking(Quest { step: Step::Waiting { at }, .. }) => Some(*at),
            Phase::Fenced { again, .. } => *again,
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> State {
        match &self.phase {
            Phase::Idle => State::Idle,
            Phase::Seeking(_) => State::Acquiring,
            Phase::Held(tenure) if tenure.failures > 0 || self.own_watch.is_ailing() => {
                State::Jeopardy { epoch: tenure.epoch }
            }
            Phase::Held(tenure) => State::Held { epoch: tenure.epoch },
            Phase::Closing(tenure, _) => State::Closing { epoch: tenure.epoch },
            // Still the state it came from, until the store answers.
            Phase::Emptying(..) | Phase::Releasing(..) => self.told,
            Phase::Fenced { epoch, cause, .. } => State::Fenced { epoch: *epoch, cause: *cause },
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
        let step = Step::Waiting { at: now };
        self.enter(Phase::Seeking(Quest { claim, first: None, unknown: false, failures: 0, contended: false, step }));
        self.try_now(now);
    }

    /// Clears what is left of an earlier epoch out of the way, then asks.
    fn try_now(&mut self, now: BootInstant) {
        let by = now.after(self.terms.attempt(self.terms.ttl));
        match (self.orphan, &mut self.phase) {
            (Some(orphan), Phase::Seeking(quest)) => {
                quest.step = Step::Clearing { by };
                self.outputs.push(Output::Release(orphan));
            }
            _ => self.ask(now),
        }
    }

    fn ask(&mut self, now: BootInstant) {
        let by = now.after(self.terms.attempt(self.terms.ttl));
        let number = self.next_request();
        let Phase::Seeking(quest) = &mut self.phase else { return };
        // An attempt that may have been carried out fixes the start of validity, however often it is repeated.
        if !quest.unknown {
            quest.first = Some(now);
        }
        quest.step = Step::Asked { number, by };
        self.outputs.push(Output::Acquire(Sent { claim: quest.claim, number, at: now }));
    }

    fn granted(&mut self, sent: Sent, epoch: NonZeroU64, ttl: Duration, revision: Revision, now: BootInstant) {
        let first = match &self.phase {
            Phase::Seeking(quest) if quest.claim == sent.claim => quest.first.unwrap_or(sent.at),
            // A claim that was given up: the grant is not used, but released.
            Phase::Seeking(_) | Phase::Held(_) if self.held_claim() != Some(sent.claim) => {
                self.outputs.push(Output::Release(sent.claim));
                return;
            }
            _ => return,
        };
        if epoch.get() <= self.highest {
            // The store has forgotten something.
            self.outputs.push(Output::Distrust { epoch: epoch.get(), highest: self.highest });
            return self.abandon(now);
        }
        let until = self.terms.valid_until(first, ttl);
        if now >= until {
            return self.abandon(now);
        }
        let renewal = Renewal::Due(self.renewal_after(first, ttl, now));
        let claim = sent.claim;
        self.orphan = None;
        self.highest = epoch.get();
        self.own_watch.reset();
        self.outputs.push(Output::Unwatch);
        self.outputs.push(Output::Open(epoch, until));
        self.enter(Phase::Held(Tenure { claim, epoch, revision, until, ttl, failures: 0, renewal }));
    }

    /// Gives up a claim that may hold the key, and tries with another one after a pause.
    fn abandon(&mut self, now: BootInstant) {
        let claim = self.next_claim();
        let at = self.backoff(now);
        let Phase::Seeking(quest) = &mut self.phase else { return };
        let old = std::mem::replace(&mut quest.claim, claim);
        (quest.first, quest.unknown) = (None, false);
        quest.step = Step::Waiting { at };
        self.orphan = Some(old);
        self.outputs.push(Output::Release(old));
    }

    fn taken(&mut self, sent: Sent, holder: ClaimId, expires_in: Option<Duration>, now: BootInstant) {
        let fresh = self.next_claim();
        let soon = self.backoff(now);
        let later = self.renewal_after(now, self.terms.ttl, now);
        let Phase::Seeking(quest) = &mut self.phase else { return };
        if quest.claim != sent.claim {
            return;
        }
        let ours = self.orphan == Some(holder);
        // What was not answered may still be carried out: then it is an orphan. Otherwise the next round is a new one.
        self.orphan = if ours { Some(holder) } else { Some(quest.claim).filter(|_| quest.unknown) };
        let at = if ours { soon } else { expires_in.map_or(later, |wait| later.min(soon.after(wait))) };
        *quest = Quest {
            claim: fresh,
            first: None,
            unknown: false,
            failures: 0,
            contended: !ours,
            step: Step::Waiting { at },
        };
    }

    fn unanswered(&mut self, sent: Sent, fault: Fault, now: BootInstant) {
        let Phase::Seeking(quest) = &mut self.phase else { return };
        if quest.claim != sent.claim {
            return;
        }
        quest.unknown |= fault == Fault::Unknown;
        // Of a request that was already given up for lost, only that matters.
        if matches!(quest.step, Step::Asked { number, .. } if number == sent.number) {
            self.ask_again(now);
        }
    }

    /// the same claim again; unless even a grant would come too late by now.
    fn ask_again(&mut self, now: BootInstant) {
        let pause = self.long_backoff(now);
        let Phase::Seeking(quest) = &mut self.phase else { return };
        quest.failures = quest.failures.saturating_add(1);
        let first = quest.first.filter(|_| quest.unknown);
        if first.is_some_and(|first| now >= self.terms.valid_until(first, self.terms.ttl)) {
            return self.abandon(now);
        }
        quest.step = Step::Waiting { at: if quest.failures == 1 { now } else { pause } };
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
        let Some(tenure) = self.tenure_mut().filter(|tenure| tenure.claim == sent.claim) else { return };
        let extends = until > tenure.until;
        let awaited = matches!(tenure.renewal, Renewal::Asked { number, .. } if number == sent.number);
        if !extends && !awaited {
            return;
        }
        tenure.failures = 0;
        if awaited || matches!(tenure.renewal, Renewal::Due(_)) {
            tenure.renewal = Renewal::Due(due);
            tenure.ttl = ttl;
        }
        if extends {
            tenure.until = until;
            self.outputs.push(Output::Extend(until));
        }
    }

    /// nothing but an explicit success extends, and nothing but an explicit loss shortens.
    fn not_renewed(&mut self, sent: Sent, fault: Fault, now: BootInstant) {
        let Some(tenure) = self.tenure().filter(|tenure| tenure.claim == sent.claim) else { return };
        if fault == Fault::Lost {
            return self.fence(Lost::Gone, now);
        }
        if matches!(tenure.renewal, Renewal::Asked { number, .. } if number == sent.number) {
            self.renew_again(now);
        }
    }

    /// at once the first time, then with a pause, until it is over. R-13: that is jeopardy.
    fn renew_again(&mut self, now: BootInstant) {
        let pause = self.backoff(now);
        let Some(tenure) = self.tenure_mut() else { return };
        tenure.failures = tenure.failures.saturating_add(1);
        tenure.renewal = Renewal::Due(if tenure.failures == 1 { now } else { pause });
    }

    fn renew(&mut self, now: BootInstant) {
        let number = self.next_request();
        let Some(ttl) = self.tenure().map(|tenure| tenure.ttl) else { return };
        let by = now.after(self.terms.attempt(ttl));
        let Some(tenure) = self.tenure_mut() else { return };
        tenure.renewal = Renewal::Asked { number, by };
        let sent = Sent { claim: tenure.claim, number, at: now };
        self.outputs.push(Output::Renew(sent));
    }

    // --- losing it, giving it back ---

    /// the gate closes before anything else, and this epoch never opens again.
    fn fence(&mut self, cause: Lost, now: BootInstant) {
        let again = (self.terms.reacquire && !self.stepping_down).then(|| self.backoff(now));
        let Some(tenure) = self.tenure() else { return };
        let (epoch, claim) = (tenure.epoch, tenure.claim);
        self.orphan = Some(claim).filter(|_| cause == Lost::Expired);
        self.outputs.push(Output::Close);
        self.enter(Phase::Fenced { epoch, cause, again });
    }

    /// closes to new ones, waits for those inside, and only then releases.
    fn step_down(&mut self, now: BootInstant) {
        self.stepping_down = true;
        let by = now.after(self.terms.drain_within);
        match std::mem::replace(&mut self.phase, Phase::Released) {
            Phase::Held(tenure) => {
                self.outputs.push(Output::Drain);
                self.enter(Phase::Closing(tenure, by));
            }
            Phase::Seeking(quest) => {
                let asked = quest.unknown || matches!(quest.step, Step::Asked { .. });
                self.leave(Some(quest.claim).filter(|_| asked).or(self.orphan), now);
            }
            Phase::Fenced { again: Some(_), .. } => self.leave(self.orphan, now),
            Phase::Idle => self.leave(None, now),
            same => self.phase = same,
        }
    }

    fn drained(&mut self, now: BootInstant) {
        let claim = match &self.phase {
            Phase::Closing(tenure, _) => tenure.claim,
            Phase::Emptying(claim, _) => *claim,
            _ => return,
        };
        self.outputs.push(Output::Close);
        self.leave(Some(claim), now);
    }

    /// those who are still inside are cancelled, and get a moment to notice.
    fn empty(&mut self, now: BootInstant) {
        let Some(claim) = self.held_claim() else { return };
        let by = now.after(self.terms.attempt(self.terms.ttl));
        self.outputs.push(Output::Close);
        self.enter(Phase::Emptying(claim, by));
    }

    fn leave(&mut self, claim: Option<ClaimId>, now: BootInstant) {
        self.outputs.push(Output::Forget);
        match claim {
            Some(claim) => {
                self.outputs.push(Output::Release(claim));
                let by = now.after(self.terms.attempt(self.terms.ttl));
                self.enter(Phase::Releasing(claim, by));
            }
            None => self.enter(Phase::Released),
        }
    }

    fn released(&mut self, claim: ClaimId, certain: bool, now: BootInstant) {
        if certain && self.orphan == Some(claim) {
            self.orphan = None;
        }
        match &self.phase {
            // an unknown result is "released" here; the TTL cleans up there.
            Phase::Releasing(which, _) if *which == claim => self.enter(Phase::Released),
            Phase::Seeking(Quest { step: Step::Clearing { .. }, .. }) => self.ask(now),
            _ => {}
        }
    }

    // --- watching it ---

    fn watched(&mut self, seen: Seen, now: BootInstant) {
        if let Seen::Broken = seen {
            return self.watch_broke(now);
        }
        if let OwnWatch::Open { ailing } = &mut self.own_watch {
            *ailing = false;
        }
        if self.tenure().is_some() {
            self.watched_own(seen, now);
        } else if let Seen::Vacant(_) = seen {
            self.hurry(now);
        }
    }

    /// gone or another's is lost, at once. What the watch says of the time before the grant is old news.
    fn watched_own(&mut self, seen: Seen, now: BootInstant) {
        let Some(tenure) = self.tenure() else { return };
        match seen {
            Seen::Vacant(revision) if revision >= tenure.revision => self.fence(Lost::Gone, now),
            Seen::Held(claim, revision) if revision >= tenure.revision && claim != tenure.claim => {
                self.fence(Lost::Replaced, now);
            }
            _ => {}
        }
    }

    /// contenders come after a vacancy, but not all at once.
    fn hurry(&mut self, now: BootInstant) {
        let soon = now.after(Duration::from_millis(self.rng.u64(CONTENDER_JITTER_MS)));
        if let Phase::Seeking(Quest { contended: true, step: Step::Waiting { at }, .. }) = &mut self.phase {
            *at = soon.min(*at);
        }
    }

    fn watch_broke(&mut self, now: BootInstant) {
        if matches!(self.own_watch, OwnWatch::Open { .. }) {
            self.own_watch = OwnWatch::Broken { again: self.backoff(now) };
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
            (Some(from), OwnWatch::Broken { again }) if now >= *again => self.open_watch(from, true),
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
            Phase::Emptying(_, by) if now >= *by => self.drained(now),
            Phase::Held(tenure) | Phase::Closing(tenure, _) => match tenure.renewal {
                Renewal::Due(at) if now >= at => self.renew(now),
                Renewal::Asked { by, .. } if now >= by => {
                    self.renew_again(now);
                    self.renew_if_due(now);
                }
                _ => {}
            },
            Phase::Releasing(_, by) if now >= *by => self.enter(Phase::Released),
            Phase::Fenced { again: Some(again), .. } if now >= *again => self.seek(now),
            _ => {}
        }
    }

    fn quest_due(&mut self, now: BootInstant) {
        let Phase::Seeking(quest) = &mut self.phase else { return };
        match quest.step {
            Step::Waiting { .. } => self.try_now(now),
            Step::Clearing { .. } => self.ask(now),
            Step::Asked { .. } => {
                quest.unknown = true;
                self.ask_again(now);
                if self.next_attempt().is_some_and(|at| now >= at) {
                    self.try_now(now);
                }
            }
        }
    }

    fn renew_if_due(&mut self, now: BootInstant) {
        if self.tenure().is_some_and(|tenure| matches!(tenure.renewal, Renewal::Due(at) if now >= at)) {
            self.renew(now);
        }
    }

    /// the period counts from the sending, with jitter only to the early side.
    fn renewal_after(&mut self, sent: BootInstant, ttl: Duration, now: BootInstant) -> BootInstant {
        let period = self.terms.renew_every(ttl);
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
            _ => 0,
        };
        let longest = self.terms.renew_every(self.terms.ttl).max(Duration::from_millis(*BACKOFF_MS.end()));
        let pause = Duration::from_millis(self.rng.u64(BACKOFF_MS)) * (1 << failures.saturating_sub(1).min(6));
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

// === impl Step, Tenure, OwnWatch ===

impl Step {
    const fn at(&self) -> BootInstant {
        match self {
            Self::Asked { by: at, .. } | Self::Clearing { by: at } | Self::Waiting { at } => *at,
        }
    }
}

impl Tenure {
    fn next(&self) -> BootInstant {
        let (Renewal::Due(at) | Renewal::Asked { by: at, .. }) = self.renewal;
        at.min(self.until)
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

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    /// TTL less the margin of 0.7 s.
    const VALID_MS: u64 = 9_300;

    const fn ms(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    fn core(terms: Terms) -> Core {
        Core::new(terms, ClaimId::from_u128(1_000), true, 7)
    }

    fn epoch(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    fn grant(number: u64, ttl: Duration) -> Result<Reply, Fault> {
        Ok(Reply::Granted { epoch: epoch(number), ttl, revision: Revision::new(number) })
    }

    fn acquire_in(outputs: &[Output]) -> Option<Sent> {
        outputs.iter().find_map(|output| match output {
            Output::Acquire(sent) => Some(*sent),
            _ => None,
        })
    }

    fn renew_in(outputs: &[Output]) -> Option<Sent> {
        outputs.iter().find_map(|output| match output {
            Output::Renew(sent) => Some(*sent),
            _ => None,
        })
    }

    fn release_in(outputs: &[Output]) -> Option<ClaimId> {
        outputs.iter().find_map(|output| match output {
            Output::Release(claim) => Some(*claim),
            _ => None,
        })
    }

    fn until(core: &Core) -> BootInstant {
        core.tenure().unwrap().until
    }

    /// Held since 0, with the grant's answer at `answered`.
    fn held(terms: Terms, answered: u64) -> (Core, Sent) {
        let mut core = core(terms);
        let sent = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        core.on(Input::Acquired(sent, grant(5, TTL)), ms(answered));
        assert!(core.state().is_held());
        core.on(Input::Watched(Seen::Held(sent.claim, Revision::new(5))), ms(answered));
        (core, sent)
    }

    /// Goes from deadline to deadline until a renewal is sent.
    fn next_renewal(core: &mut Core) -> (Sent, BootInstant) {
        for _ in 0..100 {
            let at = core.deadline().unwrap();
            if let Some(sent) = renew_in(&core.on(Input::Timer, at)) {
                return (sent, at);
            }
        }
        panic!("no renewal is sent");
    }

    fn reacquiring() -> Terms {
        Terms { reacquire: true, ..Terms::default() }
    }

    #[test]
    fn r1_validity_does_not_move_with_the_delay_of_the_answer() {
        for delay in [0, 1, 500, 900] {
            let (mut core, _) = held(Terms::default(), delay);
            assert_eq!(until(&core), ms(VALID_MS), "the grant came after {delay} ms");
            let (sent, at) = next_renewal(&mut core);
            core.on(Input::Renewed(sent, Ok(TTL)), at.after(Duration::from_millis(delay)));
            assert_eq!(until(&core), at.after(Duration::from_millis(VALID_MS)), "the renewal's came after {delay} ms");
        }
    }

    #[test]
    fn r2_the_granted_ttl_counts_not_the_one_asked_for() {
        for (ttl, valid) in [(TTL * 3, 30_000 - 600 - 1_500), (TTL / 3, 3_333 - 66 - 250)] {
            let mut core = core(Terms::default());
            let sent = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
            core.on(Input::Acquired(sent, grant(5, ttl)), ms(10));
            assert!(until(&core).since(ms(valid)) < Duration::from_millis(1), "{ttl:?}");
            let due = core.deadline().unwrap();
            assert!(due >= BootInstant::from_nanos(0).after(ttl / 5) && due <= ms(0).after(ttl / 4), "{ttl:?}");
        }
    }

    #[test]
    fn r6_whatever_comes_late_finds_an_expired_lease_fenced() {
        let (mut core, _) = held(Terms::default(), 0);
        let (sent, _) = next_renewal(&mut core);
        let outputs = core.on(Input::Renewed(sent, Ok(TTL)), ms(VALID_MS));
        assert_eq!(outputs[0], Output::Close);
        assert_eq!(core.state(), State::Fenced { epoch: epoch(5), cause: Lost::Expired });
        assert!(core.is_over());
    }

    #[test]
    fn r7_only_an_explicit_success_for_this_epoch_extends() {
        for fault in [Fault::Unknown, Fault::NotSent, Fault::Refused] {
            let (mut core, _) = held(Terms::default(), 0);
            let (sent, at) = next_renewal(&mut core);
            core.on(Input::Renewed(sent, Err(fault)), at);
            assert_eq!(until(&core), ms(VALID_MS), "{fault:?}");
            assert!(core.state().is_held());
        }
        let (mut core, _) = held(Terms::default(), 0);
        let (sent, at) = next_renewal(&mut core);
        let other = Sent { claim: ClaimId::from_u128(7), ..sent };
        core.on(Input::Renewed(other, Ok(TTL)), at);
        assert_eq!(until(&core), ms(VALID_MS), "another claim's success");
        core.on(Input::Renewed(other, Err(Fault::Lost)), at);
        assert!(core.state().is_held(), "nor does another claim's loss fence");
    }

    #[test]
    fn r8_reordered_and_repeated_answers_never_shorten_nor_stretch() {
        let (mut core, _) = held(Terms::default(), 0);
        let (first, at) = next_renewal(&mut core);
        // The first is not answered in time, the second is, and then comes the first one's.
        let (second, later) = next_renewal(&mut core);
        assert!(later > at);
        let good = later.after(Duration::from_millis(VALID_MS));
        core.on(Input::Renewed(second, Ok(TTL)), later);
        assert_eq!(until(&core), good);
        for repeated in [first, second, first, second, first] {
            core.on(Input::Renewed(repeated, Ok(TTL)), later);
            assert_eq!(until(&core), good);
        }
    }

    #[test]
    fn r8_a_late_answer_counts_from_its_own_request() {
        let (mut core, _) = held(Terms::default(), 0);
        let (first, at) = next_renewal(&mut core);
        let (_, later) = next_renewal(&mut core);
        assert!(matches!(core.state(), State::Jeopardy { .. }));
        core.on(Input::Renewed(first, Ok(TTL)), later);
        assert_eq!(until(&core), at.after(Duration::from_millis(VALID_MS)));
        assert!(matches!(core.state(), State::Held { .. }), "R-13: a success ends jeopardy");
    }

    #[test]
    fn r9_renewals_come_early_and_retries_at_once_then_with_a_pause() {
        for seed in 0..100 {
            let mut core = Core::new(Terms::default(), ClaimId::from_u128(0), true, seed);
            let sent = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
            core.on(Input::Acquired(sent, grant(5, TTL)), ms(0));
            let (sent, at) = next_renewal(&mut core);
            assert!((ms(2_000)..=ms(2_500)).contains(&at), "period/4 × [0.8, 1.0]: {at:?}");
            let outputs = core.on(Input::Renewed(sent, Err(Fault::Unknown)), at);
            let sent = renew_in(&outputs).expect("the first retry is immediate");
            core.on(Input::Renewed(sent, Err(Fault::Unknown)), at);
            let pause = core.deadline().unwrap().since(at).as_millis();
            assert!((100..=500).contains(&pause), "{pause} ms");
        }
    }

    #[test]
    fn r9_an_attempt_is_given_up_after_a_tenth_of_the_ttl() {
        let (mut core, _) = held(Terms::default(), 0);
        let (_, at) = next_renewal(&mut core);
        assert_eq!(core.deadline(), Some(at.after(Duration::from_secs(1))));
        assert!(renew_in(&core.on(Input::Timer, at.after(Duration::from_secs(1)))).is_some());
    }

    #[test]
    fn r11_lost_is_lost_at_once_whatever_validity_is_left() {
        let (mut core, _) = held(Terms::default(), 0);
        let (sent, at) = next_renewal(&mut core);
        let outputs = core.on(Input::Renewed(sent, Err(Fault::Lost)), at);
        assert_eq!(outputs[0], Output::Close, "before anything else");
        assert_eq!(core.state(), State::Fenced { epoch: epoch(5), cause: Lost::Gone });
        let (mut core, _) = held(Terms::default(), 0);
        let (sent, at) = next_renewal(&mut core);
        core.on(Input::Renewed(sent, Ok(Duration::ZERO)), at);
        assert!(matches!(core.state(), State::Fenced { .. }), "a success with no time left is none");
    }

    #[test]
    fn r12_the_own_record_is_watched_and_its_end_is_the_end() {
        let (mut core, sent) = held(Terms::default(), 0);
        for stale in [Seen::Vacant(Revision::new(4)), Seen::Held(ClaimId::from_u128(1), Revision::new(4))] {
            core.on(Input::Watched(stale), ms(10));
            assert!(core.state().is_held(), "older than the grant: {stale:?}");
        }
        core.on(Input::Watched(Seen::Held(sent.claim, Revision::new(9))), ms(10));
        assert!(core.state().is_held());
        core.on(Input::Watched(Seen::Held(ClaimId::from_u128(1), Revision::new(9))), ms(10));
        assert_eq!(core.state(), State::Fenced { epoch: epoch(5), cause: Lost::Replaced });
        let (mut core, _) = held(Terms::default(), 0);
        core.on(Input::Watched(Seen::Vacant(Revision::new(6))), ms(10));
        assert_eq!(core.state(), State::Fenced { epoch: epoch(5), cause: Lost::Gone });
    }

    #[test]
    fn r12_a_watch_that_breaks_is_jeopardy_until_it_reports_again() {
        let (mut core, sent) = held(Terms::default(), 0);
        core.on(Input::Watched(Seen::Broken), ms(10));
        assert_eq!(core.state(), State::Jeopardy { epoch: epoch(5) });
        let again = core.deadline().unwrap();
        let outputs = core.on(Input::Timer, again);
        assert!(outputs.contains(&Output::Watch(Revision::new(5))), "{outputs:?}");
        assert_eq!(core.state(), State::Jeopardy { epoch: epoch(5) }, "opened is not yet heard");
        core.on(Input::Watched(Seen::Held(sent.claim, Revision::new(5))), again);
        assert_eq!(core.state(), State::Held { epoch: epoch(5) });
        assert_eq!(until(&core), ms(VALID_MS), "it extends nothing");
    }

    #[test]
    fn r13_failing_renewals_are_jeopardy_until_a_success() {
        let (mut core, _) = held(Terms::default(), 0);
        let (sent, at) = next_renewal(&mut core);
        let outputs = core.on(Input::Renewed(sent, Err(Fault::NotSent)), at);
        assert!(outputs.contains(&Output::Publish(State::Jeopardy { epoch: epoch(5) })), "{outputs:?}");
        let sent = renew_in(&outputs).unwrap();
        let outputs = core.on(Input::Renewed(sent, Ok(TTL)), at);
        assert!(outputs.contains(&Output::Publish(State::Held { epoch: epoch(5) })), "{outputs:?}");
    }

    #[test]
    fn r14_a_grant_that_comes_too_late_is_released_and_not_used() {
        let mut core = core(Terms::default());
        let sent = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let outputs = core.on(Input::Acquired(sent, grant(5, TTL)), ms(VALID_MS));
        assert_eq!(release_in(&outputs), Some(sent.claim));
        assert!(!outputs.iter().any(|output| matches!(output, Output::Open(..))), "{outputs:?}");
        assert_eq!(core.state(), State::Acquiring);
    }

    #[test]
    fn r14_a_grant_for_a_claim_given_up_is_released() {
        let mut core = core(Terms::default());
        let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        core.on(Input::Timer, ms(1_000));
        // The second attempt of the claim learns that another holds it, so the next round has another claim.
        let reply = Reply::Held { claim: ClaimId::from_u128(1), expires_in: None };
        core.on(Input::Acquired(first, Ok(reply)), ms(1_100));
        let outputs = core.on(Input::Acquired(first, grant(5, TTL)), ms(1_200));
        assert_eq!(release_in(&outputs), Some(first.claim));
        assert_eq!(core.state(), State::Acquiring);
    }

    #[test]
    fn r15_an_unknown_acquire_is_repeated_with_the_same_claim_and_counts_from_the_first() {
        let mut core = core(Terms::default());
        let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let outputs = core.on(Input::Acquired(first, Err(Fault::Unknown)), ms(400));
        let second = acquire_in(&outputs).expect("at once");
        assert_eq!(second.claim, first.claim);
        core.on(Input::Acquired(second, grant(5, TTL)), ms(500));
        assert_eq!(until(&core), ms(VALID_MS), "the store may count from the first");
    }

    #[test]
    fn r15_an_acquire_that_surely_did_nothing_does_not_cost_validity() {
        let mut core = core(Terms::default());
        let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let outputs = core.on(Input::Acquired(first, Err(Fault::NotSent)), ms(400));
        let second = acquire_in(&outputs).unwrap();
        core.on(Input::Acquired(second, grant(5, TTL)), ms(500));
        assert_eq!(until(&core), ms(400 + VALID_MS));
    }

    #[test]
    fn r15_a_claim_that_stays_unknown_too_long_is_released_and_replaced() {
        let mut core = core(Terms::default());
        let first = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let mut claims = vec![first.claim];
        let mut released = Vec::new();
        while ms(15_000) > core.deadline().unwrap() {
            let outputs = core.on(Input::Timer, core.deadline().unwrap());
            claims.extend(acquire_in(&outputs).map(|sent| sent.claim));
            released.extend(release_in(&outputs));
        }
        assert!(claims.iter().filter(|claim| **claim == first.claim).count() > 3);
        assert!(claims.iter().any(|claim| *claim != first.claim));
        assert!(released.contains(&first.claim));
    }

    #[test]
    fn r17_contenders_watch_and_come_after_a_vacancy_within_fifty_milliseconds() {
        let mut core = core(Terms::default());
        let sent = acquire_in(&core.on(Input::Start, ms(0))).unwrap();
        let reply = Reply::Held { claim: ClaimId::from_u128(1), expires_in: Some(Duration::from_secs(9)) };
        let outputs = core.on(Input::Acquired(sent, Ok(reply)), ms(10));
        assert!(outputs.contains(&Output::Watch(Revision::START)), "{outputs:?}");
        assert!(core.next_attempt().unwrap() >= ms(2_000));
        core.on(Input::Watched(Seen::Vacant(Revision::new(9))), ms(20));
        let at = core.deadline().unwrap();
        assert!(at <= ms(70), "{at:?}");
        let next = acquire_in(&core.on(Input::Timer, at)).unwrap();
        assert_ne!(next.claim, sent.claim, "each round has a claim of its own");
    }

    #[test]
    fn r26_no_path_leads_back_to_a_lost_epoch() {
        let (mut core, sent) = held(reacquiring(), 0);
        core.on(Input::Timer, ms(VALID_MS));
        assert!(matches!(core.state(), State::Fenced { cause: Lost::Expired, .. }));
        core.on(Input::Renewed(sent, Ok(TTL)), ms(VALID_MS + 1));
        core.on(Input::Acquired(sent, grant(5, TTL)), ms(VALID_MS + 1));
        assert!(matches!(core.state(), State::Fenced { .. }));
        // The own old claim is released first, else one waits for oneself.
        let at = core.deadline().unwrap();
        let outputs = core.on(Input::Timer, at);
        assert_eq!((release_in(&outputs), acquire_in(&outputs)), (Some(sent.claim), None));
        let again = acquire_in(&core.on(Input::Released(sent.claim, true), at)).unwrap();
        assert_ne!(again.claim, sent.claim);
        let outputs = core.on(Input::Acquired(again, grant(5, TTL)), at);
        assert!(outputs.contains(&Output::Distrust { epoch: 5, highest: 5 }), "{outputs:?}");
        assert_eq!(core.state(), State::Acquiring, "the same token again is not used");
    }

    #[test]
    fn r26_a_new_epoch_is_held_like_the_first() {
        let (mut core, sent) = held(reacquiring(), 0);
        core.on(Input::Watched(Seen::Vacant(Revision::new(6))), ms(100));
        let at = core.deadline().unwrap();
        let again = acquire_in(&core.on(Input::Timer, at)).expect("nothing of ours is left, so nothing to release");
        assert_ne!(again.claim, sent.claim);
        let outputs = core.on(Input::Acquired(again, grant(7, TTL)), at);
        assert!(outputs.contains(&Output::Open(epoch(7), at.after(Duration::from_millis(VALID_MS)))), "{outputs:?}");
    }

    #[test]
    fn r29_it_closes_then_waits_then_releases() {
        let (mut core, sent) = held(Terms::default(), 0);
        let outputs = core.on(Input::StepDown, ms(100));
        assert_eq!(outputs[..2], [Output::Drain, Output::Publish(State::Closing { epoch: epoch(5) })]);
        assert_eq!(release_in(&outputs), None);
        let (renewal, at) = next_renewal(&mut core);
        core.on(Input::Renewed(renewal, Ok(TTL)), at);
        assert_eq!(until(&core), at.after(Duration::from_millis(VALID_MS)), "it renews for those inside");
        let outputs = core.on(Input::Drained, at);
        assert_eq!(outputs, [Output::Close, Output::Forget, Output::Release(sent.claim), Output::Unwatch]);
        let outputs = core.on(Input::Released(sent.claim, true), at);
        assert_eq!(outputs, [Output::Publish(State::Released)]);
        assert!(core.is_over());
    }

    #[test]
    fn r29_who_does_not_leave_in_time_is_cut_off_before_the_release() {
        let (mut core, sent) = held(Terms { drain_within: Duration::from_secs(1), ..Terms::default() }, 0);
        core.on(Input::StepDown, ms(100));
        let outputs = core.on(Input::Timer, ms(1_100));
        assert_eq!((outputs[0].clone(), release_in(&outputs)), (Output::Close, None));
        let outputs = core.on(Input::Drained, ms(1_101));
        assert_eq!(release_in(&outputs), Some(sent.claim));
    }

    #[test]
    fn r29_a_loss_while_closing_fences_and_is_not_reacquired() {
        let (mut core, _) = held(reacquiring(), 0);
        core.on(Input::StepDown, ms(100));
        core.on(Input::Watched(Seen::Vacant(Revision::new(6))), ms(200));
        assert!(matches!(core.state(), State::Fenced { .. }) && core.is_over());
    }

    #[test]
    fn r30_a_release_without_an_answer_is_released_here() {
        let (mut core, sent) = held(Terms::default(), 0);
        core.on(Input::StepDown, ms(100));
        core.on(Input::Drained, ms(100));
        core.on(Input::Timer, core.deadline().unwrap());
        assert_eq!(core.state(), State::Released);
        let (mut core, _) = held(Terms::default(), 0);
        core.on(Input::StepDown, ms(100));
        core.on(Input::Drained, ms(100));
        core.on(Input::Released(sent.claim, false), ms(200));
        assert_eq!(core.state(), State::Released);
    }

    #[test]
    fn stepping_down_while_seeking_releases_what_may_have_been_got() {
        let mut asking = core(Terms::default());
        assert!(asking.on(Input::StepDown, ms(0)).contains(&Output::Publish(State::Released)), "never asked");
        let mut asking = core(Terms::default());
        let sent = acquire_in(&asking.on(Input::Start, ms(0))).unwrap();
        assert_eq!(release_in(&asking.on(Input::StepDown, ms(1))), Some(sent.claim));
        asking.on(Input::Released(sent.claim, true), ms(2));
        assert!(asking.is_over());
    }

    #[test]
    fn a_store_that_is_down_is_asked_ever_more_rarely() {
        let mut core = core(Terms::default());
        let mut sent = acquire_in(&core.on(Input::Start, ms(0)));
        let mut asked = 0;
        while core.deadline().unwrap() < ms(100_000) {
            let now = core.deadline().unwrap();
            let input = sent.map_or(Input::Timer, |sent| Input::Acquired(sent, Err(Fault::NotSent)));
            sent = acquire_in(&core.on(input, now));
            asked += u32::from(sent.is_some());
        }
        assert!((30..80).contains(&asked), "{asked} times in 100 s");
    }
}
