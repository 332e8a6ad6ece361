//! Tokens on the way out: whose they are, and when there is none.

use http::Request;
use testkit::Probe;
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt};
use tower_lease::{
    FencingToken, LeaseKey, LeaseLost, LeaseStore, MemoryStore, NotHeld, PropagateLayer,
};

use crate::common::{builder, held, key, ms, soon, spawn};

fn request() -> Request<String> {
    Request::new(String::new())
}

fn working_under(token: &FencingToken) -> Request<String> {
    let mut request = request();
    request.extensions_mut().insert(token.clone());
    request
}

async fn ask<S, Req>(service: &mut S, request: Req) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
{
    soon(async { service.ready().await?.call(request).await }).await
}

#[tokio::test(start_paused = true)]
async fn what_we_send_carries_the_token_we_act_under() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut client = PropagateLayer::new(&lease).layer(probe);
    let token = || {
        handle.last_head().unwrap().headers["x-lease-token"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    ask(&mut client, request()).await.unwrap();
    assert_eq!(token(), "svc/echo/0;1");
    ask(&mut client, working_under(&lease.token().unwrap()))
        .await
        .unwrap();
    assert_eq!(token(), "svc/echo/0;1");
    let forged = Request::builder()
        .header("x-lease-token", "svc/echo/0;99")
        .body(String::new())
        .unwrap();
    ask(&mut client, forged).await.unwrap();
    assert_eq!(token(), "svc/echo/0;1", "ours, and only ours");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_while_the_lease_is_not_held() {
    let (lease, keeper) = builder(&MemoryStore::new()).build().unwrap();
    let (probe, handle) = Probe::new();
    let mut client = PropagateLayer::new(&lease).layer(probe);
    assert!(
        ask(&mut client, request())
            .await
            .unwrap_err()
            .is::<NotHeld>()
    );
    assert_eq!(handle.calls(), 0);
    tokio::spawn(keeper.run());
    soon(lease.held()).await.unwrap();
    assert!(
        ask(&mut client, request()).await.is_ok(),
        "the very same client"
    );
    assert_eq!(
        lease.requests().refused,
        0,
        "that is no request of ours to refuse"
    );
}

/// the epoch in which the work began does not come back, and its work is not the next one's.
#[tokio::test(start_paused = true)]
async fn r26_work_of_a_lost_epoch_does_not_get_the_next_ones_token() {
    let store = MemoryStore::new();
    let (lease, _keeper) = spawn(builder(&store).reacquire(true));
    let old = soon(lease.held()).await.unwrap();
    store.revoke(&key(), None).await.unwrap();
    sleep(ms(2_000)).await;
    let new = soon(lease.held()).await.unwrap();
    assert!(new.epoch() > old.epoch());
    let (probe, handle) = Probe::new();
    let mut client = PropagateLayer::new(&lease).layer(probe);
    let error = ask(&mut client, working_under(&old)).await.unwrap_err();
    assert_eq!(
        error.downcast_ref::<LeaseLost>().unwrap().epoch(),
        old.epoch()
    );
    assert_eq!(handle.calls(), 0);
    assert!(ask(&mut client, working_under(&new)).await.is_ok());
}

/// A handler under one lease may write to a resource that another one guards.
#[tokio::test(start_paused = true)]
async fn r25_a_token_of_another_key_is_not_the_one_to_send() {
    let (_store, (lease, _keeper)) = held().await;
    let (probe, handle) = Probe::new();
    let mut client = PropagateLayer::new(&lease).layer(probe);
    let listener = FencingToken::new(LeaseKey::new("listener").unwrap(), 40.try_into().unwrap());
    ask(&mut client, working_under(&listener)).await.unwrap();
    assert_eq!(
        handle.last_head().unwrap().headers["x-lease-token"],
        "svc/echo/0;1"
    );
}

/// while it is given back, those inside finish their work, and may send it.
#[tokio::test(start_paused = true)]
async fn r29_work_that_ends_while_stepping_down_still_has_its_token() {
    let (_store, (lease, _keeper)) = held().await;
    let guard = lease.enter(ms(0)).unwrap();
    let stepping = tokio::spawn({
        let lease = lease.clone();
        async move { lease.step_down().await }
    });
    sleep(ms(100)).await;
    let (probe, _) = Probe::new();
    let mut client = PropagateLayer::new(&lease).layer(probe);
    assert!(
        ask(&mut client, working_under(&guard.token()))
            .await
            .is_ok()
    );
    drop(guard);
    soon(stepping).await.unwrap();
    assert!(
        ask(&mut client, request())
            .await
            .unwrap_err()
            .is::<NotHeld>()
    );
}
