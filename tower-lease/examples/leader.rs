//! Two replicas of a service, of which one serves at a time, and a ledger that accepts the leader's writes only.
//!
//! `cargo run -p tower-lease --example leader`. The store is in memory, so all of it runs in one process, and ends by
//! itself. Between machines, use a store such as `tower_etcd::EtcdStore`; nothing else changes.

use std::time::Duration;

use tower::{Layer, Service, ServiceExt, service_fn};
use tower_lease::{
    FencingToken, Holder, Lease, LeaseKey, LeaseLayer, MemoryStore, State, fence::Fenced,
};
use tower_outcome::BoxError;

/// A replica: its lease, and its service, which squares a number while the lease is held.
fn replica(
    store: &MemoryStore,
    name: &str,
) -> Result<
    (
        Lease,
        impl Service<u64, Response = u64, Error = BoxError> + Clone,
    ),
    BoxError,
> {
    let (lease, keeper) = Lease::builder(
        store.clone(),
        LeaseKey::new("ledger/leader")?,
        Holder::new(name),
    )
    .ttl(Duration::from_secs(5))
    .build()?;
    // The keeper acquires and renews the lease. Dropping it closes the gate.
    tokio::spawn(keeper.run());
    let square = service_fn(|n: u64| async move { Ok::<_, BoxError>(n * n) });
    Ok((lease.clone(), LeaseLayer::new(&lease).layer(square)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let store = MemoryStore::new();
    let (first, one) = replica(&store, "node-1")?;
    let old: FencingToken = first.held().await?;
    println!("node-1 leads with token {old}");
    let (second, two) = replica(&store, "node-2")?;

    println!("node-1 answers {}", one.clone().oneshot(7).await?);
    let error = two.clone().oneshot(7).await.unwrap_err();
    println!("node-2 rejects: {error}");

    // The resource keeps the highest token beside the value.
    let mut ledger = Fenced::new(old.clone(), Vec::new());
    ledger.write(&old)?.push("written by node-1");

    // Requests in flight end first, then the lease is released: the successor takes over within milliseconds.
    assert_eq!(first.step_down().await, State::Released);
    let new = second.held().await?;
    println!("node-2 leads with token {new}");
    println!("node-2 answers {}", two.oneshot(8).await?);
    ledger.write(&new)?.push("written by node-2");

    // A write of node-1 that was delayed on the network.
    let error = ledger.write(&old).unwrap_err();
    println!("the ledger rejects node-1: {error}");
    println!("the ledger has {:?}", *ledger);
    second.step_down().await;
    Ok(())
}
