//! The core compared with a naive model of the same rules: lists instead of counters, rings and slots, and every rule
//! spelled out.

use std::{task::Waker, time::Duration};

use proptest::{option, prelude::*};
use tokio::time::Instant;
use tower_outcome::Verdict;

use crate::{
    Cooldown, Mode, Ratio, Reason, Trip,
    breaker::{Breaker, BreakerSettings, CallOutcome, ProbeSettings},
    fast_path::{
        Core, WaiterId,
        packed::{CallId, Tag},
        thread::FEW_SHARDS,
        window::instant,
    },
};

const PROBE_FOR: u64 = 20;
const TURN: u64 = 100;
const TURNS: u64 = 10;
/// The items of the model's cooldown; then the last one is repeated.
const OPEN_FOR: [u64; 3] = [50, 70, 110];
const CAP: u64 = 90;

/// The settings of the circuit.
#[derive(Clone, Debug)]
struct Settings {
    consecutive: Option<u32>,
    ratio: Option<(u32, u32)>,
    slow: Option<(u32, u32)>,
    min_calls: u32,
    places: u32,
    successes: u32,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Admit,
    Reserve,
    Begin(usize),
    Release(usize),
    End {
        which: usize,
        verdict: Verdict,
        slow: bool,
        hint: Option<u64>,
    },
    /// A good head has arrived, slow or not.
    Answer(usize, bool),
    Forget(usize),
    /// Its caller abandons it.
    Abandon(usize),
    Wait(u64),
    Mode(Mode),
    Reset,
}

/// All times are milliseconds since the beginning of the process.
#[derive(Debug)]
struct Model {
    settings: Settings,
    now: u64,
    epoch: usize,
    state: Tag,
    until: Option<u64>,
    reason: Option<Reason>,
    forced: bool,
    trips: u64,
    open_since: Option<u64>,
    /// How often it opened since it was last closed.
    openings: usize,
    /// Each call of the last closed epoch, in order.
    results: Vec<Result>,
    /// The slots of this epoch that are taken.
    claims: Vec<Claim>,
    probes_succeeded: u32,
    /// How long callers have waited for probes that they abandoned, without a response in between.
    unanswered_wait: u64,
    issued: usize,
}

#[derive(Clone, Copy, Debug)]
struct Result {
    at: u64,
    verdict: Verdict,
    slow: bool,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    id: usize,
    until: u64,
    running: bool,
    /// Whether it was slow.
    answered: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Issued {
    epoch: usize,
    probe: Option<usize>,
}

// === impl Settings ===

impl Settings {
    fn rules(&self) -> BreakerSettings {
        let ratio = |(parts, of)| Ratio::new(parts, of);
        let mut trip = Trip::never();
        if let Some(failures) = self.consecutive {
            trip = trip.or(Trip::consecutive(failures));
        }
        if let Some(share) = self.ratio {
            trip = trip.or(Trip::failure_ratio(ratio(share)));
        }
        if let Some(share) = self.slow {
            trip = trip.or(Trip::slow_ratio(Duration::from_secs(1), ratio(share)));
        }
        let deadline = Duration::from_millis(PROBE_FOR);
        let probes = ProbeSettings {
            max_concurrent: self.places,
            successes: self.successes,
            deadline,
        };
        let cooldown = Cooldown::from_fn(|| OPEN_FOR.into_iter().map(Duration::from_millis));
        let cooldown = cooldown.cap(Duration::from_millis(CAP)).exact();
        BreakerSettings {
            trip,
            min_calls: self.min_calls,
            cooldown,
            probes,
            budget: None,
        }
    }
}

// === impl Model ===

impl Model {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 1_000_000,
            epoch: 0,
            state: Tag::Closed,
            until: None,
            reason: None,
            forced: false,
            trips: 0,
            open_since: None,
            openings: 0,
            results: vec![],
            claims: vec![],
            probes_succeeded: 0,
            unanswered_wait: 0,
            issued: 0,
        }
    }

    fn go(&mut self, state: Tag, until: Option<u64>) {
        self.epoch += 1;
        self.state = state;
        self.until = until;
        self.probes_succeeded = 0;
        self.unanswered_wait = 0;
        self.claims.clear();
        if state == Tag::Closed {
            self.openings = 0;
            self.open_since = None;
            self.results.clear();
        }
    }

    fn open(&mut self, reason: Reason, at: u64, hint: Option<u64>) {
        let open_for =
            OPEN_FOR[self.openings.min(OPEN_FOR.len() - 1)].max(hint.unwrap_or(0).min(CAP));
        self.openings += 1;
        self.trips += 1;
        self.open_since.get_or_insert(at);
        self.reason = Some(reason);
        self.go(Tag::Open, Some(at + open_for));
    }

    /// Deadline by deadline.
    fn pass_time(&mut self) {
        while let Some(until) = self
            .claims
            .iter()
            .map(|claim| claim.until)
            .filter(|&until| until <= self.now)
            .min()
        {
            let (due, rest) = self.claims.iter().partition(|claim| claim.until == until);
            self.claims = rest;
            self.decide_at(until, due);
        }
    }

    fn decide_at(&mut self, until: u64, due: Vec<Claim>) {
        let answered = |slow| {
            due.iter()
                .filter(|claim| claim.answered == Some(slow))
                .count() as u32
        };
        if due
            .iter()
            .any(|claim| claim.running && claim.answered.is_none())
        {
            return self.open(Reason::ProbeTimedOut, until, None);
        }
        if answered(true) > 0 {
            return self.open(Reason::ProbeSlow, until, None);
        }
        self.probes_succeeded += answered(false);
        if answered(false) > 0 {
            self.unanswered_wait = 0;
        }
        if answered(false) > 0 && self.probes_succeeded >= self.settings.successes {
            self.go(Tag::Closed, None);
        }
    }

    fn claim(&mut self, running: bool) -> Option<Issued> {
        self.pass_time();
        if self.state == Tag::Open && self.until.is_some_and(|until| until <= self.now) {
            self.go(Tag::HalfOpen, None);
        }
        match self.state {
            Tag::Closed => Some(Issued {
                epoch: self.epoch,
                probe: None,
            }),
            Tag::HalfOpen if self.claims.len() < self.settings.places as usize => {
                self.issued += 1;
                self.claims.push(Claim {
                    id: self.issued,
                    until: self.now + PROBE_FOR,
                    running,
                    answered: None,
                });
                Some(Issued {
                    epoch: self.epoch,
                    probe: Some(self.issued),
                })
            }
            _ => None,
        }
    }

    fn begin(&mut self, issued: Issued) -> Option<Issued> {
        self.pass_time();
        let now = self.now;
        match self
            .claims
            .iter_mut()
            .find(|claim| Some(claim.id) == issued.probe && !claim.running)
        {
            Some(claim) => {
                (claim.running, claim.until) = (true, now + PROBE_FOR);
                Some(issued)
            }
            None => self.claim(true),
        }
    }

    fn release(&mut self, issued: Issued) {
        self.claims
            .retain(|claim| Some(claim.id) != issued.probe || claim.running);
    }

    fn record(&mut self, issued: Issued, verdict: Verdict, slow: bool, hint: Option<u64>) -> bool {
        self.pass_time();
        if issued.epoch != self.epoch {
            return false;
        }
        match issued.probe {
            Some(id) if !self.gives_back(id) => return false,
            Some(_) => match (verdict, slow) {
                (Verdict::Success, false) => {
                    self.probes_succeeded += 1;
                    self.unanswered_wait = 0;
                    if self.probes_succeeded == self.settings.successes {
                        self.go(Tag::Closed, None);
                    }
                }
                (Verdict::Success, true) => self.open(Reason::ProbeSlow, self.now, hint),
                _ => self.open(Reason::ProbeFailed, self.now, hint),
            },
            None => {
                self.results.push(Result {
                    at: self.now,
                    verdict,
                    slow,
                });
                let bad = slow || verdict != Verdict::Success;
                if let Some(reason) = self.judge().filter(|_| bad && !self.forced) {
                    self.open(reason, self.now, hint);
                }
            }
        }
        true
    }

    fn forget(&mut self, issued: Issued) -> bool {
        self.pass_time();
        issued.epoch == self.epoch && issued.probe.is_none_or(|id| self.gives_back(id))
    }

    fn abandon(&mut self, issued: Issued) -> bool {
        self.pass_time();
        let mine = |claim: &&Claim| issued.epoch == self.epoch && Some(claim.id) == issued.probe;
        if let Some(claim) = self.claims.iter().find(mine) {
            if claim.running && claim.answered.is_none() {
                self.unanswered_wait += PROBE_FOR - (claim.until - self.now);
            }
            if self.unanswered_wait >= PROBE_FOR {
                self.open(Reason::ProbeTimedOut, self.now, None);
                return true;
            }
        }
        self.forget(issued)
    }

    /// `false` if it had succeeded at its deadline.
    fn gives_back(&mut self, id: usize) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| claim.id != id);
        self.claims.len() < before
    }

    fn answer(&mut self, issued: Issued, slow: bool) {
        self.pass_time();
        let mine =
            |claim: &&mut Claim| issued.epoch == self.epoch && Some(claim.id) == issued.probe;
        self.claims.iter_mut().filter(mine).for_each(|claim| {
            claim.answered = Some(slow);
            self.unanswered_wait = 0;
        });
    }

    fn next_probe_at(&self) -> Option<u64> {
        match self.state {
            Tag::HalfOpen if self.claims.len() < self.settings.places as usize => None,
            Tag::HalfOpen => self.claims.iter().map(|claim| claim.until).min(),
            _ => self.until,
        }
    }

    fn judge(&self) -> Option<Reason> {
        let Settings {
            consecutive,
            ratio,
            slow,
            min_calls,
            ..
        } = self.settings.clone();
        let failed = |results: &[Result]| {
            results
                .iter()
                .filter(|result| result.verdict != Verdict::Success)
                .count()
        };
        let reached = |bad: usize, calls: usize, (parts, of): (u32, u32)| {
            bad * of as usize >= calls * parts as usize
        };
        let window = self.window();
        let enough = window.len() >= min_calls as usize;
        let slow_calls = window.iter().filter(|result| result.slow).count();
        if consecutive.is_some_and(|limit| self.consecutive_failures() >= limit) {
            return Some(Reason::ConsecutiveFailures);
        }
        if ratio.is_some_and(|ratio| enough && reached(failed(&window), window.len(), ratio)) {
            return Some(Reason::FailureRatio);
        }
        slow.filter(|&ratio| enough && reached(slow_calls, window.len(), ratio))
            .map(|_| Reason::SlowRatio)
    }

    fn window(&self) -> Vec<Result> {
        let within = |result: &Result| result.at / TURN + TURNS > self.now / TURN;
        self.results.iter().copied().filter(within).collect()
    }

    fn consecutive_failures(&self) -> u32 {
        let hard = self
            .results
            .iter()
            .rev()
            .filter(|result| result.verdict != Verdict::Throttled);
        hard.take_while(|result| result.verdict == Verdict::Failure)
            .count() as u32
    }

    fn mode(&self) -> Mode {
        match (self.forced, self.state) {
            (false, _) => Mode::Automatic,
            (true, Tag::Closed) => Mode::ForcedClosed,
            (true, _) => Mode::ForcedOpen,
        }
    }

    fn set_mode(&mut self, mode: Mode) {
        if mode == self.mode() {
            return;
        }
        self.forced = mode != Mode::Automatic;
        match mode {
            Mode::ForcedOpen => {
                self.reason = Some(Reason::Forced);
                self.trips += 1;
                self.open_since.get_or_insert(self.now);
                self.go(Tag::Open, None);
            }
            Mode::ForcedClosed => self.go(Tag::Closed, None),
            Mode::Automatic if self.state == Tag::Closed => self.go(Tag::Closed, None),
            Mode::Automatic => self.go(Tag::HalfOpen, None),
        }
    }
}

/// Both, side by side, with the calls in flight.
struct Pair {
    core: Core,
    model: Model,
    calls: Vec<(CallId, Issued)>,
    reserved: Vec<(CallId, Issued)>,
}

// === impl Pair ===

impl Pair {
    fn new(settings: Settings) -> Self {
        let window = Duration::from_millis(TURN * TURNS);
        let core = Core::new(settings.rules(), window, FEW_SHARDS);
        Self {
            core,
            model: Model::new(settings),
            calls: vec![],
            reserved: vec![],
        }
    }

    fn now(&self) -> Instant {
        at(self.model.now)
    }

    fn with_breaker<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        self.core.with_breaker(change).0
    }

    fn step(&mut self, step: Step) {
        let now = self.now();
        match step {
            Step::Wait(millis) => self.model.now += millis,
            Step::Admit => {
                let known = self.core.rejection(now);
                let simple = self.core.state().admit_fast();
                assert!(simple.is_none_or(|call_id| self.core.state().admit() == Some(call_id)));
                let admitted = self
                    .core
                    .state()
                    .admit()
                    .or_else(|| self.with_breaker(|breaker| breaker.admit(now)).ok());
                assert!(
                    known.is_none() || admitted.is_none(),
                    "a rejection without the lock is one with it"
                );
                let expected = self.model.claim(true);
                self.calls.extend(same(admitted, expected));
            }
            Step::Reserve => {
                let (answer, _) =
                    self.core
                        .reserve_or_wait(&mut WaiterId::default(), Waker::noop().clone(), now);
                if let Err(rejection) = answer
                    && self.model.state != Tag::Open
                {
                    assert!(
                        rejection.next > Some(now),
                        "in half-open, a free slot or a deadline"
                    );
                }
                let expected = self.model.claim(false);
                self.reserved
                    .extend(same(answer.ok(), expected).filter(|(call_id, _)| call_id.is_probe()));
            }
            Step::Begin(which) => {
                let Some((call_id, issued)) = pick(&mut self.reserved, which) else {
                    return;
                };
                let begun = self
                    .with_breaker(|breaker| breaker.begin(call_id, now))
                    .ok();
                let expected = self.model.begin(issued);
                self.calls.extend(same(begun, expected));
                self.with_breaker(|breaker| breaker.release(call_id));
                self.model.release(issued);
            }
            Step::Release(which) => {
                let Some((call_id, issued)) = pick(&mut self.reserved, which) else {
                    return;
                };
                self.with_breaker(|breaker| breaker.release(call_id));
                self.model.release(issued);
            }
            Step::End {
                which,
                verdict,
                slow,
                hint,
            } => {
                let Some((call_id, issued)) = pick(&mut self.calls, which) else {
                    return;
                };
                let slow = slow && self.model.settings.slow.is_some();
                let current = self.record(which, call_id, verdict, slow, hint);
                assert_eq!(current, self.model.record(issued, verdict, slow, hint));
            }
            Step::Answer(which, slow) => {
                let Some((call_id, issued)) = peek(&self.calls, which) else {
                    return;
                };
                let slow = slow && self.model.settings.slow.is_some();
                self.with_breaker(|breaker| breaker.answered(call_id, slow, now));
                self.model.answer(issued, slow);
            }
            Step::Abandon(which) => {
                let Some((call_id, issued)) = pick(&mut self.calls, which) else {
                    return;
                };
                let current = self.with_breaker(|breaker| breaker.abandon(call_id, now));
                assert_eq!(current, self.model.abandon(issued));
            }
            Step::Forget(which) => {
                let Some((call_id, issued)) = pick(&mut self.calls, which) else {
                    return;
                };
                let current = self.with_breaker(|breaker| breaker.forget(call_id, now));
                assert_eq!(current, self.model.forget(issued));
            }
            Step::Mode(mode) => {
                self.with_breaker(|breaker| breaker.set_mode(mode, now));
                self.model.set_mode(mode);
            }
            Step::Reset => {
                self.with_breaker(Breaker::reset);
                self.model.forced = false;
                self.model.go(Tag::Closed, None);
            }
        }
    }

    /// As `Shared` does it: plain successes without the lock, in one shard or another.
    fn record(
        &self,
        which: usize,
        call_id: CallId,
        verdict: Verdict,
        slow: bool,
        hint: Option<u64>,
    ) -> bool {
        let now = self.now();
        let shard = self.core.shards.iter().nth(which % 2).unwrap();
        if verdict == Verdict::Success && !slow && !call_id.is_probe() {
            return self.core.record_success(shard, call_id, || now)
                || self.core.record_later_success(shard, call_id, now);
        }
        let hint = hint.map(Duration::from_millis);
        let outcome = CallOutcome {
            verdict,
            slow,
            hint,
            now,
        };
        self.core.record(call_id, outcome).0
    }

    fn compare(&mut self) {
        let snapshot = self.core.snapshot(self.now()).0;
        self.model.pass_time();
        let model = &self.model;
        assert_eq!(snapshot.mode, model.mode());
        assert_eq!(self.core.state().is_closed(), model.state == Tag::Closed);
        assert_eq!(snapshot.last_reason, model.reason);
        let until = match snapshot.state {
            crate::State::Open { until } => until,
            _ => None,
        };
        assert_eq!(until, model.until.map(at));
        // In half-open: a free slot, or a deadline.
        assert_eq!(snapshot.next_probe_at, model.next_probe_at().map(at));
        assert!(
            model.state != Tag::HalfOpen
                || snapshot.next_probe_at.is_none_or(|next| next > self.now())
        );
        assert_eq!(
            (snapshot.trips, snapshot.open_since),
            (model.trips, model.open_since.map(at))
        );
        if model.state == Tag::Closed {
            assert_eq!(snapshot.consecutive_failures, model.consecutive_failures());
        }
        self.compare_window(snapshot.window);
    }

    fn compare_window(&self, ours: crate::Counts) {
        let window = self.model.window();
        let count = |verdict| {
            window
                .iter()
                .filter(|result| result.verdict == verdict)
                .count() as u64
        };
        let slow = window.iter().filter(|result| result.slow).count() as u64;
        assert_eq!(
            (ours.succeeded, ours.failed),
            (count(Verdict::Success), count(Verdict::Failure))
        );
        assert_eq!(
            (ours.throttled, ours.slow),
            (count(Verdict::Throttled), slow)
        );
    }
}

fn at(millis: u64) -> Instant {
    instant(millis * 1_000_000)
}

fn same(ours: Option<CallId>, model: Option<Issued>) -> Option<(CallId, Issued)> {
    assert_eq!(
        ours.map(CallId::is_probe),
        model.map(|issued| issued.probe.is_some()),
        "the same decision"
    );
    ours.zip(model)
}

fn pick<T>(from: &mut Vec<T>, which: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(which % from.len()))
}

fn peek<T: Copy>(at: &[T], which: usize) -> Option<T> {
    (!at.is_empty()).then(|| at[which % at.len()])
}

fn settings() -> impl Strategy<Value = Settings> {
    let ratio = || (1..=3_u32).prop_map(|parts| (parts, 3));
    let trips = (
        option::of(1..4_u32),
        option::of(ratio()),
        option::of(ratio()),
    );
    (trips, 1..8_u32, 1..4_u32, 1..4_u32).prop_map(
        |((consecutive, ratio, slow), min_calls, places, successes)| Settings {
            consecutive,
            ratio,
            slow,
            min_calls,
            places,
            successes,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<usize>();
    let verdict = prop_oneof![3 => Just(Verdict::Success), 3 => Just(Verdict::Failure), 1 => Just(Verdict::Throttled)];
    let outcome = (which, verdict, any::<bool>(), option::of(0..100_u64));
    let wait = prop_oneof![
        0..5_u64,
        15..25_u64,
        45..55_u64,
        95..105_u64,
        900..1_100_u64,
        0..100_000_000_u64
    ];
    prop_oneof![
        7 => Just(Step::Admit),
        3 => Just(Step::Reserve),
        2 => which.prop_map(Step::Begin),
        1 => which.prop_map(Step::Release),
        9 => outcome.prop_map(|(which, verdict, slow, hint)| Step::End { which, verdict, slow, hint }),
        3 => (which, any::<bool>()).prop_map(|(which, slow)| Step::Answer(which, slow)),
        1 => which.prop_map(Step::Forget),
        2 => which.prop_map(Step::Abandon),
        4 => wait.prop_map(Step::Wait),
        1 => prop_oneof![Just(Mode::Automatic), Just(Mode::ForcedOpen), Just(Mode::ForcedClosed)].prop_map(Step::Mode),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_core_decides_as_the_naive_model(
        settings in settings(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut pair = Pair::new(settings);
        for step in steps {
            pair.step(step);
            pair.compare();
        }
    }
}
