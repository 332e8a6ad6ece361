//! Many threads, many clones, and an operator in between. Time is real here, and bounded.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use testkit::Probe;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_circuit::{Circuit, CircuitLayer, Open, State, Trip};
use tower_outcome::{Outcome, Settle};

use crate::common::*;

const THREADS: u64 = 4;
const CALLS: u64 = 50_000;

#[test]
fn every_call_of_every_thread_is_counted_once_and_in_the_window() {
    let circuit = Circuit::builder()
        .trip(Trip::never())
        .window(86_400 * SECOND)
        .build();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for index in 0..CALLS {
                    let outcome = if index % 100 == 0 {
                        Outcome::FAILURE
                    } else {
                        Outcome::SUCCESS
                    };
                    circuit.admit().unwrap().settle(outcome);
                }
            });
        }
    });
    let snapshot = circuit.snapshot();
    let (failed, succeeded) = (THREADS * CALLS / 100, THREADS * CALLS / 100 * 99);
    assert_eq!(
        (snapshot.totals.succeeded, snapshot.totals.failed),
        (succeeded, failed)
    );
    assert_eq!(
        (snapshot.window.succeeded, snapshot.window.failed),
        (succeeded, failed)
    );
}

#[test]
fn a_call_that_races_a_transition_is_counted_or_stale_and_never_lost() {
    let circuit = Circuit::new();
    let done = AtomicBool::new(false);
    let admitted = AtomicU64::new(0);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| call(&circuit, &admitted)))
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                circuit.reset();
                thread::yield_now();
            }
        });
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
        done.store(true, Relaxed);
    });
    let totals = circuit.snapshot().totals;
    assert_eq!(totals.succeeded + totals.stale, admitted.into_inner());
    circuit.reset();
    assert_eq!(circuit.snapshot().window.calls(), 0, "nothing from before");
}

fn call(circuit: &Circuit, admitted: &AtomicU64) {
    for _ in 0..CALLS {
        if let Ok(permit) = circuit.admit() {
            admitted.fetch_add(1, Relaxed);
            permit.settle(Outcome::SUCCESS);
        }
    }
}

/// For two seconds, because slices of a tenth of a second use the same slot after sixteen.
#[test]
fn totals_never_go_back_while_they_are_read() {
    let circuit = Circuit::builder().window(SECOND).build();
    let admitted = AtomicU64::new(0);
    let ends = Instant::now() + 2 * SECOND;
    let going = || Instant::now() < ends;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while going() {
                    circuit.admit().unwrap().settle(Outcome::SUCCESS);
                    admitted.fetch_add(1, Relaxed);
                }
            });
        }
        let mut before = 0;
        while going() {
            let now = circuit.snapshot().totals.succeeded;
            assert!(now >= before, "{before} and then {now}");
            before = now;
        }
    });
    assert_eq!(circuit.snapshot().totals.succeeded, admitted.into_inner());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forced_states_hold_under_load() {
    let circuit = Circuit::new();
    let inner = service_fn(async |fails: bool| {
        if fails {
            Err(std::io::Error::other("down"))
        } else {
            Ok(())
        }
    });
    let service = CircuitLayer::new(&circuit).layer(inner);
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|index| {
            let (mut service, done) = (service.clone(), done.clone());
            tokio::spawn(async move {
                while !done.load(Relaxed) {
                    let _ = service.ready().await.unwrap().call(index % 2 == 0).await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..20 {
        circuit.force_open();
        assert!(
            service
                .clone()
                .oneshot(false)
                .await
                .unwrap_err()
                .is::<Open>()
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(circuit.state(), State::Open { until: None });
        circuit.force_closed();
        service.clone().oneshot(false).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(circuit.state(), State::Closed, "whatever fails");
    }
    done.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_clones_are_one_circuit() {
    let circuit = trips_at(5).build();
    let (probe, handle) = Probe::<String>::new();
    let mut service = CircuitLayer::new(&circuit).layer(probe);
    service.ready().await.unwrap();
    let mut clones: Vec<_> = (0..5_000).map(|_| service.clone()).collect();
    for clone in &mut clones {
        // Made after the other one was ready, but it must be polled: the probe would panic.
        finish(clone.ready().await.unwrap().call(request())).unwrap();
    }
    finish(service.call(request())).unwrap();
    for clone in clones.iter_mut().take(5) {
        handle.answer(testkit::Answer::Fail);
        finish(clone.ready().await.unwrap().call(request())).unwrap_err();
    }
    let refused = clones.iter_mut().map(|clone| {
        assert!(is_ready(clone));
        finish(clone.call(request())).is_err()
    });
    assert!(
        refused
            .collect::<Vec<_>>()
            .into_iter()
            .all(|refused| refused)
    );
    assert_eq!(circuit.snapshot().totals.rejected, 5_000);
    drop(clones);
    assert_eq!(handle.clones(), 1);
}
