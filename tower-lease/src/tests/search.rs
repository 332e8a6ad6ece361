//! Every history of a small world: two or three keepers' cores, a true store, and a bounded number of faults. I1 and I4.
//!
//! Messages arrive at once and in order, and time goes on only when none is under way; each deviation is a fault: a
//! message that is lost, one that comes late or again, a store that does something and does not know it, a network that
//! is cut for longer than a TTL, one way or both, a watch that breaks, a keeper that crashes and is started anew, one that
//! is stopped and goes on with all that came meanwhile, a machine that sleeps. And in the midst of that a holder may step
//! down or hand over. Where a fault may happen the search tries all of them, and goes on without one too.

use std::{collections::BTreeMap, num::NonZeroU64, time::Duration};

use tokio::time::Instant;

use crate::{
    Acquired, BootInstant, Claim, ClaimId, Fault, Holder, LeaseKey, Lost, State,
    lease::{Core, Granted, Input, Output, Reply, RequestStamp, WatchReport},
    memory::Table,
    timing::Timing,
};

#[derive(Clone)]
struct World {
    /// True time, in nanoseconds, which is the store's.
    now: u64,
    start: Instant,
    table: Table,
    nodes: Vec<Node>,
    /// What is under way, in order.
    messages: Vec<Message>,
    /// What is held back, by when it is let go.
    held: BTreeMap<(u64, u32), Message>,
    serial: u32,
    highest: u64,
    margin: bool,
}

#[derive(Clone)]
struct Node {
    core: Core,
    run: u32,
    rate_ppm: u64,
    /// What its clock has counted while the machine slept.
    slept: u64,
    gate: Option<(u64, BootInstant)>,
    /// The last epoch whose gate was opened.
    opened: u64,
    /// The number of its watch, if it has one.
    watch: Option<u32>,
    /// It is stopped until then.
    stopped: u64,
    /// Until when requests, and answers, do not get through.
    cut: (u64, u64),
}

#[derive(Clone, Debug)]
enum Message {
    ToStore(usize, u32, Request),
    ToNode(usize, u32, Input),
    /// What a watch reports is gone with the watch.
    Event(usize, u32, WatchReport),
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Acquire(RequestStamp),
    Renew(RequestStamp),
    Release(ClaimId),
    RevokeOwn(ClaimId),
    Transfer(ClaimId, ClaimId),
}

/// What may go wrong when the next message is about to arrive.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Lost,
    Late,
    Again,
    /// The store carries it out, and answers that the result is unknown.
    Unknown,
    /// Nothing from the store arrives at that node any more, for a while.
    CutAnswers,
    /// Nor the other way.
    Cut,
    /// The node's watch.
    WatchBreaks,
    /// The node that sent it, or would get it, dies and starts anew.
    Crash,
    /// It is stopped for longer than a TTL; its clock goes on.
    Stop,
    /// Its machine sleeps for longer than a TTL: no other process notices, and none of its timers.
    Sleep,
    StepDown,
    /// To the next node.
    HandOver,
}

/// How much was seen: how many ends of histories, and how many epochs after the first branch or before.
#[derive(Debug, Default)]
struct Found {
    histories: u64,
    epochs: u64,
    broken: Option<String>,
}

const SECOND: u64 = 1_000_000_000;
const TTL: Duration = Duration::from_secs(4);
const HORIZON: u64 = 11 * SECOND;
/// How late: to just before the end of a lease.
const LATE: u64 = 38 * SECOND / 10;
const CUT: u64 = 5 * SECOND;
const MISHAPS: [Mishap; 12] = [
    Mishap::Lost,
    Mishap::Late,
    Mishap::Again,
    Mishap::Unknown,
    Mishap::CutAnswers,
    Mishap::Cut,
    Mishap::WatchBreaks,
    Mishap::Crash,
    Mishap::Stop,
    Mishap::Sleep,
    Mishap::StepDown,
    Mishap::HandOver,
];
/// The clocks at both ends of what the margin covers; and one that is far beyond.
const RATES: [u64; 3] = [990_000, 1_010_000, 1_000_000];
const CARELESS_RATE: u64 = 950_000;

// === impl World ===

impl World {
    fn new(nodes: usize, margin: bool) -> Self {
        let mut world = Self {
            now: 0,
            start: Instant::now(),
            table: Table::default(),
            nodes: Vec::new(),
            messages: Vec::new(),
            held: BTreeMap::new(),
            serial: 0,
            highest: 0,
            margin,
        };
        for at in 0..nodes {
            let node = world.node(at, 0);
            world.nodes.push(node);
            world.feed(at, Input::Start);
        }
        world
    }

    fn node(&self, at: usize, run: u32) -> Node {
        let careless = Timing {
            drift_ppm: 0,
            guard: Some(Duration::ZERO),
            ..Timing::default()
        };
        let timing = if self.margin {
            Timing::default()
        } else {
            careless
        };
        let id = ClaimId::from_u128(((at as u128 + 1) << 96) | (u128::from(run) << 80));
        let seed = (at as u64) << 32 | u64::from(run);
        let core = Core::new(
            Timing {
                ttl: TTL,
                reacquire: true,
                ..timing
            },
            id,
            true,
            seed,
        );
        let rate_ppm = if !self.margin && at == 0 {
            CARELESS_RATE
        } else {
            RATES[at]
        };
        Node {
            core,
            run,
            rate_ppm,
            slept: 0,
            gate: None,
            opened: 0,
            watch: None,
            stopped: 0,
            cut: (0, 0),
        }
    }

    /// Goes on until `HORIZON`, and branches wherever a fault may happen.
    fn explore(mut self, faults: u32, report: &mut Found) {
        while report.broken.is_none() {
            if self.messages.is_empty() {
                if !self.pass_time() {
                    break;
                }
            } else {
                if faults > 0 {
                    for mishap in MISHAPS
                        .into_iter()
                        .filter(|mishap| self.may_suffer(*mishap))
                    {
                        let mut other = self.clone();
                        other.suffer(mishap, report);
                        other.explore(faults - 1, report);
                    }
                }
                let message = self.messages.remove(0);
                self.deliver(message, report);
            }
            self.check(report);
        }
        report.histories += 1;
    }

    /// Whether that makes a difference now.
    fn may_suffer(&self, mishap: Mishap) -> bool {
        let node = &self.nodes[self.messages[0].node()];
        match mishap {
            Mishap::Unknown => matches!(self.messages[0], Message::ToStore(..)),
            Mishap::WatchBreaks => node.watch.is_some(),
            Mishap::Sleep | Mishap::StepDown | Mishap::HandOver => node.gate.is_some(),
            _ => true,
        }
    }

    fn suffer(&mut self, mishap: Mishap, report: &mut Found) {
        let message = self.messages.remove(0);
        let at = message.node();
        match mishap {
            Mishap::Unknown => {
                self.deliver(message, report);
                if let Some(Message::ToNode(_, _, input)) = self.messages.last_mut() {
                    input.forget();
                }
                return;
            }
            Mishap::WatchBreaks => {
                if let Some(watch) = self.nodes[at].watch {
                    self.messages
                        .push(Message::Event(at, watch, WatchReport::Broken));
                }
            }
            Mishap::Stop => self.nodes[at].stopped = self.now + CUT,
            Mishap::Sleep => self.nodes[at].slept += CUT,
            Mishap::StepDown => self.feed(at, Input::StepDown { hands_over: false }),
            Mishap::HandOver => self.feed(at, Input::StepDown { hands_over: true }),
            Mishap::Lost => return,
            Mishap::Late => return self.hold(message),
            Mishap::Again => self.hold(message.clone()),
            Mishap::CutAnswers => self.nodes[at].cut.1 = self.now + CUT,
            Mishap::Cut => self.nodes[at].cut = (self.now + CUT, self.now + CUT),
            Mishap::Crash => {
                self.nodes[at] = self.node(at, self.nodes[at].run + 1);
                self.feed(at, Input::Start);
            }
        }
        self.messages.insert(0, message);
    }

    fn hold(&mut self, message: Message) {
        self.hold_until(self.now + LATE, message);
    }

    fn hold_until(&mut self, when: u64, message: Message) {
        self.serial += 1;
        self.held.insert((when, self.serial), message);
    }

    /// To the next deadline of any node; false when that is past the horizon.
    fn pass_time(&mut self) -> bool {
        let wakes = (0..self.nodes.len()).filter_map(|at| Some((self.wake(at)?, at)));
        let wake = wakes.min();
        let held = self.held.keys().next().map(|(when, _)| *when);
        let expiry = self
            .table
            .next_end()
            .map(|end| end.duration_since(self.start).as_nanos() as u64);
        let next = [wake.map(|(when, _)| when), held, expiry]
            .into_iter()
            .flatten()
            .min();
        let Some(next) = next.filter(|next| *next <= HORIZON) else {
            return false;
        };
        self.now = next.max(self.now);
        if expiry == Some(next) {
            self.changing(|table, now| table.sweep(now));
        } else if held == Some(next) {
            self.messages
                .extend(self.held.pop_first().map(|(_, message)| message));
        } else if let Some((_, at)) = wake {
            self.feed(at, Input::Timer);
        }
        true
    }

    /// When a node's deadline is, in true time; the next nanosecond if it is over.
    fn wake(&self, at: usize) -> Option<u64> {
        let node = &self.nodes[at];
        let left = node.core.deadline()?.since(self.clock(at)).as_nanos() as u64;
        let when = self.now + (u128::from(left) * 1_000_000 / u128::from(node.rate_ppm)) as u64 + 1;
        Some(when.max(node.stopped))
    }

    fn deliver(&mut self, message: Message, report: &mut Found) {
        match message {
            Message::ToNode(at, ..) | Message::Event(at, ..) if self.now < self.nodes[at].cut.1 => {
            }
            Message::ToStore(at, ..) if self.now < self.nodes[at].cut.0 => {}
            // It is there when the node goes on, behind what came before it.
            Message::ToNode(at, ..) | Message::Event(at, ..)
                if self.now < self.nodes[at].stopped =>
            {
                self.hold_until(self.nodes[at].stopped, message);
            }
            Message::ToNode(at, run, input) if self.nodes[at].run == run => self.feed(at, input),
            Message::Event(at, watch, report) if self.nodes[at].watch == Some(watch) => {
                self.feed(at, Input::Watched(report));
            }
            Message::ToNode(..) | Message::Event(..) => {}
            Message::ToStore(at, run, request) => {
                let input = self.serve(request, report);
                self.messages.push(Message::ToNode(at, run, input));
            }
        }
    }

    fn feed(&mut self, at: usize, input: Input) {
        let now = self.clock(at);
        for output in self.nodes[at].core.on(input, now) {
            self.act(at, output);
        }
    }

    fn act(&mut self, at: usize, output: Output) {
        let run = self.nodes[at].run;
        let handover_claim = self.nodes[(at + 1) % self.nodes.len()]
            .core
            .handover_claim();
        let mut send = |request| self.messages.push(Message::ToStore(at, run, request));
        match output {
            Output::Acquire(stamp) => send(Request::Acquire(stamp)),
            Output::Renew(stamp) => send(Request::Renew(stamp)),
            Output::Release(claim) => send(Request::Release(claim)),
            Output::RevokeOwn(claim) => send(Request::RevokeOwn(claim)),
            Output::Transfer(claim) => send(Request::Transfer(claim, handover_claim)),
            // Those inside leave at once; or late, if that is the fault.
            Output::Drain => self.messages.push(Message::ToNode(at, run, Input::Drained)),
            Output::Watch(_) => {
                self.serial += 1;
                self.nodes[at].watch = Some(self.serial);
                self.publish(at);
            }
            Output::Unwatch => self.nodes[at].watch = None,
            Output::Open(epoch, until) => {
                let node = &mut self.nodes[at];
                assert!(
                    epoch.get() > node.opened,
                    "R-26: epoch {epoch} is opened again"
                );
                (node.opened, node.gate) = (epoch.get(), Some((epoch.get(), until)));
            }
            Output::Extend(until) => {
                let gate = self.nodes[at]
                    .gate
                    .as_mut()
                    .expect("I3: an epoch that is over is extended");
                assert!(until >= gate.1, "R-8: {until:?} after {gate:?}");
                gate.1 = until;
            }
            Output::Close => self.nodes[at].gate = None,
            Output::NonMonotonicToken { .. }
            | Output::Publish(State::Fenced {
                cause: Lost::Rewound,
                ..
            }) => unreachable!("this store forgets nothing"),
            Output::Forget | Output::Publish(_) => {}
        }
    }

    fn serve(&mut self, request: Request, report: &mut Found) -> Input {
        match request {
            Request::Acquire(stamp) => {
                let before = self.table.revision();
                let acquired = self.changing(|table, now| table.acquire(&claim(stamp.claim), now));
                let is_new = self.table.revision() > before;
                Input::Acquired(
                    stamp,
                    acquired
                        .map(|acquired| self.reply(acquired, is_new, report))
                        .map_err(|_| Fault::Refused),
                )
            }
            Request::Renew(stamp) => {
                let renewed = self.changing(|table, now| table.renew(&claim(stamp.claim), now));
                Input::Renewed(stamp, renewed.map_err(|error| error.fault()))
            }
            Request::Release(id) => {
                self.changing(|table, now| table.release(&claim(id), now));
                Input::Released(id, true)
            }
            Request::RevokeOwn(id) => {
                let found = self.changing(|table, now| table.inspect(&key(), now));
                if let Some(record) = found.filter(|record| record.claim() == id) {
                    _ = self.changing(|table, now| table.revoke(&key(), Some(record.token()), now));
                }
                Input::Released(id, true)
            }
            Request::Transfer(from, to) => {
                let before = self.table.revision();
                let transferred =
                    self.changing(|table, now| table.transfer(&claim(from), &claim(to), now));
                let done = transferred.is_ok();
                if let Ok(grant) = transferred {
                    let is_new = self.table.revision() > before;
                    self.reply(Acquired::Granted(grant), is_new, report);
                }
                Input::Transferred(from, done)
            }
        }
    }

    /// I4, at the store.
    fn reply(&mut self, acquired: Acquired, is_new: bool, report: &mut Found) -> Reply {
        match acquired {
            Acquired::Held(record) => Reply::Held {
                claim: record.claim(),
                expires_in: record.expires_in(),
            },
            Acquired::Granted(grant) => {
                let epoch: NonZeroU64 = grant.token().epoch();
                if is_new {
                    report.epochs += 1;
                    if epoch.get() <= self.highest {
                        report.broken = Some(format!("I4: {epoch} after {}", self.highest));
                    }
                    self.highest = epoch.get();
                }
                let (ttl, revision) = (grant.ttl(), grant.revision());
                Reply::Granted(Granted {
                    epoch,
                    ttl,
                    revision,
                    is_clean: grant.is_clean(),
                })
            }
        }
    }

    /// Applies `act` to the table, and notifies the watchers if that changed it.
    fn changing<T>(&mut self, act: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let before = self.table.revision();
        let now = self.start + Duration::from_nanos(self.now);
        let result = act(&mut self.table, now);
        if self.table.revision() != before {
            (0..self.nodes.len()).for_each(|at| self.publish(at));
        }
        result
    }

    fn publish(&mut self, at: usize) {
        if let Some(watch) = self.nodes[at].watch {
            let now = self.start + Duration::from_nanos(self.now);
            let (record, revision) = (self.table.inspect(&key(), now), self.table.revision());
            let report = record.map_or(WatchReport::Vacant(revision), |record| {
                WatchReport::Held(record.claim(), revision)
            });
            self.messages.push(Message::Event(at, watch, report));
        }
    }

    /// I1, at this true time; and what is more, that a gate is open only while the store has its epoch.
    fn check(&mut self, report: &mut Found) {
        let gates = (0..self.nodes.len()).filter_map(|at| Some((at, self.nodes[at].gate?)));
        let open: Vec<_> = gates
            .filter(|(at, (_, until))| self.clock(*at) < *until)
            .collect();
        let at = self.now / 1_000_000;
        if open.len() > 1 {
            report.broken = Some(format!("I1: two gates are open at {at} ms"));
        } else if let [(_, (epoch, _))] = open[..] {
            let held = self.changing(|table, now| table.inspect(&key(), now));
            if held.is_none_or(|record| record.token().epoch().get() != epoch) {
                report.broken = Some(format!(
                    "I1: at {at} ms the gate of epoch {epoch} is open, and the store has another"
                ));
            }
        }
    }

    fn clock(&self, at: usize) -> BootInstant {
        let passed = u128::from(self.now) * u128::from(self.nodes[at].rate_ppm) / 1_000_000;
        BootInstant::from_nanos(passed as u64 + SECOND + self.nodes[at].slept)
    }
}

// === impl Message, Input ===

impl Message {
    fn node(&self) -> usize {
        let (Self::ToStore(at, ..) | Self::ToNode(at, ..) | Self::Event(at, ..)) = self;
        *at
    }
}

impl Input {
    /// The store has done something, and the answer does not contain what.
    fn forget(&mut self) {
        match self {
            Self::Acquired(_, answer) => *answer = Err(Fault::Unknown),
            Self::Renewed(_, answer) => *answer = Err(Fault::Unknown),
            Self::Released(_, certain) | Self::Transferred(_, certain) => *certain = false,
            _ => {}
        }
    }
}

fn key() -> LeaseKey {
    LeaseKey::new("leader").expect("a key")
}

fn claim(id: ClaimId) -> Claim {
    thread_local! {
        static HOLDER: Holder = Holder::new("node");
    }
    Claim::new(key(), HOLDER.with(Clone::clone), id, TTL)
}

fn search(nodes: usize, faults: u32, margin: bool) -> Found {
    let mut report = Found::default();
    World::new(nodes, margin).explore(faults, &mut report);
    report
}

#[test]
fn i1_i4_hold_in_every_history_of_two_nodes_with_two_faults() {
    let report = search(2, 2, true);
    assert_eq!(report.broken, None);
    println!("{} histories, {} epochs", report.histories, report.epochs);
    assert!(
        report.histories > 10_000 && report.epochs > report.histories / 5,
        "{report:?}"
    );
}

#[test]
fn i1_i4_hold_in_every_history_of_three_nodes_with_one_fault() {
    let report = search(3, 1, true);
    assert_eq!(report.broken, None);
    println!("{} histories, {} epochs", report.histories, report.epochs);
    assert!(
        report.histories > 300 && report.epochs > report.histories / 10,
        "{report:?}"
    );
}

/// The negative control: the search does find what a missing margin breaks.
#[test]
fn r5_without_its_margin_two_faults_break_i1() {
    let report = search(2, 2, false);
    assert!(report.broken.is_some_and(|what| what.starts_with("I1")));
}
