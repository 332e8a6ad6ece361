//! What the store does on real members, beside the suite.

use std::time::Duration;

use etcd_client::{Client, GetOptions};
use testkit::Etcd;
use tower_etcd::{Cluster, EtcdStore, Write};
use tower_lease::{
    Acquired, DocumentStore, Fault, LeaseStore, Revision, Swap, Swapped, Watch, WatchEvent,
};

use crate::support::{TTL, claim, cluster, granted, key, known, patient as store, renewed, soon};

const LONG: Duration = Duration::from_secs(60);
/// What is to end by itself, and not before a loaded machine has renewed it.
const SHORT: Duration = Duration::from_secs(5);

async fn raw(etcd: &Etcd) -> Client {
    Client::connect(etcd.endpoints(), None).await.unwrap()
}

async fn leases(etcd: &Etcd) -> usize {
    raw(etcd).await.leases().await.unwrap().leases().len()
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn r20_the_token_is_the_keys_mod_revision_and_renewals_do_not_touch_it() {
    let etcd = Etcd::start().await;
    let (store, ours) = (store(&etcd), claim("a", TTL));
    let grant = granted(&store, &ours).await;
    for _ in 0..3 {
        assert_eq!(renewed(&store, &ours).await, TTL);
    }
    let found = raw(&etcd).await.get("a", None).await.unwrap();
    assert_eq!(
        u64::try_from(found.kvs()[0].mod_revision()).unwrap(),
        grant.token().epoch().get()
    );
    assert_eq!(found.kvs()[0].version(), 1);
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn r2_what_is_too_short_is_raised_and_told() {
    let etcd = Etcd::start().await;
    let (store, ours) = (store(&etcd), claim("a", Duration::from_millis(300)));
    assert_eq!(granted(&store, &ours).await.ttl(), TTL, "asked for 0.3 s");
    assert_eq!(renewed(&store, &ours).await, TTL);
}

/// nothing is left behind, neither by those who held it nor by those who did not get it.
#[tokio::test]
#[ignore = "needs etcd"]
async fn no_etcd_lease_and_no_key_is_left_behind() {
    let etcd = Etcd::start().await;
    let (store, ours, theirs) = (store(&etcd), claim("a", LONG), claim("a", LONG));
    granted(&store, &ours).await;
    for _ in 0..5 {
        assert!(matches!(
            store.acquire(&theirs).await.unwrap(),
            Acquired::Held(_)
        ));
    }
    assert_eq!(leases(&etcd).await, 1, "waiting costs no leases");
    store.release(&ours).await.unwrap();
    store.release(&ours).await.unwrap();
    granted(&store, &theirs).await;
    store.transfer(&theirs, &ours).await.unwrap();
    assert_eq!(leases(&etcd).await, 1);
    store.release(&theirs).await.unwrap();
    assert!(
        store.inspect(&key("a")).await.unwrap().is_some(),
        "not theirs any more"
    );
    store.release(&ours).await.unwrap();
    let all = raw(&etcd)
        .await
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();
    assert_eq!((leases(&etcd).await, all.kvs().len()), (0, 0));
}

/// Who finds its own acquisition again counts from then: what is left of the first grant must not be less.
#[tokio::test]
#[ignore = "needs etcd"]
async fn r15_a_claim_that_finds_itself_has_its_whole_ttl() {
    let etcd = Etcd::start().await;
    let (store, ours, heir) = (store(&etcd), claim("a", LONG), claim("a", LONG));
    let mut raw = raw(&etcd).await;
    let mut left = async || {
        let found = raw.get("a", None).await.unwrap();
        raw.lease_time_to_live(found.kvs()[0].lease(), None)
            .await
            .unwrap()
            .ttl()
    };
    let first = granted(&store, &ours).await;
    tokio::time::sleep(TTL).await;
    assert!(left().await < 59);
    assert_eq!(granted(&store, &ours).await, first);
    assert!(left().await >= 59);
    let handed = store.transfer(&ours, &heir).await.unwrap();
    tokio::time::sleep(TTL).await;
    assert_eq!(granted(&store, &heir).await, handed);
    assert!(left().await >= 59);
}

/// Contenders at the same moment: one gets it, and the etcd leases that others made for nothing end by themselves.
#[tokio::test]
#[ignore = "needs etcd"]
async fn r17_of_many_at_once_one_gets_it() {
    let etcd = Etcd::cluster(3).await;
    let contenders = (0..20).map(|_| {
        let (store, ours) = (store(&etcd), claim("a", SHORT));
        tokio::spawn(async move {
            let granted = matches!(
                known(|| store.acquire(&ours)).await.unwrap(),
                Acquired::Granted(_)
            );
            granted.then_some((store, ours))
        })
    });
    let mut granted = Vec::new();
    for contender in contenders.collect::<Vec<_>>() {
        granted.extend(contender.await.unwrap());
    }
    let [(store, ours)] = &granted[..] else {
        panic!("{} were granted", granted.len())
    };
    soon(async {
        while leases(&etcd).await > 1 {
            renewed(store, ours).await;
            tokio::time::sleep(SHORT / 20).await;
        }
    })
    .await;
    assert_eq!(
        store.inspect(&key("a")).await.unwrap().unwrap().claim(),
        ours.id()
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn r7_a_keep_alive_alone_is_no_renewal() {
    let etcd = Etcd::start().await;
    let (store, ours) = (store(&etcd), claim("a", LONG));
    granted(&store, &ours).await;
    renewed(&store, &ours).await;
    // The etcd lease lives, and keep-alives succeed.
    raw(&etcd).await.delete("a", None).await.unwrap();
    assert_eq!(leases(&etcd).await, 1);
    assert_eq!(store.renew(&ours).await.unwrap_err().fault(), Fault::Lost);
}

/// It answers keep-alives for as long as it believes that it leads, and its quorum may be about to give the key away.
#[tokio::test]
#[ignore = "needs etcd"]
async fn r7_a_leader_that_is_cut_off_from_its_quorum_confirms_no_renewal() {
    let etcd = Etcd::cluster(3).await;
    let leader = etcd.leader().await;
    let cluster = Cluster::builder([format!("http://{}", etcd.addr(leader))])
        .build()
        .unwrap();
    let (store, ours) = (EtcdStore::new(&cluster), claim("a", LONG));
    granted(&store, &ours).await;
    renewed(&store, &ours).await;
    let others: Vec<_> = (0..3).filter(|member| *member != leader).collect();
    others.iter().for_each(|member| etcd.pause(*member));
    let renewal = store.renew(&ours).await;
    others.iter().for_each(|member| etcd.resume(*member));
    assert!(renewal.is_err(), "{renewal:?}");
    // With its quorum it does, once they agree on a leader again.
    soon(async { while store.renew(&ours).await.is_err() {} }).await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn an_own_watch_goes_on_over_a_compaction() {
    let etcd = Etcd::start().await;
    let (store, ours) = (store(&etcd), claim("a", LONG));
    let grant = granted(&store, &ours).await;
    let mut watch = store.watch(&key("a"), grant.revision());
    assert!(
        matches!(soon(watch.next()).await.unwrap(), WatchEvent::Held(record, _) if record.claim() == ours.id())
    );
    let mut raw = raw(&etcd).await;
    let at = raw
        .put("x", "", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    raw.compact(at, None).await.unwrap();
    store.revoke(&key("a"), None).await.unwrap();
    assert!(
        matches!(soon(watch.next()).await.unwrap(), WatchEvent::Vacant(_, at) if at > grant.revision())
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_prefix_watch_from_what_was_compacted_says_so_and_goes_on() {
    let etcd = Etcd::start().await;
    let store = store(&etcd);
    for n in 0..5 {
        granted(&store, &claim(&format!("k{n}"), LONG)).await;
    }
    let now = store.list_prefix("").await.unwrap().revision;
    raw(&etcd)
        .await
        .compact(i64::try_from(now.number()).unwrap(), None)
        .await
        .unwrap();
    let mut watch = store.watch_prefix("", Revision::new(2));
    assert_eq!(soon(watch.next()).await.unwrap(), WatchEvent::Lagged);
    granted(&store, &claim("later", LONG)).await;
    assert!(
        matches!(soon(watch.next()).await.unwrap(), WatchEvent::Held(record, _) if *record.key() == key("later"))
    );
    let mut foreign = store.watch_prefix("", Revision::new(1_000_000));
    assert_eq!(
        soon(foreign.next()).await.unwrap(),
        WatchEvent::Lagged,
        "of another history"
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_listing_is_whole_though_it_takes_many_pages() {
    let etcd = Etcd::start().await;
    let store = store(&etcd);
    let mut raw = raw(&etcd).await;
    for n in 0..2_500 {
        raw.put(format!("many/{n:04}"), "x", None).await.unwrap();
    }
    for n in 0..8 {
        let long = Swap::create(key(&format!("big/{n}")), vec![b'x'; 1024 * 1024]);
        assert!(matches!(store.swap(&long).await.unwrap(), Swapped::Done(_)));
    }
    let many = store.list_prefix("many/").await.unwrap();
    assert_eq!(many.documents.len(), 2_500);
    assert!(
        many.documents
            .is_sorted_by_key(|document| document.key().clone())
    );
    assert_eq!(
        store.list_prefix("big/").await.unwrap().documents.len(),
        8,
        "more than one message takes"
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_document_must_not_look_like_a_record() {
    let etcd = Etcd::start().await;
    let forged = Swap::create(key("a"), "tower-lease/1 0 0 own 0\n\n");
    assert_eq!(
        store(&etcd).swap(&forged).await.unwrap_err().fault(),
        Fault::Refused
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn r21_guarded_writes_are_all_or_nothing() {
    let etcd = Etcd::start().await;
    let (store, ours, theirs) = (store(&etcd), claim("leader", LONG), claim("leader", LONG));
    let old = granted(&store, &ours).await;
    let (a, b) = (key("topology/a"), key("topology/b"));
    store
        .write(
            old.token(),
            [Write::put(a.clone(), "1"), Write::put(b.clone(), "1")],
        )
        .await
        .unwrap();
    let refused = store
        .write(
            old.token(),
            [Write::put(a.clone(), "x"), Write::delete(key("leader"))],
        )
        .await;
    assert_eq!(
        refused.unwrap_err().fault(),
        Fault::Refused,
        "a lease's key is no document"
    );
    let new = store.transfer(&ours, &theirs).await.unwrap();
    let late = store
        .write(
            old.token(),
            [Write::put(a.clone(), "2"), Write::delete(b.clone())],
        )
        .await;
    assert_eq!(late.unwrap_err().fault(), Fault::Lost);
    let listed = store.list_prefix("topology/").await.unwrap();
    assert_eq!(
        listed
            .documents
            .iter()
            .map(|one| &one.value()[..])
            .collect::<Vec<_>>(),
        [b"1", b"1"],
        "nothing was"
    );
    let at = store
        .write(
            new.token(),
            [Write::put(a.clone(), "2"), Write::delete(b.clone())],
        )
        .await
        .unwrap();
    let written = store.read(&a).await.unwrap().unwrap();
    assert_eq!((written.revision(), &written.value()[..]), (at, &b"2"[..]));
    assert_eq!(store.read(&b).await.unwrap(), None);
    let many = (0..100).map(|n| Write::put(key(&format!("k{n}")), ""));
    assert_eq!(
        store.write(new.token(), many).await.unwrap_err().fault(),
        Fault::Refused
    );
    let most = (0..99).map(|n| Write::put(key(&format!("k{n}")), ""));
    store.write(new.token(), most).await.unwrap();
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_shared_session_is_one_etcd_lease_and_ends_with_its_last_key() {
    let etcd = Etcd::start().await;
    let store = store(&etcd).with_shared_session();
    let claims: Vec<_> = (0..5).map(|n| claim(&format!("k{n}"), SHORT)).collect();
    for claim in &claims {
        granted(&store, claim).await;
    }
    assert_eq!(leases(&etcd).await, 1);
    let first = granted(&store, &claims[0]).await;
    let bound = Swap::create(key("bound"), "x").bound_to(first.token());
    assert!(matches!(
        store.swap(&bound).await.unwrap(),
        Swapped::Done(_)
    ));
    // One is not renewed any more; the others' renewals must not keep it, nor what is bound to it.
    let start = tokio::time::Instant::now();
    while store.inspect(claims[0].key()).await.unwrap().is_some() {
        assert!(
            start.elapsed() < crate::support::SOON,
            "a claim that nobody renews goes"
        );
        for claim in &claims[1..] {
            let ttl = renewed(&store, claim).await;
            assert!(ttl <= SHORT && ttl >= SHORT * 3 / 4, "{ttl:?}");
        }
        tokio::time::sleep(SHORT / 10).await;
    }
    soon(async {
        while store.read(&key("bound")).await.unwrap().is_some() {
            renewed(&store, &claims[1]).await;
            tokio::time::sleep(SHORT / 10).await;
        }
    })
    .await;
    assert_eq!(
        known(|| store.renew(&claims[0])).await.unwrap_err().fault(),
        Fault::Lost
    );
    for claim in claims[1..].iter().chain(&claims[..1]) {
        known(|| store.release(claim)).await.unwrap();
    }
    // At once; or by itself, if the last request of the last one had no answer.
    soon(async { while leases(&etcd).await > 0 {} }).await;
    granted(&store, &claim("again", SHORT)).await;
}

/// A clone under another prefix is on the same session, and whoever renews lets go of what either has left behind.
#[tokio::test]
#[ignore = "needs etcd"]
async fn a_shared_session_lets_go_of_a_key_under_the_prefix_it_was_acquired_under() {
    let etcd = Etcd::start().await;
    let store = store(&etcd).with_shared_session();
    let other = store.clone().with_prefix("other/");
    let (gone, kept) = (claim("a", SHORT), claim("b", SHORT));
    granted(&other, &gone).await;
    granted(&store, &kept).await;
    assert_eq!(leases(&etcd).await, 1);
    soon(async {
        while other.inspect(gone.key()).await.unwrap().is_some() {
            renewed(&store, &kept).await;
            tokio::time::sleep(SHORT / 10).await;
        }
    })
    .await;
    assert!(store.inspect(kept.key()).await.unwrap().is_some());
}

/// An epoch may last for years, and bind a document for every client that comes and goes.
#[tokio::test]
#[ignore = "needs etcd"]
async fn a_shared_session_forgets_what_its_holder_deleted() {
    let etcd = Etcd::start().await;
    let store = store(&etcd).with_shared_session();
    let grant = granted(&store, &claim("a", LONG)).await;
    let mut raw = raw(&etcd).await;
    let mut keys = async || {
        let all = raw
            .get("", Some(GetOptions::new().with_all_keys().with_keys_only()))
            .await
            .unwrap();
        all.kvs()
            .iter()
            .map(|found| found.key_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    store
        .swap(&Swap::create(key("doc"), "x").bound_to(grant.token()))
        .await
        .unwrap();
    assert_eq!(keys().await, ["a", "a;bound;doc", "a;held", "doc"]);
    let seen = store.read(&key("doc")).await.unwrap().unwrap();
    store
        .swap(&Swap::delete(&seen).guarded_by(grant.token()))
        .await
        .unwrap();
    assert_eq!(keys().await, ["a", "a;held"]);
}

#[tokio::test]
async fn r15_a_cluster_that_is_not_there_was_told_nothing() {
    // A port that nobody listens on any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let cluster = Cluster::builder([format!("http://{gone}")])
        .build()
        .unwrap();
    let store = EtcdStore::new(&cluster);
    let ours = claim("a", LONG);
    assert_eq!(
        store.acquire(&ours).await.unwrap_err().fault(),
        Fault::NotSent
    );
    assert_eq!(
        store.renew(&ours).await.unwrap_err().fault(),
        Fault::NotSent
    );
    assert!(
        store
            .watch(&key("a"), Revision::START)
            .next()
            .await
            .is_err()
    );
}

/// the members that are gone cost nothing but a look at them.
#[tokio::test]
#[ignore = "needs etcd"]
async fn r10_a_member_that_is_not_there_is_passed_over() {
    let etcd = Etcd::start().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for _ in 0..8 {
        let endpoints = [vec![format!("http://{gone}")], etcd.endpoints()].concat();
        let cluster = Cluster::builder(endpoints).build().unwrap();
        let ours = claim(&format!("k{}", fastrand::u64(..)), LONG);
        granted(&EtcdStore::new(&cluster), &ours).await;
    }
    let _ = cluster(&etcd);
}
