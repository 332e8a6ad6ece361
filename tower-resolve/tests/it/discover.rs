//! The updates of a name under Tower's own balance.

use std::num::NonZeroU64;

use futures_util::{FutureExt, StreamExt};
use tower::{
    Service, ServiceExt, balance::p2c::Balance, discover::Change, load::Constant, service_fn,
};
use tower_resolve::{DiscoverEndpoints, Endpoint, Phase, Topology, Update};

use crate::support::{endpoint, generation, snapshot, source};

/// The reported changes: the id, and the epoch of the instance that a service was created for.
fn made(endpoint: &Endpoint) -> (String, u64) {
    (
        endpoint.id().to_string(),
        endpoint.epoch().map_or(0, NonZeroU64::get),
    )
}

fn drain<D>(discover: &mut D) -> Vec<String>
where
    D: futures_util::Stream<
            Item = Result<
                Change<tower_resolve::EndpointId, (String, u64)>,
                std::convert::Infallible,
            >,
        > + Unpin,
{
    let mut changes = Vec::new();
    while let Some(Some(Ok(change))) = discover.next().now_or_never() {
        changes.push(match change {
            Change::Insert(_, (id, epoch)) => format!("+{id}:{epoch}"),
            Change::Remove(id) => format!("-{id}"),
        });
    }
    changes
}

fn set(value: u64, endpoints: impl IntoIterator<Item = Endpoint>) -> Update {
    Update::Snapshot(Topology::new(generation(value), endpoints))
}

fn leased(id: &str, epoch: u64) -> Endpoint {
    endpoint(id).with_epoch(NonZeroU64::new(epoch))
}

#[tokio::test]
async fn insertions_come_first_and_unchanged_endpoints_are_not_reported() {
    let (sender, updates) = source();
    let mut discover = DiscoverEndpoints::new(updates, made);
    sender.send(snapshot(1, &["a", "b"])).unwrap();
    assert_eq!(drain(&mut discover), ["+a:0", "+b:0"]);
    sender.send(snapshot(2, &["b", "c"])).unwrap();
    assert_eq!(drain(&mut discover), ["+c:0", "-a"]);
    sender
        .send(set(3, [endpoint("b").with_zone("z"), leased("c", 7)]))
        .unwrap();
    assert_eq!(
        drain(&mut discover),
        ["+c:7"],
        "another instance replaces, another description does not"
    );
}

#[tokio::test]
async fn errors_and_old_updates_remove_nothing_and_an_empty_set_is_reported() {
    let (sender, updates) = source();
    let mut discover = DiscoverEndpoints::new(updates, made);
    for update in [
        snapshot(5, &["a"]),
        Update::degraded("down"),
        snapshot(4, &[]),
        snapshot(6, &[]),
    ] {
        sender.send(update).unwrap();
    }
    assert_eq!(drain(&mut discover), ["+a:0"]);
    sender.send(Update::Progress(generation(6))).unwrap();
    assert_eq!(drain(&mut discover), ["-a"], "confirmed");
}

#[tokio::test]
async fn draining_endpoints_are_used_while_there_is_no_other() {
    let (sender, updates) = source();
    let mut discover = DiscoverEndpoints::new(updates, made);
    let phases = |a, b| set_of(&[("a", a), ("b", b)]);
    let mut at = 0;
    let mut after = |sender: &tokio::sync::mpsc::UnboundedSender<Update>,
                     endpoints: Vec<Endpoint>| {
        at += 1;
        sender.send(set(at, endpoints)).unwrap();
    };
    after(&sender, phases(Phase::Ready, Phase::Starting));
    assert_eq!(drain(&mut discover), ["+a:0"]);
    after(&sender, phases(Phase::Draining, Phase::Starting));
    assert_eq!(drain(&mut discover), [""; 0], "it stays");
    after(&sender, phases(Phase::Draining, Phase::Ready));
    assert_eq!(drain(&mut discover), ["+b:0", "-a"]);
    after(&sender, phases(Phase::Draining, Phase::Fenced));
    assert_eq!(drain(&mut discover), ["+a:0", "-b"]);
}

fn set_of(phases: &[(&str, Phase)]) -> Vec<Endpoint> {
    phases
        .iter()
        .map(|(id, phase)| endpoint(id).with_phase(*phase))
        .collect()
}

#[tokio::test]
async fn towers_balance_follows_the_set() {
    let (sender, updates) = source();
    let discover = DiscoverEndpoints::new(updates, |endpoint: &Endpoint| {
        let id = endpoint.id().to_string();
        Constant::new(
            service_fn(move |(): ()| std::future::ready(Ok::<_, std::io::Error>(id.clone()))),
            1,
        )
    });
    let mut balance = Balance::new(discover);
    assert!(
        balance.ready().now_or_never().is_none(),
        "with an empty set it waits"
    );
    for (value, ids) in [(1, &["a"][..]), (2, &["b"]), (3, &["b", "c"])] {
        sender.send(snapshot(value, ids)).unwrap();
        for _ in 0..10 {
            let answer = balance.ready().await.unwrap().call(()).await.unwrap();
            assert!(ids.contains(&&*answer), "{answer} is not in {ids:?}");
        }
    }
}
