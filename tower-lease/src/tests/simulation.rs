//! Keepers' cores, a true store and a bad network, in made-up time: I1 and I4 over random histories.
//!
//! Time is the store's; each node's clock starts elsewhere and runs at a different rate. One event is handled at a
//! time, and a gate can only open at an event, so looking after each event sees every overlap.

use std::{collections::BTreeMap, num::NonZeroU64, time::Duration};

use fastrand::Rng;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::{
    Acquired, BootInstant, Claim, ClaimId, Fault, Holder, LeaseKey, Lost, State,
    lease::{Core, Granted, Input, Output, Reply, WatchReport},
    memory::Table,
    timing::Timing,
};

/// How bad it is.
#[derive(Clone, Copy, Debug)]
struct World {
    seed: u64,
    nodes: usize,
    /// The greatest error of the nodes' clocks, in parts per million.
    drift_ppm: u64,
    /// What the keepers believe it is.
    believed_ppm: u32,
    guard: Option<Duration>,
    /// In a thousand: messages lost each way; and partitions, restarts, step-downs, revocations per event.
    loss: u32,
    trouble: u32,
    longest_delay: u64,
    watches: bool,
    /// Whether operators take the key away: then I1 holds only up to the watch's latency, and is not asserted.
    operators: bool,
}

struct Sim {
    world: World,
    rng: Rng,
    now: u64,
    start: Instant,
    table: Table,
    nodes: Vec<Node>,
    /// What will happen, by time and number.
    events: BTreeMap<(u64, u64), Event>,
    numbers: u64,
    highest: u64,
    report: Report,
}

struct Node {
    core: Core,
    run: u64,
    /// Nanoseconds on its clock per million of true ones, and at the start.
    rate: u64,
    origin: u64,
    gate: Option<(u64, BootInstant)>,
    /// Its watch's number, and when the last report of it arrives: they keep their order.
    watch: Option<(u64, u64)>,
    holder: Holder,
    /// Until when requests, and answers and events, do not get through.
    cut: (u64, u64),
}

#[derive(Debug)]
enum Event {
    Wake(usize),
    AtStore(usize, u64, Request),
    AtNode(usize, u64, Input),
    /// What a watch reports is gone with the watch.
    Report(usize, u64, WatchReport),
    /// Something may expire.
    Expiry,
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Acquire(crate::lease::RequestStamp),
    Renew(crate::lease::RequestStamp),
    Release(ClaimId),
    RevokeOwn(ClaimId),
}

/// What was seen.
#[derive(Debug, Default)]
struct Report {
    /// Acquisitions that opened a gate.
    epochs: usize,
    losses: usize,
    /// I1 is broken: two gates were open at once.
    overlap: Option<u64>,
    /// I4 is broken: an acquisition whose token did not rise.
    falling: Option<u64>,
}

const TTL: Duration = Duration::from_secs(10);
const SECOND: u64 = 1_000_000_000;

impl Sim {
    fn new(world: World) -> Self {
        let mut sim = Self {
            world,
            rng: Rng::with_seed(world.seed),
            now: 0,
            start: Instant::now(),
            table: Table::default(),
            nodes: Vec::new(),
            events: BTreeMap::new(),
            numbers: 0,
            highest: 0,
            report: Report::default(),
        };
        for at in 0..world.nodes {
            let node = sim.node(0);
            sim.nodes.push(node);
            sim.feed(at, Input::Start);
        }
        sim
    }

    fn node(&mut self, run: u64) -> Node {
        let World {
            drift_ppm,
            believed_ppm,
            guard,
            watches,
            ..
        } = self.world;
        let timing = Timing {
            drift_ppm: believed_ppm,
            guard,
            reacquire: true,
            ttl: TTL,
            ..Timing::default()
        };
        Node {
            core: Core::new(
                timing,
                ClaimId::from_u128(self.rng.u128(..)),
                watches,
                self.rng.u64(..),
            ),
            run,
            rate: 1_000_000 - drift_ppm + self.rng.u64(0..=2 * drift_ppm),
            origin: self.rng.u64(0..1_000 * SECOND),
            gate: None,
            watch: None,
            holder: Holder::new("node"),
            cut: (0, 0),
        }
    }

    fn run(mut self, until: u64) -> Report {
        while let Some(((at, _), event)) = self.events.pop_first()
            && at < until
        {
            self.now = at;
            self.handle(event);
            self.make_trouble();
            self.check();
        }
        self.report
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(node) => self.feed(node, Input::Timer),
            Event::AtNode(node, run, input) if self.nodes[node].run == run => {
                self.feed(node, input)
            }
            Event::Report(node, watch, report)
                if self.nodes[node]
                    .watch
                    .is_some_and(|(open, _)| open == watch) =>
            {
                self.feed(node, Input::Watched(report));
            }
            Event::AtNode(..) | Event::Report(..) => {}
            Event::Expiry => self.changing(|table, now| table.sweep(now)),
            Event::AtStore(node, run, request) => self.serve(node, run, request),
        }
    }

    fn feed(&mut self, at: usize, input: Input) {
        let now = self.clock(at);
        for output in self.nodes[at].core.on(input, now) {
            self.act(at, output);
        }
        if let Some(deadline) = self.nodes[at].core.deadline() {
            let when = self.now + self.true_time(at, deadline.since(now)) + 1;
            self.schedule(when, Event::Wake(at));
        }
    }

    fn act(&mut self, at: usize, output: Output) {
        match output {
            Output::Acquire(stamp) => self.send(at, Request::Acquire(stamp)),
            Output::Renew(stamp) => self.send(at, Request::Renew(stamp)),
            Output::Release(claim) => self.send(at, Request::Release(claim)),
            Output::RevokeOwn(claim) => self.send(at, Request::RevokeOwn(claim)),
            Output::Transfer(_) => unreachable!("nobody hands over here"),
            Output::Watch(_) => {
                self.numbers += 1;
                self.nodes[at].watch = Some((self.numbers, self.now));
                self.report_state(at);
            }
            Output::Unwatch => self.nodes[at].watch = None,
            Output::Open(epoch, until) => {
                self.nodes[at].gate = Some((epoch.get(), until));
                self.report.epochs += 1;
            }
            Output::Extend(until) => {
                if let Some(gate) = &mut self.nodes[at].gate {
                    gate.1 = until;
                }
            }
            Output::Close => {
                self.nodes[at].gate = None;
                self.report.losses += 1;
            }
            // Those inside count: the gate is open for them until it is closed.
            Output::Drain => {
                let run = self.nodes[at].run;
                let when = self.now + self.rng.u64(0..15 * SECOND);
                self.schedule(when, Event::AtNode(at, run, Input::Drained));
            }
            Output::Publish(State::Fenced {
                cause: Lost::Rewound,
                ..
            }) => unreachable!("this store forgets nothing"),
            Output::Forget | Output::Publish(_) => {}
            Output::NonMonotonicToken { .. } => self.report.falling = Some(self.now),
        }
    }

    /// Lost, late, or twice.
    fn send(&mut self, at: usize, request: Request) {
        if self.now < self.nodes[at].cut.0 {
            return;
        }
        for _ in 0..self.copies() {
            let (when, run) = (self.delayed(), self.nodes[at].run);
            self.schedule(when, Event::AtStore(at, run, request));
        }
    }

    fn answer(&mut self, at: usize, run: u64, input: &Input) {
        if self.now < self.nodes[at].cut.1 {
            return;
        }
        for _ in 0..self.copies() {
            let when = self.delayed();
            self.schedule(when, Event::AtNode(at, run, input.clone()));
        }
    }

    fn serve(&mut self, at: usize, run: u64, request: Request) {
        let input = match request {
            Request::Acquire(stamp) => {
                let reply = self.acquire(self.claim(at, stamp.claim));
                // Now and then the store has done it and answers that the result is unknown.
                let unknown = self.rng.u32(0..1000) < self.world.loss;
                Input::Acquired(
                    stamp,
                    if unknown {
                        Err(Fault::Unknown)
                    } else {
                        Ok(reply)
                    },
                )
            }
            Request::Renew(stamp) => {
                let claim = self.claim(at, stamp.claim);
                let renewed = self.changing(|table, now| table.renew(&claim, now));
                Input::Renewed(stamp, renewed.map_err(|error| error.fault()))
            }
            Request::Release(id) => {
                let claim = self.claim(at, id);
                self.changing(|table, now| table.release(&claim, now));
                Input::Released(id, true)
            }
            Request::RevokeOwn(id) => {
                let held = self.changing(|table, now| table.inspect(&key(), now));
                if let Some(record) = held.filter(|record| record.claim() == id) {
                    _ = self.changing(|table, now| table.revoke(&key(), Some(record.token()), now));
                }
                Input::Released(id, true)
            }
        };
        self.answer(at, run, &input);
    }

    fn acquire(&mut self, claim: Claim) -> Reply {
        let known = self
            .changing(|table, now| table.inspect(&key(), now))
            .map(|record| record.claim());
        match self
            .changing(|table, now| table.acquire(&claim, now))
            .unwrap()
        {
            Acquired::Granted(grant) => {
                let epoch: NonZeroU64 = grant.token().epoch();
                if known != Some(claim.id()) {
                    self.granted(epoch.get());
                }
                Reply::Granted(Granted {
                    epoch,
                    ttl: grant.ttl(),
                    revision: grant.revision(),
                    is_clean: grant.is_clean(),
                })
            }
            Acquired::Held(record) => Reply::Held {
                claim: record.claim(),
                expires_in: record.expires_in(),
            },
        }
    }

    /// Applies `act` to the table, and notifies the watchers if that changed it.
    fn changing<T>(&mut self, act: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let (now, before) = (self.instant(), self.table.revision());
        let result = act(&mut self.table, now);
        if self.table.revision() != before {
            (0..self.nodes.len()).for_each(|at| self.report_state(at));
        }
        if let Some(end) = self.table.next_end() {
            let when = u64::try_from(end.duration_since(self.start).as_nanos()).unwrap();
            self.schedule(when, Event::Expiry);
        }
        result
    }

    fn report_state(&mut self, at: usize) {
        let Some((watch, before)) = self.nodes[at]
            .watch
            .filter(|_| self.now >= self.nodes[at].cut.1)
        else {
            return;
        };
        let now = self.instant();
        let record = self.table.inspect(&key(), now);
        let revision = self.table.revision();
        let report = match record {
            Some(record) => WatchReport::Held(record.claim(), revision),
            None => WatchReport::Vacant(revision),
        };
        let broken = self.rng.u32(0..1000) < self.world.loss;
        let when = self.delayed().max(before);
        self.nodes[at].watch = Some((watch, when));
        let report = if broken { WatchReport::Broken } else { report };
        self.schedule(when, Event::Report(at, watch, report));
    }

    /// Partitions (one way or both), restarts, step-downs and operators.
    fn make_trouble(&mut self) {
        if self.rng.u32(0..1000) >= self.world.trouble {
            return;
        }
        let at = self.rng.usize(0..self.nodes.len());
        let until = self.now + self.rng.u64(SECOND..25 * SECOND);
        match self.rng.u8(0..8) {
            _ if self.nodes[at].core.is_over() => self.restart(at),
            0 => self.restart(at),
            1 => self.feed(at, Input::StepDown { hands_over: false }),
            2 if self.world.operators => {
                self.changing(|table, now| _ = table.revoke(&key(), None, now))
            }
            3 => self.nodes[at].cut.0 = until,
            4 => self.nodes[at].cut.1 = until,
            _ => self.nodes[at].cut = (until, until),
        }
    }

    /// the name stays, everything else is new; what was held is lost with it.
    fn restart(&mut self, at: usize) {
        let run = self.nodes[at].run + 1;
        self.nodes[at] = self.node(run);
        self.feed(at, Input::Start);
    }

    /// I4, at the store.
    fn granted(&mut self, epoch: u64) {
        if epoch <= self.highest {
            self.report.falling = Some(self.now);
        }
        self.highest = epoch;
    }

    /// I1, at this true time.
    fn check(&mut self) {
        let open = (0..self.nodes.len())
            .filter(|at| {
                self.nodes[*at]
                    .gate
                    .is_some_and(|(_, until)| self.clock(*at) < until)
            })
            .count();
        if open > 1 {
            self.report.overlap.get_or_insert(self.now);
        }
    }

    fn clock(&self, at: usize) -> BootInstant {
        let node = &self.nodes[at];
        let passed = u128::from(self.now) * u128::from(node.rate) / 1_000_000;
        BootInstant::from_nanos(node.origin + u64::try_from(passed).unwrap())
    }

    fn true_time(&self, at: usize, local: Duration) -> u64 {
        u64::try_from(local.as_nanos() * 1_000_000 / u128::from(self.nodes[at].rate)).unwrap()
    }

    fn copies(&mut self) -> u32 {
        match self.rng.u32(0..1000) {
            lost if lost < self.world.loss => 0,
            twice if twice >= 980 => 2,
            _ => 1,
        }
    }

    /// Mostly milliseconds, sometimes as long as it gets.
    fn delayed(&mut self) -> u64 {
        let longest = if self.rng.u8(0..10) == 0 {
            self.world.longest_delay
        } else {
            SECOND / 100
        };
        self.now + self.rng.u64(1..=longest)
    }

    fn schedule(&mut self, when: u64, event: Event) {
        self.numbers += 1;
        self.events.insert((when, self.numbers), event);
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    fn claim(&self, at: usize, id: ClaimId) -> Claim {
        Claim::new(key(), self.nodes[at].holder.clone(), id, TTL)
    }
}

fn key() -> LeaseKey {
    LeaseKey::new("leader").unwrap()
}

fn bad(seed: u64, loss: u32, longest_delay: u64) -> World {
    World {
        seed,
        nodes: 3,
        drift_ppm: 10_000,
        believed_ppm: 10_000,
        guard: None,
        loss,
        trouble: 5,
        longest_delay,
        watches: true,
        operators: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// I1 and I4, with lost, late, repeated and reordered messages (F-05), drifting clocks, restarts and step-downs.
    #[test]
    fn i1_i4_no_two_gates_are_open_and_tokens_rise(
        seed in any::<u64>(),
        loss in 0..400_u32,
        delay in 1..12_u64,
        watches in any::<bool>(),
    ) {
        let world = World { watches, ..bad(seed, loss, delay * SECOND) };
        let report = Sim::new(world).run(300 * SECOND);
        prop_assert_eq!(report.overlap, None, "{:?}", world);
        prop_assert_eq!(report.falling, None, "{:?}", world);
    }

    /// I4, when operators take the key away as well (F-12).
    #[test]
    fn i4_tokens_rise_though_the_key_is_taken_away(seed in any::<u64>(), loss in 0..400_u32, delay in 1..12_u64) {
        let world = World { operators: true, trouble: 20, ..bad(seed, loss, delay * SECOND) };
        let report = Sim::new(world).run(200 * SECOND);
        prop_assert_eq!(report.falling, None, "{:?}", world);
    }
}

#[test]
fn the_simulation_does_what_it_is_for() {
    let reports: Vec<_> = (0..50)
        .map(|seed| Sim::new(bad(seed, 200, 5 * SECOND)).run(300 * SECOND))
        .collect();
    let epochs: usize = reports.iter().map(|report| report.epochs).sum();
    let losses: usize = reports.iter().map(|report| report.losses).sum();
    assert!(
        epochs > 300 && losses > 200,
        "{epochs} epochs, {losses} losses in 50 worlds"
    );
}

/// The negative control of R-5: clocks that drift more than the margin covers do break I1, and the simulation sees it.
#[test]
fn r5_without_its_margin_the_invariant_breaks() {
    let careless = |seed| World {
        drift_ppm: 30_000,
        believed_ppm: 0,
        guard: Some(Duration::ZERO),
        ..bad(seed, 300, SECOND / 100)
    };
    let broken = (0..200).any(|seed| Sim::new(careless(seed)).run(300 * SECOND).overlap.is_some());
    assert!(broken, "no overlap in 200 careless worlds");
}
