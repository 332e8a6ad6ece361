//! The caching resolver against a scripted source, in paused time.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::{sync::mpsc, time::sleep};
use tower_resolve::{
    CachedResolver, Resolve, StaticResolver, Topology, Update,
    diff::{Applied, Fold},
};

use crate::support::{Updates, generation, settle, snapshot, source};

/// A source that counts queries, and open streams.
#[derive(Clone, Default)]
struct Source {
    asked: Arc<AtomicUsize>,
    answers: Arc<Mutex<Vec<Update>>>,
    streams: Arc<Mutex<Vec<mpsc::UnboundedSender<Update>>>>,
}

impl Source {
    /// The answer to each query from now on.
    fn answer(&self, updates: impl IntoIterator<Item = Update>) {
        *self.answers.lock().unwrap() = updates.into_iter().collect();
    }

    /// Sends one more update on the latest stream.
    fn say(&self, update: Update) {
        self.streams
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .send(update)
            .unwrap();
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn followed(&self) -> usize {
        self.streams
            .lock()
            .unwrap()
            .iter()
            .filter(|stream| !stream.is_closed())
            .count()
    }
}

impl Resolve for Source {
    type Updates = Updates;

    fn resolve(&self, _: &str) -> Updates {
        self.asked.fetch_add(1, SeqCst);
        let (sender, updates) = source();
        for answer in self.answers.lock().unwrap().iter() {
            sender.send(answer.clone()).unwrap();
        }
        self.streams.lock().unwrap().push(sender);
        updates
    }
}

fn ids(update: Option<Update>) -> Vec<String> {
    let Some(Update::Snapshot(topology)) = update else {
        panic!("not a snapshot: {update:?}")
    };
    topology
        .iter()
        .map(|endpoint| endpoint.id().to_string())
        .collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn many_followers_of_a_name_cause_one_query() {
    let (source, cached) = cached([snapshot(1, &["a"])]);
    let mut followers: Vec<_> = (0..10).map(|_| cached.clone().resolve("name")).collect();
    for updates in &mut followers {
        assert_eq!(ids(updates.next().await), ["a"]);
    }
    assert_eq!(source.asked(), 1);
    source.say(snapshot(2, &["b"]));
    for updates in &mut followers {
        assert_eq!(ids(updates.next().await), ["b"]);
    }
    assert_eq!(source.asked(), 1);
}

fn cached(updates: impl IntoIterator<Item = Update>) -> (Source, CachedResolver<Source>) {
    let source = Source::default();
    source.answer(updates);
    (source.clone(), CachedResolver::new(source))
}

#[tokio::test(start_paused = true)]
async fn a_silent_source_is_queried_ahead_of_the_ttl_and_one_that_sends_updates_is_not() {
    let (source, cached) = cached([snapshot(1, &["a"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await), ["a"]);
    sleep(Duration::from_millis(3_500)).await;
    assert_eq!(source.asked(), 1);
    source.say(Update::Progress(generation(1)));
    sleep(Duration::from_millis(3_500)).await;
    assert_eq!(source.asked(), 1, "measured from the last sign of life");
    sleep(Duration::from_millis(1_000)).await;
    assert_eq!((source.asked(), source.followed()), (2, 1));
    assert!(
        updates.next().now_or_never().is_none(),
        "the same answer is no news"
    );
}

#[tokio::test(start_paused = true)]
async fn a_set_outlives_its_followers_and_is_used_again() {
    let (source, cached) = cached([snapshot(1, &["a"])]);
    assert_eq!(ids(cached.resolve("name").next().await), ["a"]);
    settle().await;
    assert_eq!(
        source.followed(),
        0,
        "without followers the source is left alone"
    );
    let known = cached.peek("name").unwrap();
    assert_eq!((known.topology.len(), known.degraded.is_none()), (1, true));
    sleep(seconds(3)).await;
    let mut updates = cached.resolve("name");
    assert_eq!(
        ids(updates.next().now_or_never().flatten()),
        ["a"],
        "at once"
    );
    assert_eq!(source.asked(), 1);
    drop(updates);
    sleep(seconds(60)).await;
    source.answer([snapshot(2, &["b"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await), ["a"], "the last good set first");
    assert_eq!(ids(updates.next().await), ["b"]);
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_never_goes_back() {
    let (source, cached) = cached([snapshot(5, &["new"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await), ["new"]);
    source.answer([snapshot(4, &["old"])]);
    sleep(seconds(6)).await;
    assert!(source.asked() >= 2);
    while let Some(Some(update)) = updates.next().now_or_never() {
        assert!(matches!(update, Update::Degraded(_)), "{update:?}");
    }
    assert_eq!(
        cached.peek("name").unwrap().topology.generation(),
        generation(5)
    );
}

#[tokio::test(start_paused = true)]
async fn a_degraded_source_removes_nothing_and_is_queried_again() {
    let (source, cached) = cached([snapshot(1, &["a"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await), ["a"]);
    source.answer([Update::degraded("down")]);
    source.say(Update::degraded("down"));
    assert!(matches!(updates.next().await, Some(Update::Degraded(_))));
    sleep(seconds(10)).await;
    assert!(
        (6..=9).contains(&source.asked()),
        "ahead of the ttl, then about once a second: {}",
        source.asked()
    );
    let known = cached.peek("name").unwrap();
    assert_eq!((known.topology.len(), known.degraded.is_some()), (1, true));
    assert!(known.age >= seconds(10));
    assert!(
        updates.next().now_or_never().is_none(),
        "more of the same is no news"
    );
    source.answer([snapshot(2, &["b"])]);
    assert!(
        matches!(updates.next().await, Some(Update::Progress(_))),
        "well again"
    );
    assert_eq!(ids(updates.next().await), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_empty_set_reaches_a_follower_of_a_degraded_source() {
    let (source, cached) = cached([snapshot(1, &["a"])]);
    let mut updates = cached.resolve("name");
    let mut fold = tower_resolve::diff::Fold::new();
    let _ = fold.apply(updates.next().await.unwrap());
    source.say(Update::degraded("down"));
    let _ = fold.apply(updates.next().await.unwrap());
    source.say(snapshot(2, &[]));
    settle().await;
    while let Some(update) = updates.next().now_or_never().flatten() {
        let _ = fold.apply(update);
    }
    assert_eq!(fold.topology().unwrap().len(), 1, "held back");
    source.say(snapshot(3, &[]));
    settle().await;
    while let Some(update) = updates.next().now_or_never().flatten() {
        let _ = fold.apply(update);
    }
    assert_eq!(fold.topology().unwrap().len(), 0, "confirmed");
}

#[tokio::test(start_paused = true)]
async fn a_bounded_staleness_ends_in_an_empty_set_and_comes_back() {
    let source = Source::default();
    source.answer([snapshot(1, &["a"])]);
    let cached = CachedResolver::new(source.clone()).max_stale(seconds(20));
    let mut updates = cached.resolve("name");
    let mut fold = tower_resolve::diff::Fold::new();
    let _ = fold.apply(updates.next().await.unwrap());
    source.answer([Update::degraded("down")]);
    source.say(Update::degraded("down"));
    let drain = |updates: &mut tower_resolve::CachedUpdates<Updates>,
                 fold: &mut tower_resolve::diff::Fold| {
        while let Some(update) = updates.next().now_or_never().flatten() {
            let _ = fold.apply(update);
        }
        fold.topology().unwrap().len()
    };
    sleep(seconds(19)).await;
    assert_eq!(drain(&mut updates, &mut fold), 1);
    sleep(seconds(2)).await;
    assert_eq!(
        (
            drain(&mut updates, &mut fold),
            cached.peek("name").is_none()
        ),
        (0, true)
    );
    source.answer([snapshot(1, &["a"])]);
    sleep(seconds(2)).await;
    assert_eq!(
        drain(&mut updates, &mut fold),
        1,
        "the same generation, and well again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist_is_queried_once_a_second() {
    let (source, cached) = cached([Update::DoesNotExist(generation(1))]);
    let mut updates = cached.resolve("name");
    assert!(matches!(
        updates.next().await,
        Some(Update::DoesNotExist(_))
    ));
    drop(updates);
    sleep(Duration::from_millis(500)).await;
    let mut updates = cached.resolve("name");
    assert!(
        matches!(
            updates.next().now_or_never(),
            Some(Some(Update::DoesNotExist(_)))
        ),
        "remembered"
    );
    assert_eq!(source.asked(), 1);
    source.answer([snapshot(2, &["a"])]);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(
        (source.asked(), ids(updates.next().await)),
        (2, vec!["a".to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn a_newer_generation_from_a_peer_starts_a_query_at_once() {
    let (source, cached) = cached([snapshot(5, &["a"])]);
    let mut updates = cached.resolve("name");
    updates.next().await;
    sleep(seconds(1)).await;
    assert!(!cached.invalidate_older_than("name", generation(5)));
    assert!(!cached.invalidate_older_than("unknown", generation(9)));
    source.answer([snapshot(9, &["b"])]);
    for _ in 0..50 {
        assert!(cached.invalidate_older_than("name", generation(9)));
    }
    settle().await;
    assert_eq!(
        (source.asked(), ids(updates.next().await)),
        (2, vec!["b".to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_reports_of_a_newer_generation_cause_fewer_and_fewer_queries() {
    let (source, cached) = cached([snapshot(5, &["a"])]);
    let mut updates = cached.resolve("name");
    updates.next().await;
    cached.invalidate_older_than("name", generation(9));
    for _ in 0..100 {
        sleep(Duration::from_millis(10)).await;
        cached.invalidate_older_than("name", generation(9));
    }
    assert!(
        (4..=6).contains(&source.asked()),
        "after 0, 0.1, 0.3, 0.7 s: {}",
        source.asked()
    );
    assert_eq!(
        cached.peek("name").unwrap().topology.len(),
        1,
        "and it stays in use meanwhile"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gap_starts_a_query_for_a_snapshot() {
    let (source, cached) = cached([snapshot(5, &["a"])]);
    let mut updates = cached.resolve("name");
    updates.next().await;
    source.answer([snapshot(8, &["b"])]);
    source.say(Update::Delta {
        from: generation(7),
        to: generation(8),
        put: vec![],
        removed: vec![],
    });
    assert_eq!(
        (ids(updates.next().await), source.asked()),
        (vec!["b".to_owned()], 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_its_updates_is_queried_again() {
    struct Ends(Arc<AtomicUsize>);
    impl Resolve for Ends {
        type Updates = futures_util::stream::Iter<std::option::IntoIter<Update>>;
        fn resolve(&self, _: &str) -> Self::Updates {
            let asked = self.0.fetch_add(1, SeqCst) as u64;
            futures_util::stream::iter(Some(snapshot(asked, &["a"])))
        }
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let _updates = CachedResolver::new(Ends(asked.clone())).resolve("name");
    sleep(seconds(60)).await;
    assert!(
        (13..=18).contains(&asked.load(SeqCst)),
        "about once a ttl, not in a loop: {}",
        asked.load(SeqCst)
    );
}

/// In real time: a busy loop would keep paused time from passing.
#[tokio::test]
async fn with_a_ttl_of_zero_a_source_is_not_queried_in_a_loop() {
    for answer in [snapshot(1, &["a"]), Update::degraded("busy")] {
        let source = Source::default();
        source.answer([answer]);
        let cached = CachedResolver::new(source.clone())
            .ttl(Duration::ZERO)
            .negative_ttl(Duration::ZERO);
        let start = tokio::time::Instant::now();
        let _updates = cached.resolve("name");
        sleep(Duration::from_millis(100)).await;
        let most = 2 + start.elapsed().as_millis() as usize / 7;
        assert!(source.asked() <= most, "{} of {most}", source.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_loss_right_after_trouble_is_queried_again_and_then_applied() {
    let (source, cached) = cached([snapshot(1, &["a", "b", "c", "d"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await).len(), 4);
    source.say(Update::degraded("restarting"));
    assert!(matches!(updates.next().await, Some(Update::Degraded(_))));
    source.answer([snapshot(2, &["a"])]);
    source.say(snapshot(2, &["a"]));
    settle().await;
    assert!(
        updates.next().now_or_never().is_none(),
        "three of four at once: held back"
    );
    assert_eq!(cached.peek("name").unwrap().topology.len(), 4);
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(source.asked(), 2, "not left open for a whole ttl");
    assert!(
        matches!(updates.next().await, Some(Update::Progress(_))),
        "well again"
    );
    assert_eq!(ids(updates.next().await), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_degraded_and_queried_again() {
    let (source, cached) = cached([]);
    let mut updates = cached.resolve("name");
    let Some(Update::Degraded(cause)) = updates.next().await else {
        panic!("nothing else is known")
    };
    assert_eq!(cause.to_string(), "the source has not answered in 10 s");
    assert_eq!(
        (source.asked(), source.followed()),
        (2, 2),
        "the first question may still be answered"
    );
    sleep(seconds(600)).await;
    assert!(
        (11..=13).contains(&source.asked()),
        "after 10, 20, 40 and then every 60 s: {}",
        source.asked()
    );
    assert_eq!(source.followed(), 2);
    while updates.next().now_or_never().is_some() {}
    source.say(snapshot(1, &["a"]));
    assert_eq!(ids(updates.next().await), ["a"]);
    assert_eq!(source.followed(), 1);
}

/// A source that takes this long to answer each query, and then sends no more.
struct Slow {
    takes: Duration,
    asked: Arc<AtomicUsize>,
}

impl Resolve for Slow {
    type Updates = stream::BoxStream<'static, Update>;

    fn resolve(&self, _: &str) -> Self::Updates {
        let asked = self.asked.fetch_add(1, SeqCst) as u64;
        let takes = self.takes;
        stream::once(async move {
            sleep(takes).await;
            snapshot(asked, &["a"])
        })
        .chain(stream::pending())
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_a_source_slower_than_the_time_limit_is_used() {
    for (takes, most_asked) in [(9, 60), (12, 45), (35, 20), (100, 12)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let cached = CachedResolver::new(Slow {
            takes: seconds(takes),
            asked: asked.clone(),
        });
        let mut updates = cached.resolve("name");
        sleep(seconds(takes + 1)).await;
        let known = cached.peek("name").expect("answered by the first question");
        assert!(known.degraded.is_none(), "{takes} s");
        let mut degraded = 0;
        for _ in 0..600 {
            sleep(seconds(1)).await;
            let known = cached.peek("name").unwrap();
            // Queried ahead of the TTL, and known for at most the time of an answer.
            assert!(
                known.age <= seconds(5 + 2 * takes),
                "{takes} s: {:?}",
                known.age
            );
            degraded += usize::from(known.degraded.is_some());
        }
        assert!(asked.load(SeqCst) <= most_asked, "{takes} s: {asked:?}");
        assert!(degraded == 0 || takes > 30, "{takes} s: {degraded} s");
        while updates.next().now_or_never().is_some() {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_counts_from_one_again_is_degraded_and_then_a_new_one() {
    let (source, cached) = cached([snapshot(100, &["old"])]);
    let cached = cached.max_stale(seconds(20));
    let mut updates = cached.resolve("name");
    let mut fold = Fold::new();
    let _ = fold.apply(updates.next().await.unwrap());
    source.answer([snapshot(1, &["new"])]);
    // Restored from a backup: all clients reconnect.
    source.say(Update::degraded("disconnected"));
    let mut restarted_after = None;
    for second in 0..60 {
        sleep(seconds(1)).await;
        while let Some(update) = updates.next().now_or_never().flatten() {
            assert!(
                !matches!(update, Update::DoesNotExist(_)),
                "the source answers, after {second} s"
            );
            let applied = fold.apply(update);
            assert!(!matches!(applied, Applied::Stale), "{applied:?}");
        }
        let known = fold.topology().unwrap();
        assert_eq!(known.len(), 1, "{second} s");
        if known.get("new").is_some() {
            restarted_after.get_or_insert(second);
        } else if second > 10 {
            let cause = fold.degraded().expect("it answers with less").to_string();
            assert!(cause.contains("generation 1 after"), "{cause}");
        }
    }
    let after = restarted_after.expect("twenty questions were answered");
    assert!((30..50).contains(&after), "{after} s");
    assert!(fold.degraded().is_none());
    source.answer([snapshot(2, &["newer"])]);
    source.say(snapshot(2, &["newer"]));
    settle().await;
    assert_eq!(ids(updates.next().await), ["newer"], "and it counts on");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_for_a_while_is_no_new_source() {
    let (source, cached) = cached([snapshot(100, &["new"])]);
    let mut updates = cached.resolve("name");
    assert_eq!(ids(updates.next().await), ["new"]);
    source.answer([snapshot(99, &["old"])]);
    sleep(seconds(25)).await;
    assert!(source.asked() > 10);
    source.answer([snapshot(100, &["new"])]);
    sleep(seconds(5)).await;
    source.answer([snapshot(99, &["old"])]);
    sleep(seconds(25)).await;
    let known = cached.peek("name").unwrap().topology;
    assert_eq!(known.generation(), generation(100));
    assert!(known.get("new").is_some());
}

#[test]
fn a_name_is_followed_from_another_runtime_when_the_first_ends() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let (source, cached) = cached([snapshot(1, &["a"])]);
    let (first, second) = (runtime(), runtime());
    let mut one = first.block_on(async { cached.resolve("name") });
    assert_eq!(ids(first.block_on(one.next())), ["a"]);
    let mut other = second.block_on(async { cached.resolve("name") });
    assert_eq!(ids(second.block_on(other.next())), ["a"]);

    drop(first);
    source.answer([snapshot(2, &["b"])]);
    let next = second.block_on(async { tokio::time::timeout(seconds(6), other.next()).await });
    assert_eq!(ids(next.expect("it is asked again")), ["b"]);
    second.block_on(async {
        // The task belongs to this runtime now: pushed updates arrive, and it ends with the last follower.
        source.say(snapshot(3, &["c"]));
        assert_eq!(ids(other.next().await), ["c"]);
        assert_eq!(source.followed(), 1);
        drop((one, other));
        settle().await;
        assert_eq!(source.followed(), 0);
    });
}

#[test]
fn a_runtime_that_ends_before_the_first_query_ends_no_follower() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let (_, cached) = cached([snapshot(1, &["a"])]);
    let (first, second) = (runtime(), runtime());
    let one = {
        let _entered = first.enter();
        cached.resolve("name")
    };
    let mut other = {
        let _entered = second.enter();
        cached.resolve("name")
    };
    drop(first);
    let next = second.block_on(async { tokio::time::timeout(seconds(6), other.next()).await });
    assert_eq!(ids(next.expect("it is asked")), ["a"]);
    drop(one);

    // If there is no runtime to continue on, the follower gets an error once.
    drop(second);
    let Some(Some(Update::Degraded(cause))) = other.next().now_or_never() else {
        panic!("no error")
    };
    assert!(cause.to_string().contains("runtime"), "{cause}");
    assert!(other.next().now_or_never().is_none());
}

#[test]
fn a_name_with_followers_keeps_its_entry_when_its_runtime_ends() {
    let first = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (_, cached) = cached([snapshot(1, &["a"])]);
    let cached = cached.max_names(NonZeroUsize::MIN);
    let _one = first.block_on(async { cached.resolve("one") });
    drop(first);
    let second = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    second.block_on(async {
        let _two = cached.resolve("two");
        assert!(format!("{cached:?}").contains("names: 1"));
        let mut one = cached.resolve("one");
        assert_eq!(ids(one.next().await), ["a"]);
        assert!(cached.peek("one").is_some() && cached.peek("two").is_none());
    });
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_queried_again_and_keeps_its_followers() {
    struct Panics(Arc<AtomicUsize>);
    impl Resolve for Panics {
        type Updates = std::pin::Pin<Box<dyn futures_util::Stream<Item = Update> + Send>>;
        fn resolve(&self, _: &str) -> Self::Updates {
            match self.0.fetch_add(1, SeqCst) {
                0 => futures_util::stream::poll_fn(|_| panic!("a source panics")).boxed(),
                1 => panic!("and once more, when asked"),
                _ => futures_util::stream::iter([snapshot(1, &["a"])])
                    .chain(futures_util::stream::pending())
                    .boxed(),
            }
        }
    }
    let cached = CachedResolver::new(Panics(Arc::default()));
    let mut updates = cached.resolve("name");
    assert!(matches!(updates.next().await, Some(Update::Degraded(_))));
    loop {
        match updates.next().await {
            Some(Update::Snapshot(topology)) => break assert_eq!(topology.len(), 1),
            Some(_) => {}
            None => panic!("the updates never end"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_name_is_evicted() {
    let source = Source::default();
    source.answer([snapshot(1, &["a"])]);
    let cached = CachedResolver::new(source.clone()).max_names(NonZeroUsize::new(2).unwrap());
    for name in ["one", "two", "one"] {
        cached.resolve(name).next().await;
        settle().await;
    }
    cached.resolve("three").next().await;
    settle().await;
    assert_eq!(
        ["one", "two", "three"].map(|name| cached.peek(name).is_some()),
        [true, false, true]
    );
    let _followed = [cached.resolve("one"), cached.resolve("three")];
    let mut direct = cached.resolve("four");
    assert_eq!(
        ids(direct.next().await),
        ["a"],
        "without room it is asked directly"
    );
    assert!(cached.peek("four").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_fixed_name_is_known_at_once_and_another_does_not_exist() {
    let cached =
        CachedResolver::new(StaticResolver::new().with("name", [crate::support::endpoint("a")]));
    assert_eq!(ids(cached.resolve("name").next().await), ["a"]);
    assert!(matches!(
        cached.resolve("other").next().await,
        Some(Update::DoesNotExist(_))
    ));
    let mut updates = cached.resolve("name");
    updates.next().await;
    sleep(seconds(30)).await;
    assert!(updates.next().now_or_never().is_none());
    assert!(cached.peek("name").unwrap().age <= seconds(5));
}

#[test]
fn topologies_are_cheap_to_clone_and_compare() {
    fn check<T: Clone + Send + Sync + 'static>() {}
    check::<Topology>();
    check::<Update>();
    check::<CachedResolver<StaticResolver>>();
}

#[test]
#[should_panic(expected = "timers are disabled")]
fn a_runtime_without_timers_is_recognized() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (_, cached) = cached([snapshot(1, &["a"])]);
    runtime.block_on(async { cached.resolve("name").next().await });
}
