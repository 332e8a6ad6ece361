//! etcd as a source of endpoints, over real members.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use testkit::{Etcd, Proxy};
use tower_etcd::{Cluster, EtcdResolver, EtcdUpdates};
use tower_lease::{Claim, ClaimId, DocumentStore, Holder, LeaseStore, Swap};
use tower_resolve::{Endpoint, Generation, Resolve, Update};

use crate::support::{SOON, behind, claim, cluster, key, patient as store, soon};

/// Folds updates into what is known, and checks what every consumer relies on.
struct Reader {
    updates: EtcdUpdates,
    known: BTreeMap<String, Arc<Endpoint>>,
    at: Option<Generation>,
    sources: usize,
    snapshots: usize,
    degraded: usize,
}

impl Reader {
    fn new(cluster: &Cluster) -> Self {
        let updates = EtcdResolver::new(cluster).resolve("svc/echo/");
        Self {
            updates,
            known: BTreeMap::new(),
            at: None,
            sources: 0,
            snapshots: 0,
            degraded: 0,
        }
    }

    async fn read(&mut self) {
        let update = soon(self.updates.next()).await.expect("it never ends");
        let to = match update {
            Update::Snapshot(topology) => {
                self.snapshots += 1;
                self.known = topology
                    .iter()
                    .map(|one| (one.id().to_string(), one.clone()))
                    .collect();
                let to = topology.generation();
                // Another source begins anew, with all that it has.
                if self.at.is_none_or(|at| at.source != to.source) {
                    self.sources += 1;
                    self.at = None;
                }
                to
            }
            Update::Delta {
                from,
                to,
                put,
                removed,
            } => {
                assert_eq!(Some(from), self.at, "no gap");
                for id in removed {
                    self.known.remove(id.as_str());
                }
                self.known
                    .extend(put.into_iter().map(|one| (one.id().to_string(), one)));
                to
            }
            Update::Progress(to) => to,
            Update::Degraded(_) => {
                self.degraded += 1;
                return;
            }
            other => panic!("{other:?}"),
        };
        assert!(
            self.at.is_none_or(|at| at <= to),
            "I5: {:?} and then {to:?}",
            self.at
        );
        self.at = Some(to);
    }

    async fn until(&mut self, ids: &[&str]) {
        soon(async {
            while self.known.keys().map(String::as_str).collect::<Vec<_>>() != ids {
                self.read().await;
            }
        })
        .await;
    }
}

fn replica(name: &str) -> Claim {
    let holder = Holder::new(name).with_payload("127.0.0.1:8080").unwrap();
    Claim::new(
        key(&format!("svc/echo/{name}")),
        holder,
        ClaimId::random(),
        Duration::from_secs(60),
    )
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn replicas_come_with_their_epoch_and_go_with_their_lease() {
    let etcd = Etcd::start().await;
    let (store, mut reader) = (store(&etcd), Reader::new(&cluster(&etcd)));
    reader.until(&[]).await;
    reader.read().await;
    let (a, b) = (replica("a"), replica("b"));
    let grant = crate::support::granted(&store, &a).await;
    crate::support::granted(&store, &b).await;
    store
        .acquire(&claim("svc/other/x", Duration::from_secs(60)))
        .await
        .unwrap();
    reader.until(&["a", "b"]).await;
    assert_eq!(reader.known["a"].epoch(), Some(grant.token().epoch()));
    assert_eq!(reader.known["a"].addr().port(), 8080);
    store.release(&a).await.unwrap();
    reader.until(&["b"]).await;
    store
        .swap(&Swap::create(key("svc/echo/fixed"), "127.0.0.1:9090"))
        .await
        .unwrap();
    store
        .swap(&Swap::create(key("svc/echo/nonsense"), "nowhere"))
        .await
        .unwrap();
    reader.until(&["b", "fixed"]).await;
    assert_eq!(
        (reader.snapshots, reader.degraded),
        (1, 0),
        "one listing, then changes"
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn without_news_there_are_signs_of_life() {
    let etcd = Etcd::start().await;
    let mut reader = Reader::new(&cluster(&etcd));
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        reader.read().await;
    }
    assert_eq!((reader.snapshots, reader.degraded), (1, 0));
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_removal_that_was_compacted_away_is_not_lost() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.addr(0)).await.unwrap();
    let store = store(&etcd);
    let bad = Cluster::builder([format!("http://{}", proxy.addr())])
        .build()
        .unwrap();
    let mut reader = Reader::new(&bad);
    let (a, b) = (replica("a"), replica("b"));
    crate::support::granted(&store, &a).await;
    crate::support::granted(&store, &b).await;
    reader.until(&["a", "b"]).await;
    proxy.refuse(true);
    proxy.drop_connections();
    store.release(&a).await.unwrap();
    let now = store.list_prefix("").await.unwrap().revision;
    let mut client = etcd_client::Client::connect(etcd.endpoints(), None)
        .await
        .unwrap();
    client
        .compact(i64::try_from(now.number()).unwrap(), None)
        .await
        .unwrap();
    while reader.degraded == 0 {
        reader.read().await;
    }
    assert_eq!(reader.known.len(), 2, "what is known stays in use");
    proxy.refuse(false);
    reader.until(&["b"]).await;
    assert_eq!(reader.snapshots, 2, "listed again, once");
    assert_eq!(reader.sources, 1, "the same history");
}

/// Whatever the name in the endpoint stands for is another cluster now, whose revision is the higher one.
#[tokio::test]
#[ignore = "needs etcd"]
async fn another_cluster_at_the_same_endpoint_is_another_source() {
    let (old, new) = (Etcd::start().await, Etcd::start().await);
    let proxy = Proxy::start(old.addr(0)).await.unwrap();
    let cluster = Cluster::builder([format!("http://{}", proxy.addr())])
        .build()
        .unwrap();
    let mut reader = Reader::new(&cluster);
    crate::support::granted(&store(&old), &replica("a")).await;
    reader.until(&["a"]).await;

    let elsewhere = store(&new);
    crate::support::granted(&elsewhere, &replica("b")).await;
    for n in 0..10 {
        let write = Swap::create(key(&format!("other/{n}")), "");
        elsewhere.swap(&write).await.unwrap();
    }
    let there = elsewhere.list_prefix("").await.unwrap().revision.number();
    assert!(reader.at.is_some_and(|at| at.value < there));
    proxy.lead_to(new.addr(0));
    proxy.drop_connections();
    reader.until(&["b"]).await;
    assert_eq!((reader.sources, reader.snapshots), (2, 2));
    crate::support::granted(&elsewhere, &replica("c")).await;
    reader.until(&["b", "c"]).await;
    assert_eq!(reader.snapshots, 2, "and its changes follow");
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_member_that_dies_costs_no_change() {
    let mut etcd = Etcd::cluster(3).await;
    let (store, mut reader) = (store(&etcd), Reader::new(&cluster(&etcd)));
    crate::support::granted(&store, &replica("a")).await;
    reader.until(&["a"]).await;
    for member in 0..2 {
        etcd.kill(member);
        let name = format!("z{member}");
        let next = replica(&name);
        soon(async { while store.acquire(&next).await.is_err() {} }).await;
        let ids: Vec<_> = ["a", "z0", "z1"].into_iter().take(member + 2).collect();
        reader.until(&ids).await;
        etcd.restart(member).await;
    }
    assert_eq!(reader.snapshots, 1, "the watch goes on from where it was");
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_silent_member_is_noticed() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.addr(0)).await.unwrap();
    let bad = Cluster::builder([format!("http://{}", proxy.addr())])
        .build()
        .unwrap();
    let mut reader = Reader::new(&bad);
    reader.until(&[]).await;
    reader.read().await;
    proxy.cut(testkit::Way::ToClient);
    while reader.degraded == 0 {
        reader.read().await;
    }
    crate::support::granted(&store(&etcd), &replica("a")).await;
    proxy.heal();
    reader.until(&["a"]).await;
    let _ = behind(&proxy);
}
