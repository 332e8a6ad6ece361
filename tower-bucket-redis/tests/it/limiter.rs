//! Against a real redis-server on a loopback port, started and stopped by each test:
//! `cargo test -p tower-bucket-redis --test it -- --ignored`.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Request, Response};
use redis::{
    AsyncCommands as _,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use testkit::Probe;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt as _};
use tower_bucket::{ClientIp, Exhausted, Header, OnMissingKey, PeerIp, PolicyName, Quota};
use tower_bucket_redis::{OnFailure, RedisLayer, RedisLimiter};
use tower_outcome::{Class, Refusal};

use crate::common::{from, request};

/// So slow that nothing comes back while a test runs.
const TEN_AN_HOUR: Quota = Quota::per_hour(10);

const PREFIX: &str = "tower-bucket";

type Machine<K = str> = RedisLimiter<K, MultiplexedConnection>;

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    async fn start() -> Self {
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let mut server = Self {
                process: spawn(port),
                port,
            };
            if server.is_up().await {
                return server;
            }
            // Another one was faster to take the port.
        }
        panic!("redis-server does not come up");
    }

    /// Waits for it. False if it has ended.
    async fn is_up(&mut self) -> bool {
        for _ in 0..2_400 {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if self.is_ours().await {
                return true;
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server does not answer");
    }

    /// Whether it is our process that answers.
    async fn is_ours(&self) -> bool {
        let Ok(mut connection) = self.try_connect().await else {
            return false;
        };
        let info: redis::RedisResult<String> = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await;
        info.is_ok_and(|info| {
            info.lines()
                .any(|line| line == format!("process_id:{}", self.process.id()))
        })
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Another one in its place, which knows nothing.
    async fn start_again(&mut self) {
        self.process = spawn(self.port);
        assert!(self.is_up().await, "nobody else has taken the port");
    }

    async fn try_connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        client.get_multiplexed_async_connection().await
    }

    async fn connect(&self) -> MultiplexedConnection {
        self.try_connect().await.unwrap()
    }

    /// A limiter as another process on another machine would have it.
    async fn machine<K: ?Sized>(&self, quota: Quota) -> Machine<K> {
        self.machine_of(PREFIX, quota).await
    }

    async fn machine_of<K: ?Sized>(&self, prefix: &str, quota: Quota) -> Machine<K> {
        // A busy machine must not fail for its slowness.
        RedisLimiter::new(self.connect().await, prefix, quota).timeout(Duration::from_secs(5))
    }

    /// How many scripts were run so far.
    async fn scripts(&self) -> u64 {
        scripts_run(&mut self.connect().await).await
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.process.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(port: u16) -> Child {
    let words = [
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--port",
    ];
    let mut command = Command::new("redis-server");
    command
        .args(words)
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .expect("redis-server: apt-get install redis-server")
}

async fn scripts_run(connection: &mut MultiplexedConnection) -> u64 {
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(connection)
        .await
        .unwrap();
    let calls = |line: &str| {
        line.split_once("calls=")?
            .1
            .split_once(',')?
            .0
            .parse::<u64>()
            .ok()
    };
    stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_evalsha:"))
        .filter_map(calls)
        .sum()
}

async fn pass(limiter: &Machine, key: &str, tries: usize) -> usize {
    let mut passed = 0;
    for _ in 0..tries {
        passed += usize::from(limiter.check_key(key).await.is_ok());
    }
    passed
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn machines_share_one_quota_by_key() {
    let server = Server::start().await;
    let (one, two) = (
        server.machine(TEN_AN_HOUR).await,
        server.machine(TEN_AN_HOUR).await,
    );
    assert_eq!(pass(&one, "alice", 4).await, 4);
    assert_eq!(pass(&two, "alice", 20).await, 6);
    assert_eq!(pass(&one, "alice", 20).await, 0);
    assert_eq!(pass(&one, "bob", 20).await, 10);
    let other = server.machine_of("other", TEN_AN_HOUR).await;
    assert_eq!(
        pass(&other, "bob", 20).await,
        10,
        "another prefix, another limit"
    );
    let admitted = server
        .machine::<str>(TEN_AN_HOUR)
        .await
        .check_key("carol")
        .await
        .unwrap();
    assert_eq!((admitted.remaining(), admitted.quota()), (9, TEN_AN_HOUR));
    assert_eq!(
        (
            one.snapshot().allowed,
            one.snapshot().refused,
            one.failures()
        ),
        (14, 30, 0)
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn many_at_a_time_from_many_machines_get_the_burst_and_no_more() {
    let server = Server::start().await;
    let passed = std::sync::Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let machine = server.machine::<str>(TEN_AN_HOUR).await;
        for _ in 0..10 {
            let (machine, passed) = (machine.clone(), passed.clone());
            tasks.push(tokio::spawn(async move {
                passed.fetch_add(u32::from(machine.check_key("alice").await.is_ok()), Relaxed);
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(passed.load(Relaxed), 10);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_decision_is_one_script_and_what_was_refused_is_not_asked_again() {
    let server = Server::start().await;
    let (one, two) = (
        server.machine(TEN_AN_HOUR).await,
        server.machine(TEN_AN_HOUR).await,
    );
    assert_eq!(pass(&one, "alice", 10).await, 10);
    // The first one of all is run twice: the server did not know the script.
    assert!((10..=11).contains(&server.scripts().await));
    let before = server.scripts().await;
    assert_eq!(pass(&one, "alice", 100).await, 0);
    assert_eq!(
        server.scripts().await,
        before,
        "this machine alone has used it up"
    );
    let told = two
        .check_key("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    assert!(
        told > Duration::from_secs(350) && told <= Duration::from_secs(360),
        "{told:?}"
    );
    assert_eq!(server.scripts().await, before + 1);
    assert_eq!(pass(&two, "alice", 100).await, 0);
    assert_eq!(
        server.scripts().await,
        before + 1,
        "the other one remembers what it was told"
    );
    let again = two
        .check_key("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    assert!(
        again <= told && again > Duration::from_secs(350),
        "{again:?}"
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn tokens_come_back_at_the_rate_and_full_buckets_go_by_themselves() {
    let server = Server::start().await;
    let quota = Quota::per_second(10).burst(3);
    let (one, two) = (server.machine(quota).await, server.machine(quota).await);
    let begin = Instant::now();
    let mut passed = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        for machine in [&one, &two] {
            passed += u128::from(machine.check_key("alice").await.is_ok());
        }
        sleep(Duration::from_millis(5)).await;
    }
    let most = 3 + begin.elapsed().as_millis() / 100 + 1;
    assert!(passed >= 12 && passed <= most, "{passed} of at most {most}");
    sleep(Duration::from_millis(400)).await;
    let mut connection = server.connect().await;
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(
        keys,
        Vec::<String>::new(),
        "none is left whose bucket is full"
    );
    // As long as it takes to be full again, and no longer.
    let minutes = server.machine(Quota::per_minute(2)).await;
    for (turn, most) in [(1, 30_000), (2, 60_000)] {
        assert_eq!(pass(&minutes, "bob", 1).await, 1);
        let left: i64 = connection.pttl("tower-bucket\0bob").await.unwrap();
        assert!(
            left > most - 20_000 && left <= most,
            "{left} ms after {turn}"
        );
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_clock_that_was_set_leaves_no_bucket_fuller_than_full_or_emptier_than_empty() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let _: () = connection.set("tower-bucket\0past", 1).await.unwrap();
    assert_eq!(
        pass(&server.machine(TEN_AN_HOUR).await, "past", 20).await,
        10
    );
    let _: () = connection
        .set("tower-bucket\0future", 4_000_000_000_000_000_u64)
        .await
        .unwrap();
    let refused = server
        .machine::<str>(TEN_AN_HOUR)
        .await
        .check_key("future")
        .await
        .unwrap_err();
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(360)));
}

/// A clock that was set back, or a quota made smaller, left a key refused for as long as the old moment was ahead, and each
/// time reported that it would soon pass.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_bucket_far_in_debt_is_rejected_for_the_reported_time_and_no_longer() {
    let server = Server::start().await;
    let _: () = server
        .connect()
        .await
        .set("tower-bucket\0future", 4_000_000_000_000_000_u64)
        .await
        .unwrap();
    let quota = Quota::every(Duration::from_millis(200)).unwrap();
    let refused = server
        .machine::<str>(quota)
        .await
        .check_key("future")
        .await
        .unwrap_err();
    assert_eq!(refused.retry_after(), Some(Duration::from_millis(200)));
    sleep(Duration::from_millis(250)).await;
    assert!(
        server
            .machine::<str>(quota)
            .await
            .check_key("future")
            .await
            .is_ok()
    );
}

/// What Redis refuses had used up a token of the local bucket, which then refused for longer than was reported.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn what_redis_refuses_costs_nothing_here() {
    let server = Server::start().await;
    let quota = Quota::every(Duration::from_secs(3600)).unwrap();
    let (one, two) = (server.machine(quota).await, server.machine(quota).await);
    assert_eq!(pass(&one, "alice", 1).await, 1);
    sleep(Duration::from_millis(300)).await;
    let told = two
        .check_key("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    let again = two
        .check_key("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    assert!(again <= told, "{told:?} and then {again:?}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_limiter_of_another_capacity_shares_nothing_here_with_the_one_it_was_made_from() {
    let mut server = Server::start().await;
    let one = server.machine::<str>(TEN_AN_HOUR).await;
    assert_eq!(pass(&one, "alice", 10).await, 10);
    sleep(Duration::from_millis(50)).await;
    server.kill();
    assert_eq!(pass(&one, "bob", 1).await, 1);
    assert!(
        !one.is_up() && one.clone().capacity(10).is_up(),
        "the one's time is not the other's"
    );
}

/// After the pause all requests within the timeout had to wait for it.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn while_a_server_hangs_one_request_at_a_time_finds_out() {
    let server = Server::start().await;
    let machine = server.machine::<str>(Quota::per_hour(1_000)).await;
    assert_eq!(pass(&machine, "warm", 1).await, 1);
    let machine = machine.timeout(Duration::from_millis(500));
    server.signal("-STOP");
    assert_eq!(pass(&machine, "alice", 1).await, 1);
    while !machine.is_up() {
        sleep(Duration::from_millis(10)).await;
    }
    let asks = machine.check_key("alice");
    let mut asks = std::pin::pin!(asks);
    assert!(
        asks.as_mut().now_or_never().is_none(),
        "one waits for an answer"
    );
    for _ in 0..20 {
        let decided = machine.check_key("alice").now_or_never();
        assert!(decided.expect("and the others do not wait with it").is_ok());
    }
    assert!(asks.await.is_ok());
    assert_eq!(machine.failures(), 2);
    server.signal("-CONT");
    let machine = machine.clone().timeout(Duration::from_secs(5));
    while !machine.is_up() {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(machine.check_key("alice").await.is_ok());
    assert_eq!(machine.failures(), 2);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_layer_asks_for_what_a_request_costs_by_its_quota_function_and_reports_the_state() {
    const SITE: PolicyName = PolicyName::new("site").unwrap();
    let server = Server::start().await;
    let (probe, handle) = Probe::new();
    let limiter = server.machine::<ClientIp>(TEN_AN_HOUR).await;
    let cost = |request: &Request<String>| request.body().len() as u32;
    let plan = |request: &Request<String>| {
        request
            .headers()
            .contains_key("x-paid")
            .then_some(Quota::per_hour(100))
    };
    let mut service = RedisLayer::new(limiter.clone(), PeerIp)
        .cost(cost)
        .quota_fn(plan)
        .rate_limit_headers(SITE)
        .respond()
        .layer(probe);
    let mut call = async |peer, body: &str, paid: bool| {
        let mut request = from(peer).map(|_| body.to_owned());
        if paid {
            request.headers_mut().insert("x-paid", "1".parse().unwrap());
        }
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        let lines =
            ["ratelimit-policy", "ratelimit"].map(|name| match response.headers().get(name) {
                Some(line) => line.to_str().unwrap().to_owned(),
                None => String::new(),
            });
        (response.status().as_u16(), lines)
    };
    let told = |status, policy: &str, limit: &str| {
        (
            status,
            [format!("\"site\";{policy}"), format!("\"site\";{limit}")],
        )
    };
    assert_eq!(
        call("192.0.2.1", "7 toks.", false).await,
        told(200, "q=10;w=3600", "r=3;t=360")
    );
    let (status, [_, limit]) = call("192.0.2.1", "four", false).await;
    assert!(
        status == 429 && limit.starts_with("\"site\";r=0;t="),
        "{limit}"
    );
    assert_eq!(call("192.0.2.1", "three", false).await.0, 429);
    assert_eq!(call("192.0.2.1", "3 t", false).await.0, 200);
    assert_eq!(
        call("192.0.2.1", "", false).await,
        (200, [String::new(), String::new()]),
        "free, and so not limited"
    );
    assert_eq!(
        call("192.0.2.1", "twelve chars", false).await,
        told(429, "q=10;w=3600", "r=0"),
        "never"
    );
    let paid = call("192.0.2.2", "twelve chars", true).await;
    assert_eq!(paid, told(200, "q=100;w=3600", "r=88;t=36"));
    let other = server.machine::<str>(Quota::per_hour(100)).await;
    assert_eq!(
        other
            .check_key_cost("192.0.2.2", 89)
            .await
            .unwrap_err()
            .retry_after()
            .unwrap()
            .as_secs()
            / 10,
        3
    );
    assert_eq!(
        other
            .check_key_cost("192.0.2.2", 88)
            .await
            .unwrap()
            .remaining(),
        0
    );
    assert_eq!(
        (
            handle.calls(),
            limiter.snapshot().allowed,
            limiter.snapshot().refused
        ),
        (4, 4, 3)
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_shadow_over_all_machines_rejects_nothing_even_without_a_reply() {
    let mut server = Server::start().await;
    let limiter = server
        .machine::<ClientIp>(TEN_AN_HOUR)
        .await
        .on_failure(OnFailure::Closed);
    let (probe, handle) = Probe::new();
    let mut service = RedisLayer::new(limiter.clone(), PeerIp)
        .shadow()
        .respond()
        .layer(probe);
    for turn in 0..30 {
        if turn == 20 {
            server.kill();
        }
        let peer = if turn < 20 { "192.0.2.1" } else { "192.0.2.2" };
        assert_eq!(
            service
                .ready()
                .await
                .unwrap()
                .call(from(peer))
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let snapshot = limiter.snapshot();
    assert_eq!(
        (
            snapshot.allowed,
            snapshot.shadowed,
            snapshot.refused,
            handle.calls()
        ),
        (10, 20, 0, 30)
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_hangs_is_waited_for_once_and_then_left_alone() {
    let server = Server::start().await;
    for (choice, expected) in [
        (OnFailure::Local, 10),
        (OnFailure::Open, 100),
        (OnFailure::Closed, 0),
    ] {
        let machine = server
            .machine_of(&format!("{choice:?}:"), TEN_AN_HOUR)
            .await
            .on_failure(choice);
        // The script is known and the connection warm.
        assert_eq!(pass(&machine, "warm", 1).await, 1);
        let machine = machine.timeout(Duration::from_millis(100));
        server.signal("-STOP");
        let begin = Instant::now();
        let first = machine.check_key("alice").await;
        assert!(begin.elapsed() >= Duration::from_millis(100), "{choice:?}");
        let decided = |_| {
            machine
                .check_key("alice")
                .now_or_never()
                .expect("nobody else waits")
        };
        let passed = (1..100)
            .map(decided)
            .chain([first])
            .filter(Result::is_ok)
            .count();
        assert!(!machine.is_up());
        assert_eq!((passed, machine.failures()), (expected, 1), "{choice:?}");
        server.signal("-CONT");
        let machine = machine.timeout(Duration::from_secs(5));
        while !machine.is_up() {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(
            begin.elapsed() >= Duration::from_secs(1),
            "left alone for a second"
        );
        assert!(machine.check_key("bob").await.is_ok() && machine.is_up());
        assert_eq!(machine.failures(), 1);
    }
}

/// With a connection that comes up again by itself.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_is_killed_and_started_again_is_asked_again_and_learns_the_script() {
    let mut server = Server::start().await;
    let config = ConnectionManagerConfig::new()
        .set_min_delay(Duration::from_millis(10))
        .set_max_delay(Duration::from_millis(50))
        .set_number_of_retries(3);
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/", server.port)).unwrap();
    let machine = async || {
        let connection = ConnectionManager::new_with_config(client.clone(), config.clone())
            .await
            .unwrap();
        RedisLimiter::<str, _>::new(connection, PREFIX, TEN_AN_HOUR)
            .timeout(Duration::from_secs(5))
            .on_failure(OnFailure::Closed)
    };
    let (one, two) = (machine().await, machine().await);
    for key in ["alice", "bob"] {
        assert!(one.check_key(key).await.is_ok() && two.check_key(key).await.is_ok());
    }
    server.kill();
    for machine in [&one, &two] {
        assert_eq!(
            machine.check_key("alice").await.unwrap_err().to_string(),
            "rate limit unavailable"
        );
        assert!(!machine.is_up());
    }
    server.start_again().await;
    for machine in [&one, &two] {
        while !machine.is_up() || machine.check_key("carol").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(server.scripts().await >= 2, "both ask again");
    let mut passed = 0;
    for _ in 0..20 {
        for machine in [&one, &two] {
            passed += u32::from(machine.check_key("dave").await.is_ok());
        }
    }
    assert_eq!(passed, 10, "and share what they had shared before");
    // A server may also forget only its scripts.
    let failures = one.failures();
    let _: () = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut server.connect().await)
        .await
        .unwrap();
    assert!(one.check_key("erin").await.is_ok() && two.check_key("erin").await.is_ok());
    assert_eq!(one.failures(), failures);
}

/// As the documentation has it, with all defaults.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_connection_manager_brings_the_limit_over_all_machines_back_after_a_restart() {
    let mut server = Server::start().await;
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/", server.port)).unwrap();
    let connection = client.get_connection_manager().await.unwrap();
    let machine = RedisLimiter::<str, _>::new(connection, PREFIX, TEN_AN_HOUR);
    let ask_until_it_is_asked = async || {
        let begin = Instant::now();
        for key in 0.. {
            assert!(machine.check_key(&key.to_string()).await.is_ok());
            if scripts_run(&mut client.get_multiplexed_async_connection().await.unwrap()).await > 0
            {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "never again");
            sleep(Duration::from_millis(100)).await;
        }
    };
    ask_until_it_is_asked().await;
    server.kill();
    assert!(machine.check_key("alice").await.is_ok(), "decided here");
    server.start_again().await;
    ask_until_it_is_asked().await;
}

/// A header that is empty and one with that text had been the key of requests without one.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn no_key_that_a_client_can_send_is_that_of_those_without_one() {
    let server = Server::start().await;
    let limiter = server
        .machine::<(HeaderValue, HeaderValue)>(TEN_AN_HOUR)
        .await;
    let header = |name| Header::new(HeaderName::from_static(name));
    let layer = RedisLayer::new(limiter, (header("x-one"), header("x-two"))).respond();
    let mut service = layer.layer(Probe::new().0);
    let pair = Request::builder()
        .header("x-one", "")
        .header("x-two", "keyless")
        .body(String::new())
        .unwrap();
    for request in [request(), pair] {
        assert_eq!(
            service
                .ready()
                .await
                .unwrap()
                .call(request)
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let keys: Vec<Vec<u8>> = server.connect().await.keys("*").await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_is_gone_means_no_where_that_was_chosen() {
    let mut server = Server::start().await;
    let machine = server
        .machine::<str>(TEN_AN_HOUR)
        .await
        .on_failure(OnFailure::Closed);
    assert!(machine.check_key("alice").await.is_ok());
    server.kill();
    let refused = machine.check_key("alice").await.unwrap_err();
    assert_eq!(
        (refused.retry_after(), refused.to_string()),
        (None, "rate limit unavailable".to_owned())
    );
    let refusal = Refusal::find(&refused).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Unavailable, "rate-limit-unavailable")
    );
}

/// It made the limiter leave the server alone for all keys: with `Closed` all requests were refused for a second.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_error_reply_about_one_key_harms_that_key_and_no_other() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let _: () = connection.lpush("tower-bucket\0list", "x").await.unwrap();
    let _: () = connection.set("tower-bucket\0text", "x").await.unwrap();
    for (choice, passes) in [
        (OnFailure::Local, true),
        (OnFailure::Open, true),
        (OnFailure::Closed, false),
    ] {
        let machine = server.machine::<str>(TEN_AN_HOUR).await.on_failure(choice);
        for (failures, key) in (1..).zip(["list", "text"]) {
            let before = server.scripts().await;
            assert_eq!(machine.check_key(key).await.is_ok(), passes, "{choice:?}");
            assert!(machine.is_up(), "a server that replies is up");
            assert!(machine.check_key(&format!("{choice:?}")).await.is_ok());
            assert!(
                server.scripts().await >= before + 2,
                "and is asked about the next key"
            );
            assert_eq!(machine.failures(), failures);
        }
    }
    let closed = server.machine::<str>(TEN_AN_HOUR).await;
    let closed = closed.on_failure(OnFailure::Closed);
    let refused = closed.check_key("list").await.unwrap_err();
    assert_eq!(refused.to_string(), "rate limit unavailable");
    let _: u32 = connection.del("tower-bucket\0list").await.unwrap();
    assert_eq!(
        pass(&closed, "list", 20).await,
        10,
        "what failed has used up nothing"
    );
}

/// A server that cannot write replies so at once, and to each request.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_refuses_to_write_is_asked_again_by_the_next_request() {
    let server = Server::start().await;
    let mut connection = server.connect().await;
    let machine = server.machine::<str>(TEN_AN_HOUR).await;
    let machine = machine.on_failure(OnFailure::Closed);
    assert_eq!(pass(&machine, "alice", 1).await, 1);
    let mut replica_of = async |host: &str, port: &str| {
        let _: () = redis::cmd("REPLICAOF")
            .arg(host)
            .arg(port)
            .query_async(&mut connection)
            .await
            .unwrap();
    };
    // Of a master that is not there: it is read-only.
    replica_of("127.0.0.1", "1").await;
    assert_eq!(pass(&machine, "alice", 3).await, 0);
    assert_eq!(machine.failures(), 3, "each one has asked");
    replica_of("NO", "ONE").await;
    assert_eq!(pass(&machine, "alice", 20).await, 9);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_layer_answers_429_over_all_machines_and_calls_the_inner_service_for_the_rest() {
    let server = Server::start().await;
    let machine = async || server.machine::<ClientIp>(TEN_AN_HOUR).await;
    let layers = [
        RedisLayer::new(machine().await, PeerIp).respond(),
        RedisLayer::new(machine().await, PeerIp).respond(),
    ];
    let (probes, mut services): (Vec<_>, Vec<_>) = layers
        .iter()
        .map(|layer| {
            let (probe, handle) = Probe::new();
            (handle, layer.layer(probe))
        })
        .unzip();
    let mut answers = Vec::new();
    for turn in 0..14 {
        let response = services[turn % 2]
            .ready()
            .await
            .unwrap()
            .call(from("2001:db8::1"))
            .await
            .unwrap();
        answers.push(response.status().as_u16());
    }
    assert_eq!(answers, [[200; 10].as_slice(), &[429; 4]].concat());
    assert_eq!(
        probes
            .iter()
            .map(|probe| (probe.calls(), probe.in_flight(), probe.clones()))
            .collect::<Vec<_>>(),
        [(5, 0, 1); 2]
    );
    let keys: Vec<String> = server.connect().await.keys("*").await.unwrap();
    assert_eq!(keys, ["tower-bucket\x002001:db8::/64"]);

    // All without a key are one, over all machines.
    for turn in 0..12 {
        let response = services[turn % 2]
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
        assert_eq!(
            response.status().as_u16(),
            if turn < 10 { 200 } else { 429 }
        );
    }
    assert!(
        server
            .machine::<str>(TEN_AN_HOUR)
            .await
            .check_key("")
            .await
            .is_ok(),
        "an empty key is a key"
    );
    let deny = RedisLayer::new(machine().await, PeerIp).on_missing_key(OnMissingKey::Deny);
    let error = deny
        .layer(Probe::new().0)
        .oneshot(request())
        .await
        .unwrap_err();
    assert_eq!(
        error.downcast_ref::<Exhausted>().unwrap().to_string(),
        "rate limit key missing"
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_call_dropped_while_redis_is_asked_calls_nothing_and_leaves_nothing() {
    let server = Server::start().await;
    let layer = RedisLayer::new(server.machine::<ClientIp>(TEN_AN_HOUR).await, PeerIp);
    let (probe, handle) = Probe::new();
    let mut service = layer.layer(probe);
    server.signal("-STOP");
    let call = service.ready().await.unwrap().call(from("192.0.2.1"));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), call)
            .await
            .is_err()
    );
    server.signal("-CONT");
    assert_eq!((handle.calls(), handle.clones()), (0, 1));
    assert!(
        service
            .ready()
            .await
            .unwrap()
            .call(from("192.0.2.1"))
            .await
            .is_ok()
    );
    let snapshot = layer.limiter().snapshot();
    assert_eq!(
        (snapshot.allowed, snapshot.refused, snapshot.abandoned),
        (1, 0, 1)
    );
}

#[test]
fn a_layer_is_sent_and_cloned() {
    fn router<S, B>(_: fn() -> S)
    where
        S: Service<Request<String>, Response = Response<B>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
    }
    type Inner = tower::util::BoxCloneSyncService<Request<String>, Response<String>, Infallible>;
    type Asks = RedisLayer<PeerIp, ClientIp, MultiplexedConnection, tower_outcome::refuse::Auto>;
    router::<<Asks as Layer<Inner>>::Service, _>(|| unreachable!("only its type is looked at"));
}
