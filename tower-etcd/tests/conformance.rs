//! The suite that every lease store keeps, over real members.

mod support;

use std::time::Duration;

use support::{TTL, cluster, store};
use testkit::Etcd;
use tower_etcd::EtcdStore;
use tower_lease::testing::Conformance;

const SLACK: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn three_members_keep_the_contract() {
    let etcd = Etcd::cluster(3).await;
    Conformance::new(store(&etcd), store(&etcd)).ttl(TTL).slack(SLACK).run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_prefix_changes_nothing() {
    let etcd = Etcd::start().await;
    let prefixed = || EtcdStore::new(&cluster(&etcd)).with_min_ttl(TTL).with_prefix("app/");
    Conformance::new(prefixed(), prefixed()).ttl(TTL).slack(SLACK).run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_shared_session_keeps_the_contract() {
    let etcd = Etcd::start().await;
    // A session is that of a store and its clones.
    let shared = store(&etcd).with_shared_session();
    Conformance::new(shared.clone(), shared).ttl(TTL).slack(SLACK).run().await;
}
