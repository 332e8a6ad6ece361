//! The core against a naive model of the same rules: lists instead of counters and slots, and every rule spelled out.

use std::{num::NonZeroU32, task::Waker, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use crate::{
    Cooldown, Mode, Trip,
    breaker::{Breaker, Ticket},
    core::{Core, Seat},
    word::Tag,
};

const THRESHOLD: u32 = 3;
const OPEN_FOR: u64 = 50;
const PROBE_FOR: u64 = 20;

#[derive(Clone, Copy, Debug)]
enum Step {
    Admit,
    Reserve,
    Begin(usize),
    Release(usize),
    Succeed(usize),
    Fail(usize, Option<u64>),
    Forget(usize),
    Wait(u64),
    Mode(Mode),
    Reset,
}

/// All times are milliseconds since the start.
#[derive(Debug)]
struct Model {
    now: u64,
    epoch: usize,
    state: Tag,
    until: Option<u64>,
    forced: bool,
    /// Whether each call of this epoch failed, in order.
    results: Vec<bool>,
    /// The claims to the probe in this epoch that were not given back.
    claims: Vec<Claim>,
    issued: usize,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    id: usize,
    until: u64,
    running: bool,
}

#[derive(Clone, Copy, Debug)]
struct Issued {
    epoch: usize,
    probe: Option<usize>,
}

// === impl Model ===

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
            epoch: 0,
            state: Tag::Closed,
            until: None,
            forced: false,
            results: vec![],
            claims: vec![],
            issued: 0,
        }
    }

    fn go(&mut self, state: Tag, until: Option<u64>) {
        self.epoch += 1;
        self.state = state;
        self.until = until;
        self.results.clear();
        self.claims.clear();
    }

    fn pass_time(&mut self) {
        if let Some(late) = self.claims.iter().find(|claim| claim.running && claim.until <= self.now) {
            self.go(Tag::Open, Some(late.until + OPEN_FOR));
        }
        self.claims.retain(|claim| claim.until > self.now);
    }

    fn claim(&mut self, running: bool) -> Option<Issued> {
        self.pass_time();
        if self.state == Tag::Open && self.until.is_some_and(|until| until <= self.now) {
            self.go(Tag::HalfOpen, None);
        }
        match self.state {
            Tag::Closed => Some(Issued { epoch: self.epoch, probe: None }),
            Tag::HalfOpen if self.claims.is_empty() => {
                self.issued += 1;
                self.claims.push(Claim { id: self.issued, until: self.now + PROBE_FOR, running });
                Some(Issued { epoch: self.epoch, probe: Some(self.issued) })
            }
            _ => None,
        }
    }

    fn begin(&mut self, issued: Issued) -> Option<Issued> {
        self.pass_time();
        let now = self.now;
        match self.claims.iter_mut().find(|claim| Some(claim.id) == issued.probe && !claim.running) {
            Some(claim) => {
                (claim.running, claim.until) = (true, now + PROBE_FOR);
                Some(issued)
            }
            None => self.claim(true),
        }
    }

    fn release(&mut self, issued: Issued) {
        self.claims.retain(|claim| Some(claim.id) != issued.probe || claim.running);
    }

    fn end(&mut self, issued: Issued, failed: Option<bool>, hint: Option<u64>) -> bool {
        self.pass_time();
        if issued.epoch != self.epoch {
            return false;
        }
        let open_until = self.now + OPEN_FOR.max(hint.unwrap_or(0).min(60_000));
        match (issued.probe, failed) {
            (Some(_), Some(true)) => self.go(Tag::Open, Some(open_until)),
            (Some(_), Some(false)) => self.go(Tag::Closed, None),
            (Some(id), None) => self.claims.retain(|claim| claim.id != id),
            (None, Some(failed)) => {
                self.results.push(failed);
                if !self.forced && failed && self.failures_in_row() >= THRESHOLD {
                    self.go(Tag::Open, Some(open_until));
                }
            }
            (None, None) => {}
        }
        true
    }

    fn failures_in_row(&self) -> u32 {
        self.results.iter().rev().take_while(|&&failed| failed).count() as u32
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
            Mode::ForcedOpen => self.go(Tag::Open, None),
            Mode::ForcedClosed => self.go(Tag::Closed, None),
            Mode::Automatic if self.state == Tag::Closed => self.go(Tag::Closed, None),
            Mode::Automatic => self.go(Tag::HalfOpen, None),
        }
    }
}

/// Both, side by side, with the tickets that are out.
struct Pair {
    core: Core,
    model: Model,
    start: Instant,
    calls: Vec<(Ticket, Issued)>,
    reserved: Vec<(Ticket, Issued)>,
}

// === impl Pair ===

impl Pair {
    fn new() -> Self {
        let millis = Duration::from_millis;
        let trip = Trip::consecutive(NonZeroU32::new(THRESHOLD).unwrap());
        let breaker = Breaker::new(trip, Cooldown::new(millis(OPEN_FOR)), millis(PROBE_FOR));
        let (core, model) = (Core::new(breaker), Model::new());
        Self { core, model, start: Instant::now(), calls: vec![], reserved: vec![] }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.model.now)
    }

    fn ask<T>(&self, question: impl FnOnce(&mut Breaker) -> T) -> T {
        self.core.ask(question).0
    }

    fn step(&mut self, step: Step) {
        let now = self.now();
        match step {
            Step::Wait(millis) => self.model.now += millis,
            Step::Admit => {
                let admitted = self.core.admit_closed().or_else(|| self.ask(|breaker| breaker.admit(now)).ok());
                let expected = self.model.claim(true);
                self.calls.extend(same(admitted, expected));
            }
            Step::Reserve => {
                let (answer, _) = self.core.reserve_or_wait(&mut Seat::default(), Waker::noop().clone(), now);
                if let Err(shut) = answer
                    && self.model.state != Tag::Open
                {
                    assert!(shut.next > Some(now), "in half-open, a free place or a running deadline");
                }
                let expected = self.model.claim(false);
                self.reserved.extend(same(answer.ok(), expected).filter(|(ticket, _)| ticket.is_probe()));
            }
            Step::Begin(which) => {
                let Some((ticket, issued)) = pick(&mut self.reserved, which) else { return };
                let begun = self.ask(|breaker| breaker.begin(ticket, now)).ok();
                let expected = self.model.begin(issued);
                self.calls.extend(same(begun, expected));
                self.ask(|breaker| breaker.release(ticket));
                self.model.release(issued);
            }
            Step::Release(which) => {
                let Some((ticket, issued)) = pick(&mut self.reserved, which) else { return };
                self.ask(|breaker| breaker.release(ticket));
                self.model.release(issued);
            }
            Step::Succeed(which) => {
                let Some((ticket, issued)) = pick(&mut self.calls, which) else { return };
                let current = match ticket.is_probe() {
                    true => self.ask(|breaker| breaker.succeed(ticket, now)),
                    false => self.core.succeed_call(ticket),
                };
                assert_eq!(current, self.model.end(issued, Some(false), None));
            }
            Step::Fail(which, hint) => {
                let Some((ticket, issued)) = pick(&mut self.calls, which) else { return };
                let (current, _) = self.core.fail(ticket, hint.map(Duration::from_millis), now);
                assert_eq!(current, self.model.end(issued, Some(true), hint));
            }
            Step::Forget(which) => {
                let Some((ticket, issued)) = pick(&mut self.calls, which) else { return };
                let current = self.ask(|breaker| breaker.forget(ticket, now));
                assert_eq!(current, self.model.end(issued, None, None));
            }
            Step::Mode(mode) => {
                self.ask(|breaker| breaker.set_mode(mode, now));
                self.model.set_mode(mode);
            }
            Step::Reset => {
                self.ask(Breaker::reset);
                self.model.forced = false;
                self.model.go(Tag::Closed, None);
            }
        }
    }

    fn compare(&mut self) {
        let now = self.now();
        let look = self.ask(|breaker| breaker.look(now));
        self.model.pass_time();
        assert_eq!(look.mode, self.model.mode());
        assert_eq!(self.core.word().is_closed(), self.model.state == Tag::Closed);
        assert_eq!(self.core.word().failures_in_row(), self.model.failures_in_row());
        let until = match look.state {
            crate::State::Open { until } => until,
            _ => None,
        };
        let model_until = self.model.until.map(|until| self.start + Duration::from_millis(until));
        assert_eq!(until, model_until);
    }
}

fn same(ours: Option<Ticket>, model: Option<Issued>) -> Option<(Ticket, Issued)> {
    assert_eq!(ours.map(Ticket::is_probe), model.map(|issued| issued.probe.is_some()), "the same decision");
    ours.zip(model)
}

fn pick<T>(from: &mut Vec<T>, which: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(which % from.len()))
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<usize>();
    prop_oneof![
        6 => Just(Step::Admit),
        3 => Just(Step::Reserve),
        2 => which.prop_map(Step::Begin),
        1 => which.prop_map(Step::Release),
        2 => which.prop_map(Step::Succeed),
        6 => (which, proptest::option::of(0..100_u64)).prop_map(|(which, hint)| Step::Fail(which, hint)),
        1 => which.prop_map(Step::Forget),
        4 => prop_oneof![0..5_u64, 15..25_u64, 45..55_u64, 0..100_000_u64].prop_map(Step::Wait),
        1 => prop_oneof![Just(Mode::Automatic), Just(Mode::ForcedOpen), Just(Mode::ForcedClosed)].prop_map(Step::Mode),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_core_decides_as_the_naive_model_does(steps in proptest::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
            pair.compare();
        }
    }
}
