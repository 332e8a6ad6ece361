//! Policies whose tables take long to build.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Request;
use tokio::time::{sleep, timeout};
use tower::Service;
use tower_resolve::{
    Balance, Phase, Stopped, Topology, Update,
    policy::{self, Candidates, LARGE_TABLE, Maglev, PickContext, Policy},
};

use crate::support::{Rig, endpoint, generation, request, rig, snapshot};

/// Picks in order, from a table whose build is blocked by the test.
struct Slow(Arc<Builds>);

#[derive(Default)]
struct Builds {
    is_held: Mutex<bool>,
    changed: Condvar,
    begun: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Builds {
    fn hold(self: &Arc<Self>) -> Held {
        *self.is_held.lock().unwrap() = true;
        Held(self.clone())
    }
}

/// Unblocks the builds when it is dropped, also by a test that fails.
struct Held(Arc<Builds>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.is_held.lock().unwrap() = false;
        self.0.changed.notify_all();
    }
}

impl<Req> Policy<Req> for Slow {
    type Table = Vec<String>;

    const KEEPS_UNREADY: bool = true;

    fn table<C: Candidates>(&self, candidates: &C) -> Vec<String> {
        let Builds {
            begun,
            running,
            most,
            ..
        } = &*self.0;
        begun.fetch_add(1, SeqCst);
        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        let held = self.0.is_held.lock().unwrap();
        drop(self.0.changed.wait_while(held, |held| *held).unwrap());
        running.fetch_sub(1, SeqCst);
        ids(candidates)
    }

    fn table_size<C: Candidates>(&self, _: &C) -> usize {
        LARGE_TABLE + 1
    }

    fn pick<C: Candidates>(
        &self,
        table: &Vec<String>,
        candidates: &C,
        context: &PickContext,
    ) -> usize {
        assert_eq!(*table, ids(candidates), "a table is of its candidates");
        context.step()
    }
}

fn ids<C: Candidates>(candidates: &C) -> Vec<String> {
    (0..candidates.count())
        .map(|index| candidates.endpoint(index).id().to_string())
        .collect()
}

async fn slow() -> (Arc<Builds>, Rig<Slow, tower_outcome::classify::AnyErr>) {
    let builds = Arc::new(Builds::default());
    let mut rig = rig(Balance::builder().policy(Slow(builds.clone())));
    rig.source.send(snapshot(1, &["a", "b"])).unwrap();
    rig.balance.call(request()).await.unwrap();
    until(|| rig.balance.snapshot().ready() == 2).await;
    (builds, rig)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waits = async {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), waits)
        .await
        .expect("in time");
}

#[tokio::test]
async fn the_driver_and_requests_continue_while_a_table_is_built() {
    let (builds, mut rig) = slow().await;
    let held = builds.hold();
    let mut generations = rig.balance.subscribe();
    for (value, ids) in [
        (2, &["a", "b", "c"][..]),
        (3, &["b", "c"]),
        (4, &["b", "c", "d"]),
        (5, &["b", "c"]),
    ] {
        rig.source.send(snapshot(value, ids)).unwrap();
        let is_there = |now: &Option<_>| *now == Some(generation(value));
        let followed = timeout(Duration::from_secs(20), generations.wait_for(is_there));
        followed.await.expect("the driver is not blocked").unwrap();
        rig.balance.call(request()).await.unwrap();
    }
    let a = rig.made.all_calls("a");
    for _ in 0..10 {
        rig.balance.call(request()).await.unwrap();
    }
    assert_eq!(rig.made.all_calls("a"), a, "it was removed");
    until(|| builds.begun.load(SeqCst) == 2).await;
    assert_eq!(rig.made.calls("c"), 0);

    rig.made.of("b").be_pending();
    let waits = tokio::spawn(rig.balance.call(request()));
    drop(held);
    waits.await.unwrap().unwrap();
    assert_eq!(rig.made.calls("c"), 1, "it has a place now");
    rig.made.of("b").be_ready();
    // One at a time, and one for all that changed meanwhile.
    until(|| builds.begun.load(SeqCst) == 3 && builds.running.load(SeqCst) == 0).await;
    rig.balance.call(request()).await.unwrap();
    assert_eq!(
        (builds.begun.load(SeqCst), builds.most.load(SeqCst)),
        (3, 1)
    );
}

#[tokio::test]
async fn an_endpoint_that_becomes_fenced_gets_no_request_while_the_table_without_it_is_built() {
    for phase in [Phase::Fenced, Phase::Starting] {
        let (builds, mut rig) = slow().await;
        let _held = builds.hold();
        let set = [endpoint("a").with_phase(phase), endpoint("b")];
        let topology = Topology::new(generation(2), set);
        let mut generations = rig.balance.subscribe();
        rig.source.send(Update::Snapshot(topology)).unwrap();
        let is_there = |now: &Option<_>| *now == Some(generation(2));
        generations.wait_for(is_there).await.unwrap();
        let before = rig.made.all_calls("a");
        for _ in 0..10 {
            rig.balance.call(request()).await.unwrap();
        }
        assert_eq!(rig.made.all_calls("a"), before, "{phase:?}");
    }
}

#[tokio::test]
async fn a_service_that_is_created_again_while_a_table_is_built_is_used() {
    let (builds, mut rig) = slow().await;
    let _held = builds.hold();
    rig.source.send(snapshot(2, &["a", "b", "c"])).unwrap();
    until(|| builds.begun.load(SeqCst) == 2).await;
    let first = rig.made.of("a");
    first.be_failed();
    rig.made.of("b").be_pending();
    for made in 2..4 {
        // It is the only one, so the request waits for its next service.
        rig.balance.call(request()).await.unwrap();
        assert_eq!(rig.made.count("a"), made);
        rig.made.of("a").be_failed();
    }
    assert_eq!(builds.begun.load(SeqCst), 2, "no other table for that");
}

#[tokio::test]
async fn a_policy_that_panics_over_its_table_stops_the_balance() {
    struct Panics;
    impl<Req> Policy<Req> for Panics {
        type Table = ();

        fn table<C: Candidates>(&self, _: &C) {
            panic!("made by the test")
        }

        fn table_size<C: Candidates>(&self, _: &C) -> usize {
            usize::MAX
        }

        fn pick<C: Candidates>(&self, (): &(), _: &C, _: &PickContext) -> usize {
            0
        }
    }
    let mut rig = rig(Balance::builder().policy(Panics));
    rig.source.send(snapshot(1, &["a"])).unwrap();
    assert!(rig.driver.await.unwrap_err().is_panic());
    let answer = rig.balance.call(request()).await;
    assert!(answer.unwrap_err().is::<Stopped>());
}

#[tokio::test(start_paused = true)]
async fn the_first_requests_wait_for_the_first_table() {
    let by_body = |request: &Request<String>| Some(policy::key(request.body().as_bytes()));
    let mut rig = rig(Balance::builder().policy(Maglev::new(by_body)));
    let ids: Vec<String> = (0..200).map(|id| format!("e{id}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    rig.source.send(snapshot(1, &ids)).unwrap();
    rig.balance.call(request()).await.unwrap();
    assert_eq!(rig.balance.snapshot().ready(), 200);
}
