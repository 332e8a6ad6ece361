//! Every history of a small world: two or three keepers' cores, a true store, and at most so many faults. I1 and I4.
//!
//! Messages arrive at once and in order, and time goes on only when none is under way; each deviation is a fault: a
//! message that is lost, one that comes late or again, a network that is cut for longer than a TTL, one way or both, a
//! keeper that crashes and is started anew. Where a fault may happen the search tries all of them, and goes on without one too.

use std::{collections::BTreeMap, num::NonZeroU64, time::Duration};

use tokio::time::Instant;

use crate::{
    Acquired, BootInstant, Claim, ClaimId, Fault, Holder, LeaseKey,
    lease::{Core, Granted, Input, Output, Reply, Seen, Sent},
    memory::Table,
    terms::Terms,
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
    gate: Option<BootInstant>,
    watches: bool,
    /// Until when requests, and answers, do not get through.
    cut: (u64, u64),
}

#[derive(Clone, Debug)]
enum Message {
    ToStore(usize, u32, Request),
    ToNode(usize, u32, Input),
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Acquire(Sent),
    Renew(Sent),
    Release(ClaimId),
    Disown(ClaimId),
}

/// What may go wrong when the next message is about to arrive.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Lost,
    Late,
    Again,
    /// Nothing from the store arrives at that node any more, for a while.
    CutAnswers,
    /// Nor the other way.
    Cut,
    /// The node that sent it, or would get it, dies and starts anew.
    Crash,
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
const MISHAPS: [Mishap; 6] =
    [Mishap::Lost, Mishap::Late, Mishap::Again, Mishap::CutAnswers, Mishap::Cut, Mishap::Crash];
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
        let careless = Terms { drift_ppm: 0, guard: Some(Duration::ZERO), ..Terms::default() };
        let terms = if self.margin { Terms::default() } else { careless };
        let id = ClaimId::from_u128(((at as u128 + 1) << 96) | (u128::from(run) << 80));
        let seed = (at as u64) << 32 | u64::from(run);
        let core = Core::new(Terms { ttl: TTL, reacquire: true, ..terms }, id, true, seed);
        let rate_ppm = if !self.margin && at == 0 { CARELESS_RATE } else { RATES[at] };
        Node { core, run, rate_ppm, gate: None, watches: false, cut: (0, 0) }
    }

    /// Goes on until `HORIZON`, and branches wherever a fault may happen.
    fn explore(mut self, faults: u32, seen: &mut Found) {
        while seen.broken.is_none() {
            if self.messages.is_empty() {
                if !self.pass_time() {
                    break;
                }
            } else {
                if faults > 0 {
                    for mishap in MISHAPS {
                        let mut other = self.clone();
                        other.suffer(mishap);
                        other.explore(faults - 1, seen);
                    }
                }
                let message = self.messages.remove(0);
                self.deliver(message, seen);
            }
            self.check(seen);
        }
        seen.histories += 1;
    }

    fn suffer(&mut self, mishap: Mishap) {
        let message = self.messages.remove(0);
        let (Message::ToStore(at, ..) | Message::ToNode(at, ..)) = message;
        match mishap {
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
        self.serial += 1;
        self.held.insert((self.now + LATE, self.serial), message);
    }

    /// To the next deadline of anybody; false when that is past the horizon.
    fn pass_time(&mut self) -> bool {
        let wakes = (0..self.nodes.len()).filter_map(|at| Some((self.wake(at)?, at)));
        let wake = wakes.min();
        let held = self.held.keys().next().map(|(when, _)| *when);
        let expiry = self.table.next_end().map(|end| end.duration_since(self.start).as_nanos() as u64);
        let next = [wake.map(|(when, _)| when), held, expiry].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= HORIZON) else { return false };
        self.now = next.max(self.now);
        if expiry == Some(next) {
            self.changing(|table, now| table.sweep(now));
        } else if held == Some(next) {
            self.messages.extend(self.held.pop_first().map(|(_, message)| message));
        } else if let Some((_, at)) = wake {
            self.feed(at, Input::Timer);
        }
        true
    }

    /// When a node's deadline is, in true time; the next nanosecond if it is over.
    fn wake(&self, at: usize) -> Option<u64> {
        let node = &self.nodes[at];
        let left = node.core.deadline()?.since(self.clock(at)).as_nanos() as u64;
        Some(self.now + (u128::from(left) * 1_000_000 / u128::from(node.rate_ppm)) as u64 + 1)
    }

    fn deliver(&mut self, message: Message, seen: &mut Found) {
        match message {
            Message::ToNode(at, _, _) if self.now < self.nodes[at].cut.1 => {}
            Message::ToStore(at, ..) if self.now < self.nodes[at].cut.0 => {}
            Message::ToNode(at, run, input) if self.nodes[at].run == run => self.feed(at, input),
            Message::ToNode(..) => {}
            Message::ToStore(at, run, request) => {
                let input = self.serve(at, request, seen);
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
        let mut send = |request| self.messages.push(Message::ToStore(at, run, request));
        match output {
            Output::Acquire(sent) => send(Request::Acquire(sent)),
            Output::Renew(sent) => send(Request::Renew(sent)),
            Output::Release(claim) => send(Request::Release(claim)),
            Output::Disown(claim) => send(Request::Disown(claim)),
            Output::Watch(_) => {
                self.nodes[at].watches = true;
                self.tell(at);
            }
            Output::Unwatch => self.nodes[at].watches = false,
            Output::Open(_, until) | Output::Extend(until) => self.nodes[at].gate = Some(until),
            Output::Close => self.nodes[at].gate = None,
            Output::Transfer(_) | Output::Drain | Output::Distrust { .. } => unreachable!("not here: {output:?}"),
            Output::Forget | Output::Publish(_) => {}
        }
    }

    fn serve(&mut self, at: usize, request: Request, seen: &mut Found) -> Input {
        match request {
            Request::Acquire(sent) => {
                let before = self.table.revision();
                let acquired = self.changing(|table, now| table.acquire(&claim(sent.claim), now));
                let is_new = self.table.revision() > before;
                Input::Acquired(
                    sent,
                    acquired.map(|acquired| self.reply(acquired, is_new, seen)).map_err(|_| Fault::Refused),
                )
            }
            Request::Renew(sent) => {
                let renewed = self.changing(|table, now| table.renew(&claim(sent.claim), now));
                Input::Renewed(sent, renewed.map_err(|error| error.fault()))
            }
            Request::Release(id) => {
                self.changing(|table, now| table.release(&claim(id), now));
                Input::Released(id, true)
            }
            Request::Disown(id) => {
                let found = self.changing(|table, now| table.inspect(&key(), now));
                if let Some(record) = found.filter(|record| record.claim() == id) {
                    _ = self.changing(|table, now| table.revoke(&key(), Some(record.token()), now));
                }
                let _ = at;
                Input::Released(id, true)
            }
        }
    }

    /// I4, at the store.
    fn reply(&mut self, acquired: Acquired, is_new: bool, seen: &mut Found) -> Reply {
        match acquired {
            Acquired::Held(record) => Reply::Held { claim: record.claim(), expires_in: record.expires_in() },
            Acquired::Granted(grant) => {
                let epoch: NonZeroU64 = grant.token().epoch();
                if is_new {
                    seen.epochs += 1;
                    if epoch.get() <= self.highest {
                        seen.broken = Some(format!("I4: {epoch} after {}", self.highest));
                    }
                    self.highest = epoch.get();
                }
                let (ttl, revision) = (grant.ttl(), grant.revision());
                Reply::Granted(Granted { epoch, ttl, revision, is_clean: grant.is_clean() })
            }
        }
    }

    /// Does something to the table, and tells the watchers if that changed it.
    fn changing<T>(&mut self, act: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let before = self.table.revision();
        let now = self.start + Duration::from_nanos(self.now);
        let result = act(&mut self.table, now);
        if self.table.revision() != before {
            (0..self.nodes.len()).for_each(|at| self.tell(at));
        }
        result
    }

    fn tell(&mut self, at: usize) {
        if self.nodes[at].watches {
            let now = self.start + Duration::from_nanos(self.now);
            let (record, revision) = (self.table.inspect(&key(), now), self.table.revision());
            let seen = record.map_or(Seen::Vacant(revision), |record| Seen::Held(record.claim(), revision));
            self.messages.push(Message::ToNode(at, self.nodes[at].run, Input::Watched(seen)));
        }
    }

    /// I1, at this true time.
    fn check(&self, seen: &mut Found) {
        let open = (0..self.nodes.len()).filter(|at| self.nodes[*at].gate.is_some_and(|until| self.clock(*at) < until));
        if open.count() > 1 {
            seen.broken = Some(format!("I1: two gates are open at {} ms", self.now / 1_000_000));
        }
    }

    fn clock(&self, at: usize) -> BootInstant {
        let passed = u128::from(self.now) * u128::from(self.nodes[at].rate_ppm) / 1_000_000;
        BootInstant::from_nanos(passed as u64 + SECOND)
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
    let mut seen = Found::default();
    World::new(nodes, margin).explore(faults, &mut seen);
    seen
}

#[test]
fn i1_i4_hold_in_every_history_of_two_nodes_with_two_faults() {
    let seen = search(2, 2, true);
    assert_eq!(seen.broken, None);
    println!("{} histories, {} epochs", seen.histories, seen.epochs);
    assert!(seen.histories > 10_000 && seen.epochs > seen.histories / 5, "{seen:?}");
}

#[test]
fn i1_i4_hold_in_every_history_of_three_nodes_with_one_fault() {
    let seen = search(3, 1, true);
    assert_eq!(seen.broken, None);
    println!("{} histories, {} epochs", seen.histories, seen.epochs);
    assert!(seen.histories > 300 && seen.epochs > seen.histories / 10, "{seen:?}");
}

/// The negative control: the search does find what a missing margin breaks.
#[test]
fn r5_without_its_margin_two_faults_break_i1() {
    let seen = search(2, 2, false);
    assert!(seen.broken.is_some_and(|what| what.starts_with("I1")));
}
