//! A cluster of real members, and stores over it.

use std::time::Duration;

use testkit::{Etcd, Proxy};
use tower_etcd::{Cluster, EtcdStore};
use tower_lease::{
    Acquired, Claim, ClaimId, Fault, Grant, Holder, LeaseKey, LeaseStore, StoreError,
};

/// The engine's own floor.
pub(crate) const TTL: Duration = Duration::from_secs(2);
/// Nothing that is waited for takes that long, on a loaded machine either.
pub(crate) const SOON: Duration = Duration::from_secs(60);

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn cluster(etcd: &Etcd) -> Cluster {
    Cluster::builder(etcd.endpoints()).build().unwrap()
}

pub(crate) fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::new(&cluster(etcd)).with_min_ttl(TTL)
}

/// For those who ask it themselves, and once: on a loaded machine an answer that is late is an answer.
pub(crate) fn patient(etcd: &Etcd) -> EtcdStore {
    let cluster = Cluster::builder(etcd.endpoints())
        .request_timeout(PATIENCE)
        .build()
        .unwrap();
    EtcdStore::new(&cluster).with_min_ttl(TTL)
}

/// A store that reaches the first member through a bad network.
pub(crate) fn behind(proxy: &Proxy) -> EtcdStore {
    let cluster = Cluster::builder([format!("http://{}", proxy.addr())])
        .build()
        .unwrap();
    EtcdStore::new(&cluster).with_min_ttl(TTL)
}

pub(crate) fn key(name: &str) -> LeaseKey {
    LeaseKey::new(name).unwrap()
}

pub(crate) fn claim(name: &str, ttl: Duration) -> Claim {
    Claim::new(key(name), Holder::new("test"), ClaimId::random(), ttl)
}

pub(crate) async fn granted(store: &EtcdStore, claim: &Claim) -> Grant {
    match known(|| store.acquire(claim)).await.unwrap() {
        Acquired::Granted(grant) => grant,
        Acquired::Held(record) => panic!("held: {record:?}"),
    }
}

/// As keepers do: what is not known is asked for again.
pub(crate) async fn known<T, F>(call: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    soon(async {
        loop {
            match call().await {
                Err(error) if error.fault() == Fault::Unknown => {}
                known => return known,
            }
        }
    })
    .await
}

pub(crate) async fn renewed(store: &EtcdStore, claim: &Claim) -> Duration {
    known(|| store.renew(claim)).await.unwrap()
}

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("soon")
}
