//! DNS, against a scripted server in this process, and against dnsmasq.

mod dnsmasq;
mod server;

use std::time::Duration;

use futures_util::StreamExt;
use hickory_resolver::proto::op::ResponseCode;
use tokio::time::{sleep, timeout};
use tower_resolve::{
    CachedResolver, DnsError, DnsResolver, DnsUpdates, Generation, Resolve, Topology, Update,
    diff::Fold,
};

use self::server::{Answer, Server};

/// Follows a name and applies its updates, checking that it never goes back.
struct Follower {
    updates: DnsUpdates,
    fold: Fold,
}

impl Follower {
    fn new(resolver: &DnsResolver, name: &str) -> Self {
        Self {
            updates: resolver.resolve(name),
            fold: Fold::new(),
        }
    }

    async fn hear(&mut self, until: impl Fn(&Fold) -> bool) {
        let hearing = async {
            while !until(&self.fold) {
                let before = self.generation();
                let _ = self
                    .fold
                    .apply(self.updates.next().await.expect("updates never end"));
                assert!(
                    before.is_none_or(|before| Some(before) <= self.generation()),
                    "never back"
                );
            }
        };
        let heard = timeout(Duration::from_secs(30), hearing).await;
        assert!(heard.is_ok(), "in bounded time; known is {:?}", self.fold);
    }

    /// Reads updates until the endpoints are these, in order of their ids.
    async fn hear_ids(&mut self, ids: &[&str]) {
        self.hear(|fold| {
            let known = fold.topology().filter(|known| known.exists());
            known.is_some_and(|known| {
                known
                    .iter()
                    .map(|endpoint| endpoint.id().as_str())
                    .eq(ids.iter().copied())
            })
        })
        .await;
    }

    async fn hear_missing(&mut self) {
        self.hear(|fold| fold.topology().is_some_and(|known| !known.exists()))
            .await;
    }

    fn generation(&self) -> Option<Generation> {
        self.fold.topology().map(Topology::generation)
    }
}

fn quick(server: &Server) -> DnsResolver {
    DnsResolver::servers([server.addr()])
        .unwrap()
        .min_ttl(Duration::from_millis(20))
}

#[tokio::test]
async fn changes_of_records_are_followed_and_their_order_is_ignored() {
    let server = Server::start().await;
    server.a("echo.test.", 0, &["192.0.2.1", "192.0.2.2"]);
    let mut follower = Follower::new(&quick(&server), "echo.test.:80");
    follower.hear_ids(&["192.0.2.1:80", "192.0.2.2:80"]).await;
    let first = follower.generation();
    server.a("echo.test.", 0, &["192.0.2.2", "192.0.2.1"]);
    let asked = server.asked();
    while server.asked() < asked + 6 {
        follower.hear_ids(&["192.0.2.1:80", "192.0.2.2:80"]).await;
        let _ = follower.updates.next().await;
    }
    assert_eq!(follower.generation(), first);
    server.a("echo.test.", 0, &["192.0.2.3"]);
    server.aaaa("echo.test.", 0, &["2001:db8::1"]);
    follower
        .hear_ids(&["192.0.2.3:80", "[2001:db8::1]:80"])
        .await;
    assert!(follower.generation() > first);
}

#[tokio::test]
async fn a_missing_name_no_addresses_and_an_error_are_distinguished() {
    let server = Server::start().await;
    let mut follower = Follower::new(&quick(&server), "echo.test.:80");
    follower.hear_missing().await;
    server.a("echo.test.", 0, &["192.0.2.1"]);
    follower.hear_ids(&["192.0.2.1:80"]).await;
    server.set("echo.test.", Answer::Code(ResponseCode::ServFail));
    follower.hear(|fold| fold.degraded().is_some()).await;
    let cause = follower.fold.degraded().unwrap();
    assert!(cause.downcast_ref::<DnsError>().is_some(), "{cause}");
    assert_eq!(cause.to_string(), "no answer from DNS for `echo.test.`");
    assert_eq!(
        follower.fold.topology().unwrap().len(),
        1,
        "an error removes nothing"
    );
    server.set("echo.test.", Answer::Code(ResponseCode::Refused));
    follower.hear(|fold| fold.degraded().is_some()).await;
    server.a("echo.test.", 0, &["192.0.2.2"]);
    follower.hear_ids(&["192.0.2.2:80"]).await;
    server.set("echo.test.", Answer::Empty);
    follower
        .hear(|fold| {
            fold.topology()
                .is_some_and(|known| known.exists() && known.is_empty())
        })
        .await;
    server.a("echo.test.", 0, &["192.0.2.3"]);
    follower.hear_ids(&["192.0.2.3:80"]).await;
    server.set("echo.test.", Answer::Code(ResponseCode::NXDomain));
    follower.hear_missing().await;
}

#[tokio::test]
async fn a_silent_server_degrades_the_name_in_bounded_time() {
    let server = Server::start().await;
    server.set("echo.test.", Answer::Silence);
    let mut follower = Follower::new(&quick(&server), "echo.test.:80");
    follower.hear(|fold| fold.degraded().is_some()).await;
    assert!(follower.fold.topology().is_none());
    // The same for a service with unknown targets.
    server.srv("_echo._tcp.test.", &[(1, 1, 1, "echo.test.")]);
    let mut service = Follower::new(&quick(&server), "_echo._tcp.test.");
    service.hear(|fold| fold.degraded().is_some()).await;
    assert!(service.fold.topology().is_none());
}

#[tokio::test]
async fn a_family_that_fails_removes_nothing() {
    let server = Server::start().await;
    server.a("echo.test.", 0, &["192.0.2.1"]);
    server.aaaa("echo.test.", 0, &["2001:db8::1"]);
    let resolver = quick(&server);
    let mut follower = Follower::new(&resolver, "echo.test.:80");
    follower
        .hear_ids(&["192.0.2.1:80", "[2001:db8::1]:80"])
        .await;
    let mut v4 = Follower::new(&quick(&server).ipv4_only(), "echo.test.:80");
    v4.hear_ids(&["192.0.2.1:80"]).await;
    server.set_aaaa("echo.test.", Answer::Code(ResponseCode::ServFail));
    server.a("echo.test.", 0, &["192.0.2.2"]);
    follower
        .hear_ids(&["192.0.2.2:80", "[2001:db8::1]:80"])
        .await;
}

#[tokio::test]
async fn the_time_to_live_is_respected_for_all_followers() {
    let server = Server::start().await;
    server.a("echo.test.", 3600, &["192.0.2.1"]);
    server.set_aaaa("echo.test.", Answer::Empty);
    let resolver = DnsResolver::servers([server.addr()]).unwrap();
    // A cache above it queries many times; the time to live is respected all the same.
    let cached = CachedResolver::new(resolver.clone()).ttl(Duration::from_millis(20));
    let mut updates = cached.resolve("echo.test.:80");
    assert!(matches!(updates.next().await, Some(Update::Snapshot(known)) if known.len() == 1));
    let asked = server.asked();
    let mut others: Vec<_> = (0..10)
        .map(|_| Follower::new(&resolver, "echo.test.:80"))
        .collect();
    for other in &mut others {
        other.hear_ids(&["192.0.2.1:80"]).await;
    }
    sleep(Duration::from_millis(400)).await;
    // The empty AAAA answer has no time to live and is valid for 5 s.
    assert_eq!(server.asked(), asked);
    assert_eq!(asked, 2, "one for each family");
}

#[tokio::test]
async fn a_name_that_fails_is_not_queried_in_a_loop() {
    let server = Server::start().await;
    server.set("echo.test.", Answer::Code(ResponseCode::Refused));
    let resolver = quick(&server);
    let mut follower = Follower::new(&resolver, "echo.test.:80");
    follower.hear(|fold| fold.degraded().is_some()).await;
    let asked = server.asked();
    for _ in 0..20 {
        let mut another = Follower::new(&resolver, "echo.test.:80");
        another.hear(|fold| fold.degraded().is_some()).await;
    }
    assert_eq!(
        server.asked(),
        asked,
        "a query within half a second gets the known answer"
    );
}

#[tokio::test]
async fn an_invalid_name_is_degraded_with_the_valid_form_and_stays_open() {
    let server = Server::start().await;
    let mut updates = quick(&server).resolve("echo");
    let Some(Update::Degraded(cause)) = updates.next().await else {
        panic!("nothing to ask")
    };
    assert!(cause.to_string().contains("write `host:port`"));
    assert!(
        timeout(Duration::from_millis(50), updates.next())
            .await
            .is_err(),
        "the updates do not end"
    );
    assert!(
        DnsResolver::servers([])
            .unwrap_err()
            .to_string()
            .contains("name at least one")
    );
    let mut fixed = Follower::new(&quick(&server), "192.0.2.9:9");
    fixed.hear_ids(&["192.0.2.9:9"]).await;
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn a_service_is_its_targets_with_port_priority_and_weight() {
    let server = Server::start().await;
    let name = "_echo._tcp.test.";
    server.srv(
        name,
        &[(10, 3, 8081, "one.test."), (20, 0, 8082, "two.test.")],
    );
    server.a("one.test.", 0, &["192.0.2.1"]);
    server.a("two.test.", 0, &["192.0.2.2"]);
    let mut follower = Follower::new(&quick(&server), name);
    follower
        .hear_ids(&["192.0.2.1:8081", "192.0.2.2:8082"])
        .await;
    let known = follower.fold.topology().unwrap();
    let first = known.get("192.0.2.1:8081").unwrap();
    assert_eq!(
        (
            first.priority(),
            first.weight().get(),
            first.metadata()["target"].as_str()
        ),
        (10, 3, "one.test")
    );
    assert_eq!(known.get("192.0.2.2:8082").unwrap().weight().get(), 1);
    // One target fails, the other moves: the addresses of the first stay.
    server.set("one.test.", Answer::Code(ResponseCode::ServFail));
    server.a("two.test.", 0, &["192.0.2.3"]);
    follower
        .hear_ids(&["192.0.2.1:8081", "192.0.2.3:8082"])
        .await;
    server.srv(name, &[(0, 0, 0, ".")]);
    follower
        .hear(|fold| {
            fold.topology()
                .is_some_and(|known| known.exists() && known.is_empty())
        })
        .await;
    server.set(name, Answer::Code(ResponseCode::NXDomain));
    follower.hear_missing().await;
}
