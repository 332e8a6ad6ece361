//! The caching resolver with random histories: a registry that publishes, lags, hangs, fails and recovers, and followers
//! that come and go, in paused time.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream, stream::BoxStream};
use proptest::prelude::*;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_resolve::{
    CachedResolver, CachedUpdates, Generation, Resolve, SourceId, Topology, Update,
    diff::{Applied, Fold},
};

use crate::support::endpoint;

type Ids = BTreeSet<u8>;

/// The next event.
#[derive(Clone, Debug)]
enum Step {
    Publish(Ids),
    /// Restored from a backup: a new source, whose generations start over.
    Restore(Ids),
    Be(Mode),
    Pass(u64),
    Follow,
    Leave(usize),
    /// A peer shows a generation: the latest one, or one that does not exist.
    Peer {
        is_true: bool,
    },
}

/// How the registry answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Well,
    /// Correctly, with deltas if possible.
    Deltas,
    Down,
    /// From a replica that is this number of generations behind.
    Behind(usize),
    Silent,
    Ends,
    Panics,
}

#[derive(Clone)]
struct Registry(Arc<Mutex<World>>);

struct World {
    mode: Mode,
    history: Vec<(Generation, Ids)>,
    streams: Vec<mpsc::UnboundedSender<Update>>,
    asked: usize,
}

struct Follower {
    updates: CachedUpdates<BoxStream<'static, Update>>,
    fold: Fold,
}

fn topology((generation, ids): &(Generation, Ids)) -> Topology {
    Topology::new(*generation, ids.iter().map(|id| endpoint(&id.to_string())))
}

fn ids(topology: &Topology) -> Ids {
    topology
        .iter()
        .map(|endpoint| endpoint.id().as_str().parse().unwrap())
        .collect()
}

// === impl Registry ===

impl Registry {
    fn new() -> Self {
        let history = vec![(Generation::new(SourceId::unique(), 1), Ids::from([1, 2, 3]))];
        Self(Arc::new(Mutex::new(World {
            mode: Mode::Well,
            history,
            streams: Vec::new(),
            asked: 0,
        })))
    }

    fn with<T>(&self, see: impl FnOnce(&mut World) -> T) -> T {
        see(&mut self.0.lock().unwrap())
    }

    fn publish(&self, ids: Ids) {
        self.with(|world| {
            let before = world.latest().clone();
            let next = (before.0.next(), ids);
            let update = match world.mode {
                Mode::Deltas => Update::Delta {
                    from: before.0,
                    to: next.0,
                    put: next
                        .1
                        .difference(&before.1)
                        .map(|id| Arc::new(endpoint(&id.to_string())))
                        .collect(),
                    removed: before
                        .1
                        .difference(&next.1)
                        .map(|id| id.to_string().into())
                        .collect(),
                },
                _ => Update::Snapshot(topology(&next)),
            };
            world.history.push(next);
            if matches!(world.mode, Mode::Well | Mode::Deltas) {
                world.say(&update);
            }
        });
    }

    fn restore(&self, ids: Ids) {
        self.with(|world| {
            world
                .history
                .push((Generation::new(SourceId::unique(), 1), ids));
            // All clients have to reconnect.
            world.streams.clear();
        });
    }

    fn be(&self, mode: Mode) {
        self.with(|world| {
            if mode == Mode::Down {
                world.say(&Update::degraded("down"));
            }
            // Another replica, another connection; one that only hangs keeps its connections.
            if mode != Mode::Silent && mode != Mode::Down && world.mode != mode {
                world.streams.clear();
            }
            world.mode = mode;
        });
    }
}

impl World {
    fn latest(&self) -> &(Generation, Ids) {
        self.history.last().unwrap()
    }

    fn say(&mut self, update: &Update) {
        self.streams
            .retain(|stream| stream.send(update.clone()).is_ok());
    }

    /// Whether the cache returns what was published: a source that was behind for very long was taken for a new one, under
    /// an id that was not published.
    fn is_same(&self, published: &(Generation, Ids), cached_set: &(Generation, Ids)) -> bool {
        let sources = || self.history.iter().map(|(generation, _)| generation.source);
        let is_own = published.0.source == cached_set.0.source;
        published.1 == cached_set.1
            && published.0.value == cached_set.0.value
            && (is_own || sources().all(|source| source != cached_set.0.source))
    }

    /// The number of streams that are still read.
    fn followed(&self) -> usize {
        self.streams
            .iter()
            .filter(|stream| !stream.is_closed())
            .count()
    }
}

impl Resolve for Registry {
    type Updates = BoxStream<'static, Update>;

    fn resolve(&self, _: &str) -> Self::Updates {
        self.with(|world| {
            world.asked += 1;
            let (sender, receiver) = mpsc::unbounded_channel();
            let first = match world.mode {
                Mode::Well | Mode::Deltas => Some(Update::Snapshot(topology(world.latest()))),
                Mode::Behind(by) => {
                    let at = world.history.len().saturating_sub(1 + by);
                    Some(Update::Snapshot(topology(&world.history[at])))
                }
                Mode::Down => Some(Update::degraded("down")),
                Mode::Silent => None,
                Mode::Ends => {
                    return stream::iter([Update::Snapshot(topology(world.latest()))]).boxed();
                }
                Mode::Panics => {
                    return stream::poll_fn(|_| panic!("the registry panics, as configured"))
                        .boxed();
                }
            };
            world.streams.push(sender);
            // A stream that fails sends an update and stays open, as in the contract.
            let live = UnboundedReceiverStream::new(receiver);
            let broken = stream::iter([Update::degraded("disconnected")]).chain(stream::pending());
            stream::iter(first).chain(live).chain(broken).boxed()
        })
    }
}

// === impl Follower ===

impl Follower {
    /// Reads the pending updates. The known set is always one that was published, at its generation, and never goes back.
    fn hear(&mut self, registry: &Registry) {
        while let Some(Some(update)) = self.updates.next().now_or_never() {
            let before = self.fold.topology().map(Topology::generation);
            let applied = self.fold.apply(update);
            assert!(
                !matches!(applied, Applied::Stale | Applied::Gap | Applied::Held),
                "the cache has weighed it: {applied:?}"
            );
            let Some(known) = self.fold.topology() else {
                continue;
            };
            let now = known.generation();
            assert!(
                before
                    .and_then(|before| now.partial_cmp(&before))
                    .is_none_or(Ordering::is_ge),
                "back from {before:?} to {now:?}"
            );
            let is_published = registry.with(|world| {
                let mut history = world.history.iter();
                history.any(|published| world.is_same(published, &(now, ids(known))))
            });
            assert!(is_published, "nobody published {known:?}");
        }
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn run(steps: Vec<Step>) {
    let registry = Registry::new();
    let cached = CachedResolver::new(registry.clone());
    let began = Instant::now();
    let mut followers: Vec<Follower> = Vec::new();
    for step in steps {
        match step {
            Step::Publish(ids) => registry.publish(ids),
            Step::Restore(ids) => registry.restore(ids),
            Step::Be(mode) => registry.be(mode),
            Step::Pass(millis) => sleep(Duration::from_millis(millis)).await,
            Step::Follow => followers.push(Follower {
                updates: cached.resolve("name"),
                fold: Fold::new(),
            }),
            Step::Leave(which) if !followers.is_empty() => {
                drop(followers.remove(which % followers.len()))
            }
            Step::Leave(_) => {}
            Step::Peer { is_true } => {
                let latest = registry.with(|world| world.latest().0);
                let seen = if is_true {
                    latest
                } else {
                    Generation::new(latest.source, latest.value + 1_000)
                };
                cached.invalidate_older_than("name", seen);
            }
        }
        settle().await;
        followers
            .iter_mut()
            .for_each(|follower| follower.hear(&registry));
        let followed = registry.with(|world| world.followed());
        // One that delivers; one that has not answered, and the one after it.
        assert!(followed <= 3, "single flight: {followed}");
        assert!(
            !followers.is_empty() || followed == 0,
            "without followers there are no queries"
        );
    }
    // Ten per second at most for generations from peers, and one for the first follower.
    let asked = registry.with(|world| world.asked);
    let most = 50 + usize::try_from(began.elapsed().as_millis()).unwrap() / 90;
    assert!(asked <= most, "{asked} questions in {:?}", began.elapsed());
    converge(&registry, &cached, followers).await;
}

/// I5: with a healthy source, all followers have the latest set within the TTL; a query that hangs has its time limit, and a
/// large loss is confirmed once.
async fn converge(
    registry: &Registry,
    cached: &CachedResolver<Registry>,
    mut followers: Vec<Follower>,
) {
    let was_silent = registry.with(|world| world.mode == Mode::Silent);
    registry.be(Mode::Well);
    followers.push(Follower {
        updates: cached.resolve("name"),
        fold: Fold::new(),
    });
    let patience = if was_silent {
        Duration::from_secs(10)
    } else {
        Duration::ZERO
    };
    sleep(patience + Duration::from_millis(5_000 + 1_100)).await;
    settle().await;
    let latest = registry.with(|world| world.latest().clone());
    for follower in &mut followers {
        follower.hear(registry);
        let known = follower.fold.topology().expect("something is known");
        let cached_set = (known.generation(), ids(known));
        assert!(
            registry.with(|world| world.is_same(&latest, &cached_set)),
            "{cached_set:?}, not {latest:?}"
        );
        assert!(follower.fold.degraded().is_none());
    }
    let peeked = cached.peek("name").unwrap();
    let cached_set = (peeked.topology.generation(), ids(&peeked.topology));
    assert!(registry.with(|world| world.is_same(&latest, &cached_set)));
    drop(followers);
    settle().await;
    assert_eq!(registry.with(|world| world.followed()), 0);
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ids = || proptest::collection::btree_set(0_u8..12, 0..12);
    let mode = prop_oneof![
        3 => Just(Mode::Well),
        3 => Just(Mode::Deltas),
        3 => Just(Mode::Down),
        2 => (1_usize..4).prop_map(Mode::Behind),
        1 => Just(Mode::Silent),
        1 => Just(Mode::Ends),
        1 => Just(Mode::Panics),
    ];
    let step = prop_oneof![
        6 => ids().prop_map(Step::Publish),
        1 => ids().prop_map(Step::Restore),
        4 => mode.prop_map(Step::Be),
        4 => (1_u64..12_000).prop_map(Step::Pass),
        3 => (1_u64..300).prop_map(Step::Pass),
        3 => Just(Step::Follow),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => any::<bool>().prop_map(|is_true| Step::Peer { is_true }),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_follower_ever_goes_back_and_all_converge(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(steps));
    }
}
