//! A cluster of real members, and stores over it.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::time::Duration;

use testkit::{Etcd, Proxy};
use tower_etcd::{Cluster, EtcdStore};
use tower_lease::{Acquired, Claim, ClaimId, Grant, Holder, LeaseKey, LeaseStore};

/// The engine's own floor.
pub(crate) const TTL: Duration = Duration::from_secs(2);
/// Nothing that is waited for takes that long, on a loaded machine either.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn cluster(etcd: &Etcd) -> Cluster {
    Cluster::builder(etcd.endpoints()).build().unwrap()
}

pub(crate) fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::new(&cluster(etcd)).with_min_ttl(TTL)
}

/// A store that reaches the first member through a bad network.
pub(crate) fn behind(proxy: &Proxy) -> EtcdStore {
    let cluster = Cluster::builder([format!("http://{}", proxy.addr())]).build().unwrap();
    EtcdStore::new(&cluster).with_min_ttl(TTL)
}

pub(crate) fn key(name: &str) -> LeaseKey {
    LeaseKey::new(name).unwrap()
}

pub(crate) fn claim(name: &str, ttl: Duration) -> Claim {
    Claim::new(key(name), Holder::new("test"), ClaimId::random(), ttl)
}

pub(crate) async fn granted(store: &EtcdStore, claim: &Claim) -> Grant {
    match store.acquire(claim).await.unwrap() {
        Acquired::Granted(grant) => grant,
        Acquired::Held(record) => panic!("held: {record:?}"),
    }
}

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("soon")
}
