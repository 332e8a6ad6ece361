//! Authentication on: rights, and tokens that are no good any more.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission};
use testkit::Etcd;
use tower_etcd::{Cluster, EtcdStore};
use tower_lease::{Fault, LeaseStore, Revision, Watch, WatchEvent};

use crate::support::{claim, granted, key, soon};

const LONG: Duration = Duration::from_secs(60);

/// A user `app` who may do anything under `app/`.
async fn guard(etcd: &Etcd) -> Client {
    let mut root = Client::connect(etcd.endpoints(), None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_add("root", "r", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("app").await.unwrap();
    root.role_grant_permission("app", Permission::read_write("app/").with_prefix())
        .await
        .unwrap();
    root.user_add("app", "a", None).await.unwrap();
    root.user_grant_role("app", "app").await.unwrap();
    root.auth_enable().await.unwrap();
    let options = ConnectOptions::new()
        .with_user("root", "r")
        .with_auto_token_refresh(true);
    Client::connect(etcd.endpoints(), Some(options))
        .await
        .unwrap()
}

fn store(etcd: &Etcd, password: &str) -> EtcdStore {
    let cluster = Cluster::builder(etcd.endpoints())
        .user("app", password)
        .request_timeout(LONG)
        .build()
        .unwrap();
    EtcdStore::new(&cluster).with_prefix("app/")
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn who_may_not_is_refused() {
    let etcd = Etcd::start().await;
    guard(&etcd).await;
    let ours = claim("a", LONG);
    granted(&store(&etcd, "a"), &ours).await;
    let refused =
        |error: tower_lease::StoreError| assert_eq!(error.fault(), Fault::Refused, "{error:?}");
    refused(
        store(&etcd, "wrong")
            .acquire(&claim("b", LONG))
            .await
            .unwrap_err(),
    );
    refused(
        store(&etcd, "a")
            .with_prefix("elsewhere/")
            .acquire(&claim("b", LONG))
            .await
            .unwrap_err(),
    );
    let nobody = EtcdStore::new(&crate::support::cluster(&etcd)).with_prefix("app/");
    refused(nobody.acquire(&claim("b", LONG)).await.unwrap_err());
    refused(
        nobody
            .watch(&key("a"), Revision::START)
            .next()
            .await
            .unwrap_err(),
    );
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_token_that_is_no_good_any_more_is_renewed_by_itself() {
    let mut etcd = Etcd::start().await;
    let mut root = guard(&etcd).await;
    let (store, ours) = (store(&etcd, "a"), claim("a", LONG));
    let grant = granted(&store, &ours).await;
    assert_eq!(store.renew(&ours).await.unwrap(), LONG);
    let mut watch = store.watch(&key("a"), grant.revision());
    assert!(matches!(
        soon(watch.next()).await.unwrap(),
        WatchEvent::Held(..)
    ));

    // Rights were changed: every token is of an old revision.
    root.role_add("another").await.unwrap();
    assert_eq!(store.renew(&ours).await.unwrap(), LONG);
    assert_eq!(
        store.inspect(&key("a")).await.unwrap().unwrap().claim(),
        ours.id()
    );
    assert!(matches!(
        soon(store.watch(&key("a"), grant.revision()).next())
            .await
            .unwrap(),
        WatchEvent::Held(..)
    ));

    // A restarted member knows none of its tokens.
    etcd.restart(0).await;
    let renewed = soon(async {
        loop {
            match store.renew(&ours).await {
                Ok(ttl) => return ttl,
                // Of the connection that the member took down with it.
                Err(error) => assert_eq!(error.fault(), Fault::Unknown, "{error:?}"),
            }
        }
    });
    assert_eq!(renewed.await, LONG);
    let seen = soon(async {
        loop {
            match store.watch(&key("a"), grant.revision()).next().await {
                Ok(event) => return event,
                Err(error) => assert_eq!(error.fault(), Fault::Unknown, "{error:?}"),
            }
        }
    });
    assert!(matches!(seen.await, WatchEvent::Held(..)));
    store.release(&ours).await.unwrap();
}
