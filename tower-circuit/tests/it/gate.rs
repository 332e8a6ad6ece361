//! The gate: pending while open, one probe at a time, and no waker lost.

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use testkit::{Answer, Probe, ProbeHandle, Wakes};
use tower::{Layer, Service, ServiceExt};
use tower_circuit::{Circuit, CircuitGate, CircuitLayer, EjectionBudget, Open, State};
use tower_outcome::{Outcome, Settle, Unsent};

use crate::common::*;

type Gate = CircuitGate<Probe>;

fn gate(circuit: &Circuit) -> (Gate, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (CircuitLayer::new(circuit).gate().layer(probe), handle)
}

/// A gate and the waker of the task that waits for it.
struct Waiting {
    gate: Gate,
    wakes: Arc<Wakes>,
    waker: Waker,
}

impl Waiting {
    fn new(gate: &Gate) -> Self {
        let (wakes, waker) = Wakes::new();
        Self {
            gate: gate.clone(),
            wakes,
            waker,
        }
    }

    fn poll(&mut self) -> bool {
        match self.gate.poll_ready(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(ready) => ready.map(|()| true).unwrap(),
            Poll::Pending => false,
        }
    }
}

#[test]
fn a_gate_keeps_the_contract() {
    testkit::contract::check(|probe| CircuitLayer::new(Circuit::new()).gate().layer(probe));
}

#[tokio::test(start_paused = true)]
async fn an_open_gate_is_pending_without_polling_the_inner_service_and_wakes_by_itself() {
    let circuit = trips_at(1).build();
    let (gate, probe) = gate(&circuit);
    trip(&circuit);
    let mut waiting = Waiting::new(&gate);
    assert!(!waiting.poll());
    assert_eq!((probe.polls(), waiting.wakes.count()), (0, 0));
    tokio::time::sleep(COOLDOWN - Duration::from_millis(10)).await;
    assert_eq!(waiting.wakes.count(), 0, "no busy loop");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(waiting.wakes.count(), 1);
    assert!(waiting.poll());
    finish(waiting.gate.call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn all_waiting_gates_are_woken_when_it_closes() {
    let circuit = trips_at(1).build();
    let (gate, _probe) = gate(&circuit);
    circuit.force_open();
    let mut waiting: Vec<_> = (0..1000).map(|_| Waiting::new(&gate)).collect();
    assert!(waiting.iter_mut().all(|waiting| !waiting.poll()));
    circuit.reset();
    for waiting in &mut waiting {
        assert_eq!(waiting.wakes.count(), 1);
        assert!(waiting.poll());
    }
}

#[tokio::test(start_paused = true)]
async fn of_all_waiting_gates_exactly_one_gets_the_probe() {
    let circuit = trips_at(1).build();
    let (gate, _probe) = gate(&circuit);
    trip(&circuit);
    let mut waiting: Vec<_> = (0..10).map(|_| Waiting::new(&gate)).collect();
    assert!(waiting.iter_mut().all(|waiting| !waiting.poll()));
    tokio::time::sleep(COOLDOWN).await;
    let ready: Vec<_> = waiting.iter_mut().map(Waiting::poll).collect();
    assert_eq!(ready.iter().filter(|&&ready| ready).count(), 1);
    assert_eq!(
        ready,
        waiting.iter_mut().map(Waiting::poll).collect::<Vec<_>>(),
        "and keeps it when polled again"
    );
    let before: Vec<_> = waiting
        .iter()
        .map(|waiting| waiting.wakes.count())
        .collect();
    let at = ready.iter().position(|&ready| ready).unwrap();
    finish(waiting[at].gate.call(request())).unwrap();
    for (index, waiting) in waiting
        .iter_mut()
        .enumerate()
        .filter(|(index, _)| *index != at)
    {
        assert_eq!(waiting.wakes.count(), before[index] + 1);
        assert!(waiting.poll());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserving_gate_that_is_dropped_wakes_another() {
    let circuit = trips_at(1).build();
    let (gate, _probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut holder, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(holder.poll() && !waiting.poll());
    drop(holder);
    assert_eq!(waiting.wakes.count(), 1);
    assert!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn a_probe_dropped_by_its_caller_wakes_another() {
    let circuit = trips_at(1).build();
    let (gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut holder, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(holder.poll() && !waiting.poll());
    probe.answer(Answer::Hang);
    let call = holder.gate.call(request());
    assert!(!waiting.poll());
    drop(call);
    assert_eq!(waiting.wakes.count(), 1);
    assert!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_is_not_used_expires_and_another_gate_takes_it() {
    let circuit = trips_at(1).build();
    let (gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut idle, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(idle.poll() && !waiting.poll());
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(waiting.wakes.count(), 1, "by its own timer");
    assert!(waiting.poll());
    let error = finish(idle.gate.call(request())).unwrap_err();
    assert!(
        Unsent::<http::Request<String>>::recover(error)
            .unwrap()
            .1
            .is::<Open>()
    );
    assert_eq!(probe.calls(), 0);
    assert!(!idle.poll());
    finish(waiting.gate.call(request())).unwrap();
    assert!(idle.poll());
}

#[tokio::test(start_paused = true)]
async fn a_gate_whose_reservation_expired_waits_again() {
    let circuit = trips_at(1).build();
    let (gate, _probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut idle, mut other) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(idle.poll());
    tokio::time::advance(10 * SECOND).await;
    assert!(other.poll());
    assert!(!idle.poll(), "another gate has the slot");
    drop(other);
    assert_eq!(idle.wakes.count(), 1);
    assert!(idle.poll());
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_probe_waiting_gates_wait_for_the_next_cooldown() {
    let circuit = trips_at(1).build();
    let (gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut holder, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(holder.poll() && !waiting.poll());
    probe.answer(Answer::Fail);
    finish(holder.gate.call(request())).unwrap_err();
    assert_eq!(waiting.wakes.count(), 1);
    assert!(!waiting.poll(), "it resets its timer");
    tokio::time::sleep(COOLDOWN - Duration::from_millis(10)).await;
    assert_eq!(waiting.wakes.count(), 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(waiting.wakes.count(), 2);
    assert!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn a_hanging_probe_is_over_at_its_deadline_and_the_gate_goes_on_by_itself() {
    let circuit = trips_at(1).probe_deadline(3 * SECOND).build();
    let (gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    let (mut holder, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(holder.poll());
    probe.answer(Answer::Hang);
    let hanging = holder.gate.call(request());
    let started = tokio::time::Instant::now();
    waiting.gate.ready().await.unwrap();
    assert_eq!(
        started.elapsed().as_secs(),
        13,
        "after the deadline and one cooldown"
    );
    finish(waiting.gate.call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
    drop(hanging);
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_was_ready_before_the_trip_is_pending_when_polled_again() {
    let circuit = trips_at(1).build();
    let (mut gate, probe) = gate(&circuit);
    assert!(is_ready(&mut gate));
    trip(&circuit);
    assert!(!is_ready(&mut gate));
    circuit.reset();
    assert!(is_ready(&mut gate));
    finish(gate.call(request())).unwrap();
    assert_eq!(probe.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_after_readiness_has_ended_hands_its_request_back() {
    let circuit = trips_at(1).build();
    let (mut gate, probe) = gate(&circuit);
    assert!(is_ready(&mut gate));
    trip(&circuit);
    let mine = http::Request::new(String::from("mine"));
    let error = finish(gate.call(mine)).unwrap_err();
    let (request, cause) = Unsent::<http::Request<String>>::recover(error).unwrap();
    assert_eq!(request.body(), "mine");
    assert_eq!(
        cause.downcast_ref::<Open>().unwrap().retry_after(),
        Some(COOLDOWN)
    );
    assert_eq!(probe.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_outlives_an_inner_service_that_is_getting_ready() {
    let circuit = trips_at(1).build();
    let (gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    probe.be_pending();
    let (mut holder, mut waiting) = (Waiting::new(&gate), Waiting::new(&gate));
    assert!(!holder.poll() && !waiting.poll());
    assert_eq!(
        probe.polls(),
        1,
        "the inner service of the other one is not polled"
    );
    probe.be_ready();
    assert_eq!(holder.wakes.count(), 1);
    assert!(holder.poll());
    finish(holder.gate.call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_fails_in_poll_ready_returns_the_reservation() {
    let circuit = trips_at(1).build();
    let (mut gate, probe) = gate(&circuit);
    cool_down(&circuit).await;
    probe.be_failed();
    assert!(matches!(ready(&mut gate), Poll::Ready(Err(_))));
    assert!(circuit.admit().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_clone_has_no_reservation() {
    let circuit = trips_at(1).build();
    let (mut gate, _probe) = gate(&circuit);
    cool_down(&circuit).await;
    assert!(is_ready(&mut gate));
    let mut clone = gate.clone();
    assert!(!is_ready(&mut clone));
    drop(clone);
    finish(gate.call(request())).unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_forced_open_gate_has_no_timer_and_is_woken_by_the_operator() {
    let circuit = Circuit::new();
    let (gate, _probe) = gate(&circuit);
    circuit.force_open();
    let mut waiting = Waiting::new(&gate);
    assert!(!waiting.poll());
    tokio::time::sleep(86_400 * SECOND).await;
    assert_eq!(waiting.wakes.count(), 0);
    circuit.automatic();
    assert_eq!(waiting.wakes.count(), 1);
    assert!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn the_waker_of_the_last_poll_is_woken() {
    let circuit = Circuit::new();
    let (gate, _probe) = gate(&circuit);
    circuit.force_open();
    let mut waiting = Waiting::new(&gate);
    assert!(!waiting.poll());
    let (moved, waker) = Wakes::new();
    let old = std::mem::replace(&mut waiting.wakes, moved);
    waiting.waker = waker;
    assert!(!waiting.poll());
    circuit.reset();
    assert_eq!((old.count(), waiting.wakes.count()), (0, 1));
}

/// A task that only its waker keeps alive, and that owns a gate.
struct Task(#[expect(dead_code, reason = "it is there to be dropped")] Mutex<Gate>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_task_that_ends_with_its_waker_may_hold_a_gate_of_the_same_circuit() {
    let circuit = Circuit::new();
    let (gate, _probe) = gate(&circuit);
    circuit.force_open();
    let (done, is_done) = std::sync::mpsc::channel();
    // In another thread, because a fault would be a deadlock.
    std::thread::spawn(move || {
        let mut held = gate.clone();
        assert!(!is_ready(&mut held));
        let mut outer = gate;
        let waker = Waker::from(Arc::new(Task(Mutex::new(held))));
        assert!(
            outer
                .poll_ready(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(waker);
        assert!(!is_ready(&mut outer));
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(10 * SECOND)
        .expect("a deadlock, or a panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_waiting_tasks_all_make_their_calls() {
    let millis = Duration::from_millis;
    let circuit = trips_at(1)
        .cooldown(tower_circuit::Cooldown::new(millis(20)))
        .build();
    let (gate, probe) = gate(&circuit);
    trip(&circuit);
    // The first probes end in every way but success.
    probe.answer(Answer::Fail);
    probe.answer(Answer::Panic);
    probe.answer(Answer::Fail);
    let tasks: Vec<_> = (0..2000)
        .map(|index| {
            let mut gate = gate.clone();
            tokio::spawn(async move {
                gate.ready().await.unwrap();
                // Some are dropped with their reservation.
                if index % 3 > 0 {
                    let _ = gate.call(request()).await;
                }
            })
        })
        .collect();
    let all = futures_util::future::join_all(tasks);
    tokio::time::timeout(30 * SECOND, all)
        .await
        .expect("no task waits for ever");
    assert_eq!(circuit.state(), State::Closed);
}

/// Circuits of one set, which has as many members.
fn set(members: usize) -> (EjectionBudget, Vec<Circuit>) {
    let budget = EjectionBudget::new();
    budget.set_members(members);
    let circuit = || trips_at(5).ejection_budget(&budget).build();
    let circuits = (0..members).map(|_| circuit()).collect();
    (budget, circuits)
}

fn answer_500(circuit: &Circuit, times: usize) {
    for _ in 0..times {
        let permit = circuit.admit();
        permit
            .into_iter()
            .for_each(|it| it.settle(Outcome::FAILURE));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_every_endpoint_answers_with_500_never_opens_all_circuits() {
    for members in [1, 2, 3, 8] {
        let (budget, circuits) = set(members);
        for _ in 0..100 {
            circuits.iter().for_each(|circuit| answer_500(circuit, 10));
            let open = circuits.iter().filter(|it| it.state() != State::Closed);
            assert_eq!(open.count(), budget.max_out(), "{members}");
            tokio::time::advance(3 * SECOND).await;
        }
        let kept_closed: u64 = circuits.iter().map(|it| it.snapshot().kept_closed).sum();
        assert!(kept_closed >= (members - budget.max_out()) as u64);
        assert!(kept_closed < 100, "once for each time, not for each call");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_returns_its_share_of_the_budget_when_it_closes_is_reset_or_dropped() {
    let (budget, circuits) = set(3);
    let [first, second, third] = <[_; 3]>::try_from(circuits).unwrap();
    answer_500(&first, 5);
    answer_500(&second, 5);
    assert!(is_open(&first) && !is_open(&second), "one of three");
    assert_eq!(second.snapshot().kept_closed, 1);

    tokio::time::advance(COOLDOWN).await;
    let probe = first.admit().unwrap();
    assert_eq!(budget.out(), 1, "half-open counts as ejected");
    answer_500(&second, 1);
    assert!(!is_open(&second));
    probe.settle(Outcome::FAILURE);
    assert!(is_open(&first) && budget.out() == 1, "again, and once");

    tokio::time::advance(COOLDOWN).await;
    first.admit().unwrap().settle(Outcome::SUCCESS);
    assert_eq!(budget.out(), 0);
    answer_500(&second, 1);
    assert!(is_open(&second), "it asks the budget at each failure");
    second.reset();
    assert_eq!(budget.out(), 0);
    answer_500(&third, 5);
    assert_eq!(budget.out(), 1);
    third.force_closed();
    assert_eq!(budget.out(), 0);
    third.automatic();
    answer_500(&third, 5);
    drop(third);
    assert_eq!(budget.out(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_exceed_the_budget_and_a_failed_probe_then_closes() {
    let (budget, circuits) = set(2);
    circuits.iter().for_each(Circuit::force_open);
    assert!(circuits.iter().all(is_open) && budget.out() == 0);
    circuits.iter().for_each(Circuit::automatic);
    for circuit in &circuits {
        circuit.admit().unwrap().settle(Outcome::FAILURE);
    }
    assert!(is_open(&circuits[0]) && !is_open(&circuits[1]));
    assert_eq!(circuits[1].state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_recovers_is_reported_again_the_next_time_it_is_kept_closed() {
    let (_budget, circuits) = set(2);
    answer_500(&circuits[0], 5);
    for time in 1..=3 {
        answer_500(&circuits[1], 7);
        assert_eq!(circuits[1].snapshot().kept_closed, time);
        for _ in 0..3 {
            circuits[1].admit().unwrap().settle(Outcome::SUCCESS);
        }
    }
}
