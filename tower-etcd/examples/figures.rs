//! The figures of the README: how long until the next one holds, and what a renewal costs. Starts its own members.
//!
//! ```console
//! $ cargo run --release -p tower-etcd --example figures
//! ```
//!
//! Takes about three minutes.

use std::time::Duration;

use testkit::Etcd;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_etcd::{Cluster, EtcdStore};
use tower_lease::{
    Acquired, Claim, ClaimId, Holder, Lease, LeaseKey, LeaseStore, Watch, WatchEvent,
};

const LIMIT: Duration = Duration::from_secs(300);
const LONG: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() {
    timeout(LIMIT, run())
        .await
        .expect("it takes about three minutes");
}

async fn run() {
    for members in [1, 3] {
        let etcd = Etcd::cluster(members).await;
        println!("\n{members} member(s)");
        for ttl in [2, 5, 10] {
            silent_death(&etcd, Duration::from_secs(ttl), 60).await;
        }
        release_to_store(&etcd, 300).await;
        release_to_keeper(&etcd, 100).await;
        hand_over(&etcd, 300).await;
        renewals(&etcd, 5_000).await;
        shared_renewals(&etcd).await;
    }
}

/// From the last word of a holder until the keeper that waits holds it.
async fn silent_death(etcd: &Etcd, ttl: Duration, keys: usize) {
    let (holders, waiters) = (store(etcd), store(etcd));
    let mut rounds = JoinSet::new();
    for n in 0..keys {
        let (holders, waiters) = (holders.clone(), waiters.clone());
        rounds.spawn(async move {
            // etcd looks for what has expired every 500 ms: die in every part of that.
            sleep(
                Duration::from_millis(1_000) * u32::try_from(n).unwrap()
                    / u32::try_from(keys).unwrap(),
            )
            .await;
            let claim = claim(&format!("silent/{}/{n}", ttl.as_secs()), ttl);
            let died = Instant::now();
            acquire(&holders, &claim).await;
            let (lease, keeper) = Lease::builder(waiters, claim.key().clone(), Holder::new("next"))
                .ttl(ttl)
                .build()
                .expect("it fits");
            let keeper = tokio::spawn(keeper.run());
            lease.held().await.expect("the keeper runs");
            let took = died.elapsed();
            lease.step_down().await;
            let _ = keeper.await;
            took
        });
    }
    tell(
        &format!("silent death, TTL {} s: next keeper holds", ttl.as_secs()),
        rounds.join_all().await,
    );
}

/// From a release until somebody who watched the key holds it.
async fn release_to_store(etcd: &Etcd, rounds: usize) {
    let (ours, theirs) = (store(etcd), store(etcd));
    let mut took = Vec::new();
    for n in 0..rounds {
        let key = format!("released/{n}");
        let (first, second) = (claim(&key, LONG), claim(&key, LONG));
        acquire(&ours, &first).await;
        let mut watch = theirs.watch(second.key(), tower_lease::Revision::START);
        watch.next().await.expect("it is held");
        let start = Instant::now();
        let releasing = tokio::spawn({
            let ours = ours.clone();
            async move { ours.release(&first).await }
        });
        while !matches!(watch.next().await, Ok(WatchEvent::Vacant(..))) {}
        acquire(&theirs, &second).await;
        took.push(start.elapsed());
        releasing.await.expect("no panic").expect("released");
        theirs.release(&second).await.expect("released");
    }
    tell("clean release: next claim holds", took);
}

/// The same between keepers, which wait a random time of up to 50 ms before they try (R-17).
async fn release_to_keeper(etcd: &Etcd, rounds: usize) {
    let (ours, theirs) = (store(etcd), store(etcd));
    let mut took = Vec::new();
    for n in 0..rounds {
        let key = LeaseKey::new(&format!("kept/{n}")).expect("a key");
        let (first, keeper) = Lease::builder(ours.clone(), key.clone(), Holder::new("a"))
            .build()
            .expect("it fits");
        tokio::spawn(keeper.run());
        first.held().await.expect("the keeper runs");
        let (second, keeper) = Lease::builder(theirs.clone(), key, Holder::new("b"))
            .build()
            .expect("it fits");
        tokio::spawn(keeper.run());
        sleep(Duration::from_millis(50)).await;
        let start = Instant::now();
        tokio::join!(first.step_down(), async {
            second.held().await.expect("the keeper runs");
            took.push(start.elapsed());
        });
        second.step_down().await;
    }
    tell("clean release: next keeper holds", took);
}

async fn hand_over(etcd: &Etcd, rounds: usize) {
    let store = store(etcd);
    let mut held = claim("handed", LONG);
    acquire(&store, &held).await;
    let mut took = Vec::new();
    for _ in 0..rounds {
        let next = claim("handed", LONG);
        let start = Instant::now();
        store.transfer(&held, &next).await.expect("it is ours");
        took.push(start.elapsed());
        held = next;
    }
    tell("transfer", took);
}

async fn renewals(etcd: &Etcd, rounds: usize) {
    let (store, claim) = (store(etcd), claim("renewed", LONG));
    acquire(&store, &claim).await;
    store.renew(&claim).await.expect("it is ours");
    let (before, mut took) = (cpu(etcd), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        store.renew(&claim).await.expect("it is ours");
        took.push(start.elapsed());
    }
    let spent = (cpu(etcd) - before) / u32::try_from(rounds).expect("few");
    tell("renewal", took);
    println!(
        "  {:<42} {:.3} ms of the members' CPU",
        "",
        spent.as_secs_f64() * 1e3
    );
}

/// Ten keys on one etcd lease, each renewed four times a TTL, as keepers do.
async fn shared_renewals(etcd: &Etcd) {
    let (store, ttl) = (store(etcd).with_shared_session(), Duration::from_secs(2));
    let claims: Vec<_> = (0..10)
        .map(|n| claim(&format!("shared/{n}"), ttl))
        .collect();
    for claim in &claims {
        acquire(&store, claim).await;
    }
    let mut took = Vec::new();
    for _ in 0..8 {
        for claim in &claims {
            let start = Instant::now();
            store.renew(claim).await.expect("it is ours");
            took.push(start.elapsed());
            sleep(ttl / 4 / 10).await;
        }
    }
    tell("renewal, ten keys on a shared session", took);
}

fn cpu(etcd: &Etcd) -> Duration {
    (0..etcd.endpoints().len())
        .map(|member| etcd.cpu_time(member))
        .sum()
}

fn store(etcd: &Etcd) -> EtcdStore {
    let cluster = Cluster::builder(etcd.endpoints())
        .build()
        .expect("they are URLs");
    EtcdStore::new(&cluster).with_min_ttl(Duration::from_secs(2))
}

fn claim(key: &str, ttl: Duration) -> Claim {
    Claim::new(
        LeaseKey::new(key).expect("a key"),
        Holder::new("figures"),
        ClaimId::random(),
        ttl,
    )
}

async fn acquire(store: &EtcdStore, claim: &Claim) {
    let acquired = store.acquire(claim).await;
    assert!(matches!(acquired, Ok(Acquired::Granted(_))), "{acquired:?}");
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1_000].as_secs_f64() * 1e3;
    println!(
        "  {what:<42} p50 {:9.2} ms   p99 {:9.2} ms   max {:9.2} ms   n {}",
        at(500),
        at(990),
        at(1_000),
        took.len()
    );
}
