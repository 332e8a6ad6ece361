use std::{
    convert::Infallible,
    future::{Ready, ready},
    num::NonZeroU64,
    task::Context,
    time::Duration,
};

use loom::thread;
use tower_layer::Layer;
use tower_outcome::BoxError;
use tower_service::Service;

use super::*;
use crate::{Holder, LeaseGate, LeaseKey, LeaseLayer, MemoryStore, sync::block_on};

/// It stands still: each wait must end by a wake-up.
#[derive(Clone)]
struct Still;

impl Clock for Still {
    fn now(&self) -> BootInstant {
        at(1)
    }
}

#[derive(Clone)]
struct Unit;

impl Service<()> for Unit {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

const fn at(nanos: u64) -> BootInstant {
    BootInstant::from_nanos(nanos)
}

fn kept() -> (Lease<Still>, Keeper<MemoryStore, Still>) {
    let key = LeaseKey::new("leader").unwrap();
    let builder = Lease::builder(MemoryStore::new(), key, Holder::new("node"));
    builder.clock(Still).build().unwrap()
}

fn opened(keeper: &mut Keeper<MemoryStore, Still>, until: u64) {
    keeper.act(Output::Open(NonZeroU64::MIN, at(until)));
}

fn gate(lease: &Lease<Still>, min_remaining: Duration) -> LeaseGate<Unit, Still> {
    LeaseLayer::new(lease)
        .min_remaining(min_remaining)
        .gate()
        .layer(Unit)
}

fn is_ready(mut gate: LeaseGate<Unit, Still>) -> Result<(), BoxError> {
    block_on(poll_fn(|cx| gate.poll_ready(cx)))
}

/// Otherwise a task that checks between the two sleeps for ever.
#[test]
fn loom_a_waiting_task_is_woken_when_the_keeper_ends() {
    loom::model(|| {
        let (lease, keeper) = kept();
        let ending = thread::spawn(move || drop(keeper));
        assert!(block_on(lease.held()).is_err());
        ending.join().unwrap();
    });
}

#[test]
fn loom_a_waiting_gate_is_woken_when_the_keeper_ends() {
    loom::model(|| {
        let (lease, keeper) = kept();
        let gate = gate(&lease, Duration::ZERO);
        let ending = thread::spawn(move || drop(keeper));
        assert!(is_ready(gate).is_err());
        ending.join().unwrap();
    });
}

#[test]
fn loom_a_waiting_task_is_woken_when_the_lease_is_held() {
    loom::model(|| {
        let (lease, mut keeper) = kept();
        let gate = gate(&lease, Duration::ZERO);
        let keeping = thread::spawn(move || {
            opened(&mut keeper, 100);
            keeper
        });
        assert!(block_on(lease.held()).is_ok());
        assert!(is_ready(gate).is_ok());
        drop(keeping.join().unwrap());
    });
}

/// a gate that wants more time than was left.
#[test]
fn loom_r27_a_gate_that_waits_hears_of_an_extension() {
    loom::model(|| {
        let (lease, mut keeper) = kept();
        opened(&mut keeper, 100);
        let gate = gate(&lease, Duration::from_nanos(150));
        let keeping = thread::spawn(move || {
            keeper.act(Output::Extend(at(200)));
            keeper
        });
        assert!(is_ready(gate).is_ok());
        drop(keeping.join().unwrap());
    });
}

/// the last one that leaves wakes the keeper that waits for that.
#[test]
fn loom_r29_the_keeper_is_woken_when_no_request_is_in_flight() {
    loom::model(|| {
        let (lease, mut keeper) = kept();
        opened(&mut keeper, 100);
        let guard = lease.enter(Duration::ZERO).unwrap();
        let leaving = thread::spawn(move || drop(guard));
        keeper.act(Output::Drain);
        block_on(lease.shared().drained());
        leaving.join().unwrap();
    });
}
