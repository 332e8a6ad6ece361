//! The suite that every lease store keeps, over real members.

use std::time::Duration;

use testkit::Etcd;
use tower_lease::testing::Conformance;

use crate::support::patient;

/// Long enough for a loaded machine to get from one step to the next.
const TTL: Duration = Duration::from_secs(4);
const SLACK: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn three_members_keep_the_contract() {
    let etcd = Etcd::cluster(3).await;
    Conformance::new(patient(&etcd), patient(&etcd))
        .ttl(TTL)
        .slack(SLACK)
        .run_with_documents()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_prefix_changes_nothing() {
    let etcd = Etcd::start().await;
    let prefixed = || patient(&etcd).with_prefix("app/");
    Conformance::new(prefixed(), prefixed())
        .ttl(TTL)
        .slack(SLACK)
        .run_with_documents()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_shared_session_keeps_the_contract() {
    let etcd = Etcd::start().await;
    // A session is that of a store and its clones.
    let shared = patient(&etcd).with_shared_session();
    Conformance::new(shared.clone(), shared)
        .ttl(TTL)
        .slack(SLACK)
        .run_with_documents()
        .await;
}
