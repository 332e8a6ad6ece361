//! A balance against a naive model: random updates, phases, failures, readiness and requests.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use http::Request;
use proptest::prelude::*;
use tower::Service;
use tower_resolve::{
    Balance, Endpoint, NoEndpoints, Phase, Topology, Update,
    policy::{LeastRequest, Maglev, PeakEwma, Policy, Random, RingHash, RoundRobin},
};

use crate::support::{endpoint, generation, leased, request, rig, settle};

#[derive(Clone, Debug)]
enum Event {
    /// A delta with one endpoint.
    Put(u8, u8, u64, u32),
    /// A delta without it.
    Remove(u8),
    /// All at once: the endpoints with these ids.
    Snapshot(Vec<u8>),
    /// A generation that is older than the known one.
    Old(Vec<u8>),
    /// Degraded, and recovered.
    Trouble,
    /// The readiness of an endpoint.
    Ready(u8, bool),
    /// The service of an endpoint ends, and is created again.
    Fail(u8),
    /// Requests, one after the other.
    Requests(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let id = || 0_u8..6;
    let event = prop_oneof![
        4 => (id(), 0_u8..6, 0_u64..3, 1_u32..4).prop_map(|(id, phase, epoch, weight)| Event::Put(id, phase, epoch, weight)),
        2 => id().prop_map(Event::Remove),
        1 => proptest::collection::vec(id(), 0..6).prop_map(Event::Snapshot),
        1 => proptest::collection::vec(id(), 0..6).prop_map(Event::Old),
        1 => Just(Event::Trouble),
        3 => (id(), any::<bool>()).prop_map(|(id, is_ready)| Event::Ready(id, is_ready)),
        1 => id().prop_map(Event::Fail),
        6 => (1_u8..8).prop_map(Event::Requests),
    ];
    proptest::collection::vec(event, 1..60)
}

/// The expected state of the balance.
#[derive(Default)]
struct Model {
    generation: u64,
    known: BTreeMap<String, (Endpoint, State)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Ready,
    Pending,
    Failed,
}

impl Model {
    /// The same instance keeps its state; another one starts ready, as a new probe does.
    fn put(&mut self, new: Endpoint) {
        let kept = self
            .known
            .get(new.id().as_str())
            .filter(|(old, _)| old.is_same_instance(&new))
            .map(|(_, state)| *state);
        self.known
            .insert(new.id().to_string(), (new, kept.unwrap_or(State::Ready)));
    }

    fn in_phase(&self, phase: Phase, state: State) -> Vec<String> {
        let is_it =
            |(endpoint, now): &(Endpoint, State)| endpoint.phase() == phase && *now == state;
        self.known
            .iter()
            .filter(|(_, known)| is_it(known))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn count(&self, phase: Phase) -> usize {
        self.known
            .values()
            .filter(|(endpoint, _)| endpoint.phase() == phase)
            .count()
    }
}

fn described(id: u8, phase: u8, epoch: u64, weight: u32) -> Endpoint {
    let phase = [
        Phase::Ready,
        Phase::Ready,
        Phase::Ready,
        Phase::Draining,
        Phase::Fenced,
        Phase::Starting,
    ][phase as usize];
    leased(&format!("e{id}"), epoch + 1)
        .with_phase(phase)
        .with_weight(NonZeroU32::new(weight).unwrap())
}

async fn run<P: Policy<Request<String>>>(policy: P, events: Vec<Event>) {
    let mut rig = rig(Balance::builder()
        .policy(policy)
        .max_wait(Duration::from_millis(500)));
    let mut model = Model {
        generation: 1,
        ..Model::default()
    };
    let empty: [Endpoint; 0] = [];
    rig.source
        .send(Update::Snapshot(Topology::new(generation(1), empty)))
        .unwrap();
    settle().await;
    for event in events {
        match event {
            Event::Put(id, phase, epoch, weight) => {
                let new = described(id, phase, epoch, weight);
                let (from, to) = (
                    generation(model.generation),
                    generation(model.generation + 1),
                );
                rig.source
                    .send(Update::Delta {
                        from,
                        to,
                        put: vec![Arc::new(new.clone())],
                        removed: vec![],
                    })
                    .unwrap();
                model.generation += 1;
                model.put(new);
            }
            Event::Remove(id) => {
                let (from, to) = (
                    generation(model.generation),
                    generation(model.generation + 1),
                );
                let id = format!("e{id}");
                rig.source
                    .send(Update::Delta {
                        from,
                        to,
                        put: vec![],
                        removed: vec![id.as_str().into()],
                    })
                    .unwrap();
                model.generation += 1;
                model.known.remove(&id);
            }
            Event::Snapshot(ids) => {
                model.generation += 1;
                let set: Vec<_> = ids.iter().map(|id| described(*id, 0, 0, 1)).collect();
                rig.source
                    .send(Update::Snapshot(Topology::new(
                        generation(model.generation),
                        set.clone(),
                    )))
                    .unwrap();
                model
                    .known
                    .retain(|id, _| set.iter().any(|new| new.id().as_str() == id));
                set.into_iter().for_each(|new| model.put(new));
            }
            Event::Old(ids) => {
                let set = ids.iter().map(|id| endpoint(&format!("e{id}")));
                rig.source
                    .send(Update::Snapshot(Topology::new(
                        generation(model.generation - 1),
                        set,
                    )))
                    .unwrap();
            }
            Event::Trouble => {
                rig.source.send(Update::degraded("down")).unwrap();
                settle().await;
                assert!(rig.balance.snapshot().degraded);
                rig.source
                    .send(Update::Progress(generation(model.generation)))
                    .unwrap();
            }
            Event::Ready(id, is_ready) => {
                let id = format!("e{id}");
                if let Some((_, state)) = model.known.get_mut(&id)
                    && *state != State::Failed
                {
                    settle().await;
                    let probe = rig.made.of(&id);
                    if is_ready {
                        probe.be_ready()
                    } else {
                        probe.be_pending()
                    }
                    *state = if is_ready {
                        State::Ready
                    } else {
                        State::Pending
                    };
                }
            }
            Event::Fail(id) => {
                let id = format!("e{id}");
                if let Some((_, state)) = model.known.get_mut(&id)
                    && *state == State::Ready
                {
                    settle().await;
                    rig.made.of(&id).be_failed();
                    *state = State::Failed;
                }
            }
            Event::Requests(count) => {
                settle().await;
                for _ in 0..count {
                    one_request(&mut rig, &mut model).await;
                }
            }
        }
    }
    settle().await;
    let now = rig.balance.snapshot();
    assert_eq!(
        now.generation,
        Some(generation(model.generation)),
        "no update is lost"
    );
    let actual: Vec<_> = now
        .endpoints
        .iter()
        .map(|endpoint| (*endpoint.endpoint).clone())
        .collect();
    let known: Vec<_> = model
        .known
        .values()
        .map(|(endpoint, _)| endpoint.clone())
        .collect();
    assert_eq!(actual, known, "no update is lost");
    assert!(now.endpoints.iter().all(|endpoint| endpoint.in_flight == 0));
}

async fn one_request<P: Policy<Request<String>>>(
    rig: &mut crate::support::Rig<P, tower_outcome::classify::AnyErr>,
    model: &mut Model,
) {
    let calls = |rig: &crate::support::Rig<P, _>| -> BTreeMap<String, usize> {
        (0..6)
            .map(|id| format!("e{id}"))
            .map(|id| (id.clone(), rig.made.all_calls(&id)))
            .collect()
    };
    let before = calls(rig);
    let answer = rig.balance.call(request()).await;
    let after = calls(rig);
    let served: Vec<_> = after
        .iter()
        .filter(|(id, calls)| **calls != before[*id])
        .map(|(id, _)| id.clone())
        .collect();
    let ready = model.in_phase(Phase::Ready, State::Ready);
    let draining = model.in_phase(Phase::Draining, State::Ready);
    let failed = [
        model.in_phase(Phase::Ready, State::Failed),
        model.in_phase(Phase::Draining, State::Failed),
    ]
    .concat();
    match answer {
        Ok(_) => {
            let [served] = &served[..] else {
                panic!("one endpoint serves one request: {served:?}")
            };
            // Services that ended may have been created again while this request waited.
            let may = if !ready.is_empty() { &ready } else { &draining };
            assert!(
                may.contains(served) || failed.contains(served),
                "{served}, not one of {may:?} or {failed:?}"
            );
            let (_, state) = model.known.get_mut(served).expect("known");
            *state = State::Ready;
        }
        Err(error) => {
            assert!(served.is_empty());
            assert!(
                ready.is_empty() && draining.is_empty(),
                "{error}, but {ready:?} and {draining:?} are ready"
            );
            let error: &NoEndpoints = error.downcast_ref().expect("no endpoints");
            assert_eq!(error.generation(), Some(generation(model.generation)));
            let actual = (
                error.known(),
                error.starting(),
                error.draining(),
                error.fenced(),
            );
            let count = |phase| model.count(phase);
            assert_eq!(
                actual,
                (
                    model.known.len(),
                    count(Phase::Starting),
                    count(Phase::Draining),
                    count(Phase::Fenced)
                )
            );
            assert_eq!(error.ready(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_balance_does_what_a_naive_one_would(events in events(), policy in 0..6) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let key = |_: &Request<String>| Some(fastrand::u64(..));
        runtime.block_on(async move {
            match policy {
                0 => run(LeastRequest, events).await,
                1 => run(RoundRobin::new(), events).await,
                2 => run(Random, events).await,
                3 => run(PeakEwma, events).await,
                4 => run(RingHash::new(key), events).await,
                _ => run(Maglev::new(key), events).await,
            }
        });
    }
}
