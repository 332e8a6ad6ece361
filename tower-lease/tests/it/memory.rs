//! The in-memory store's watches: nothing lost in between, nothing kept without bound, expiry seen in time.

use std::time::Duration;

use tokio::time::{Instant, advance, sleep, timeout};
use tower_lease::{
    Acquired, Claim, ClaimId, DocumentStore, Holder, LeaseKey, LeaseStore, MemoryStore,
    MemoryWatch, Revision, Watch, WatchEvent,
};

use crate::common::{TTL, key, ms, settle, soon};

fn claim(key: &str, id: u128) -> Claim {
    Claim::new(
        LeaseKey::new(key).unwrap(),
        Holder::new("h"),
        ClaimId::from_u128(id),
        TTL,
    )
}

async fn acquire(store: &MemoryStore, claim: &Claim) -> u64 {
    match store.acquire(claim).await.unwrap() {
        Acquired::Granted(grant) => grant.token().epoch().get(),
        Acquired::Held(record) => panic!("held: {record:?}"),
    }
}

/// `+key` or `-key`, and the revision.
async fn told(watch: &mut MemoryWatch) -> (String, u64) {
    match soon(watch.next()).await.unwrap() {
        WatchEvent::Held(record, revision) => (format!("+{}", record.key()), revision.number()),
        WatchEvent::Vacant(key, revision) => (format!("-{key}"), revision.number()),
        event => (format!("{event:?}"), 0),
    }
}

async fn is_quiet(watch: &mut MemoryWatch) -> bool {
    timeout(Duration::ZERO, watch.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_prefix_watcher_continues_a_listing_without_a_gap() {
    let store = MemoryStore::new();
    acquire(&store, &claim("svc/a", 1)).await;
    let listing = store.list_prefix("svc/").await.unwrap();
    assert_eq!(
        (listing.records.len(), listing.revision),
        (1, Revision::new(1))
    );
    acquire(&store, &claim("other", 2)).await;
    acquire(&store, &claim("svc/b", 3)).await;
    store.release(&claim("svc/a", 1)).await.unwrap();
    let mut watch = store.watch_prefix("svc/", listing.revision);
    assert_eq!(told(&mut watch).await, ("+svc/b".into(), 3));
    assert_eq!(told(&mut watch).await, ("-svc/a".into(), 4));
    assert!(is_quiet(&mut watch).await);
    store
        .revoke(&LeaseKey::new("svc/b").unwrap(), None)
        .await
        .unwrap();
    assert_eq!(told(&mut watch).await, ("-svc/b".into(), 5));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_each_expiry_on_time_without_calls_to_the_store() {
    let store = MemoryStore::new();
    let mut prefix = store.watch_prefix("", Revision::START);
    let mut one = store.watch(&key(), Revision::START);
    let start = Instant::now();
    acquire(&store, &claim(key().as_str(), 1)).await;
    assert_eq!(told(&mut prefix).await.1, 1);
    assert_eq!(told(&mut one).await, ("+svc/echo/0".into(), 1));
    sleep(Duration::from_secs(4)).await;
    acquire(&store, &claim("later", 2)).await;
    store.renew(&claim(key().as_str(), 1)).await.unwrap();
    assert_eq!(told(&mut prefix).await.0, "+later");
    let (first, second) = (told(&mut prefix).await.0, told(&mut prefix).await.0);
    assert_eq!(
        (&*first, &*second),
        ("-later", "-svc/echo/0"),
        "both end at 14 s, in the order of their keys"
    );
    let elapsed = start.elapsed();
    assert!(
        (ms(14_000)..=ms(14_002)).contains(&elapsed),
        "the renewed one at its new end: {elapsed:?}"
    );
    assert_eq!(told(&mut one).await.0, "-svc/echo/0");
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_watcher_is_woken_by_a_shorter_lease_than_it_waits_for() {
    let store = MemoryStore::new();
    acquire(&store, &claim("long", 1)).await;
    let mut watch = store.watch_prefix("short", Revision::START);
    let sleeping = tokio::spawn(async move {
        (
            told(&mut watch).await.0,
            told(&mut watch).await.0,
            Instant::now(),
        )
    });
    settle().await;
    let start = Instant::now();
    let short = Claim::new(
        LeaseKey::new("short").unwrap(),
        Holder::new("h"),
        ClaimId::from_u128(2),
        ms(50),
    );
    acquire(&store, &short).await;
    let (held, vacant, at) = sleeping.await.unwrap();
    assert_eq!((&*held, &*vacant), ("+short", "-short"));
    assert!(at - start <= ms(52), "{:?}", at - start);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_gets_lagged_and_goes_on_from_there() {
    let store = MemoryStore::new();
    let mut prefix = store.watch_prefix("", Revision::START);
    let mut one = store.watch(&key(), Revision::START);
    assert_eq!(told(&mut one).await, ("-svc/echo/0".into(), 0));
    acquire(&store, &claim(key().as_str(), 9)).await;
    for id in 0..1_000 {
        acquire(&store, &claim("x", id)).await;
        store.release(&claim("x", id)).await.unwrap();
    }
    assert_eq!(prefix.next().await.unwrap(), WatchEvent::Lagged);
    assert!(
        is_quiet(&mut prefix).await,
        "what is not kept is not made up"
    );
    assert_eq!(
        told(&mut one).await.0,
        "+svc/echo/0",
        "of one key the present state is enough"
    );
    let listing = store.list_prefix("").await.unwrap();
    acquire(&store, &claim("x", 1)).await;
    assert_eq!(told(&mut prefix).await.0, "+x");
    assert_eq!(
        told(&mut store.watch_prefix("", listing.revision)).await.0,
        "+x"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_another_stores_future_gets_lagged() {
    let store = MemoryStore::new();
    let mut watch = store.watch_prefix("", Revision::new(7));
    assert_eq!(watch.next().await.unwrap(), WatchEvent::Lagged);
    acquire(&store, &claim("a", 1)).await;
    assert_eq!(told(&mut watch).await, ("+a".into(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_next_has_lost_nothing() {
    let store = MemoryStore::new();
    let mut watch = store.watch_prefix("", Revision::START);
    for id in 0..20 {
        assert!(is_quiet(&mut watch).await);
        acquire(&store, &claim(&format!("k{id}"), id)).await;
        assert_eq!(told(&mut watch).await.0, format!("+k{id}"));
    }
}

#[tokio::test(start_paused = true)]
async fn r19_a_key_that_expired_is_taken_with_a_higher_token() {
    let store = MemoryStore::new();
    let first = acquire(&store, &claim("a", 1)).await;
    advance(TTL).await;
    assert!(
        store
            .inspect(&LeaseKey::new("a").unwrap())
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        acquire(&store.clone(), &claim("a", 2)).await > first,
        "clones are one store"
    );
}
