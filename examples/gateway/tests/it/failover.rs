//! Replicas die and come back under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::common::{Backend, Gateway, connect, get, send};
use tokio::{task::JoinSet, time::Instant};

/// A connection is closed before that is noticed: what is written to it in that moment was written to a dead replica.
const NOTICED: Duration = Duration::from_millis(100);

/// One request of the load: when it began, and its answer.
struct Record {
    began: Instant,
    status: u16,
    text: String,
}

/// 64 clients with different addresses, each with one request at a time on a kept connection.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Record>>,
}

impl Load {
    fn start(gateway: &Gateway, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 1..=64 {
            let (stop, address) = (stop.clone(), gateway.address);
            clients.spawn(async move {
                let mut records = Vec::new();
                let mut connection = connect(address, client).await.expect("the gateway accepts");
                while !stop.load(SeqCst) {
                    let began = Instant::now();
                    let answer = send(&mut connection, get(path))
                        .await
                        .expect("every request is answered");
                    records.push(Record {
                        began,
                        status: answer.status.as_u16(),
                        text: answer.text,
                    });
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
                records
            });
        }
        Self { stop, clients }
    }

    async fn stop(mut self) -> Vec<Record> {
        self.stop.store(true, SeqCst);
        let mut all = Vec::new();
        while let Some(records) = self.clients.join_next().await {
            all.extend(records.unwrap());
        }
        all
    }
}

fn token(topology: &serde_json::Value, replica: &str) -> Option<u64> {
    let endpoints = topology["endpoints"].as_array().unwrap();
    endpoints
        .iter()
        .find(|endpoint| endpoint["id"] == replica)?["lease"]["token"]
        .as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_costs_only_what_was_written_to_it_and_comes_back_with_a_higher_token() {
    let gateway = Gateway::demo().await;
    let before = gateway.topology().await;
    let old_token = token(&before, "echo-2").expect("echo-2 holds its lease");
    let load = Load::start(&gateway, "/delay/20");
    tokio::time::sleep(Duration::from_millis(500)).await;

    assert_eq!(gateway.admin_post("/replicas/echo-2/kill").await.0, 200);
    let killed = Instant::now();
    gateway
        .wait_until("the lease expires and the topology says so", async || {
            token(&gateway.topology().await, "echo-2").is_none()
        })
        .await;
    let without = gateway.topology().await;
    assert!(without["generation"].as_u64() > before["generation"].as_u64());

    assert_eq!(gateway.admin_post("/replicas/echo-2/revive").await.0, 200);
    gateway
        .wait_until("it holds a lease again", async || {
            token(&gateway.topology().await, "echo-2").is_some()
        })
        .await;
    let revived = Instant::now();
    let after = gateway.topology().await;
    let new_token = token(&after, "echo-2").unwrap();
    assert!(new_token > old_token, "{new_token} after {old_token}");
    assert!(after["generation"].as_u64() > without["generation"].as_u64());
    tokio::time::sleep(Duration::from_millis(500)).await;

    let records = load.stop().await;
    let failed: Vec<&Record> = records
        .iter()
        .filter(|record| record.status != 200)
        .collect();
    for record in &failed {
        assert_eq!(record.status, 502, "{}", record.text);
        let late = record.began.saturating_duration_since(killed);
        assert!(
            late < NOTICED,
            "a request that began {late:?} after the kill failed: {}",
            record.text
        );
    }
    assert!(
        failed.len() <= 64,
        "at most one a client can have been under way"
    );
    assert_eq!(
        gateway
            .metric("gateway_responses_total{code=\"502\"}")
            .await as usize,
        failed.len()
    );
    let answered_by = |replica: &str, since: Instant| {
        records
            .iter()
            .filter(|record| record.began > since && record.text.contains(replica))
            .count()
    };
    assert!(answered_by("echo-1", killed) > 0 && answered_by("echo-3", killed) > 0);
    assert!(
        answered_by("echo-2", revived) > 0,
        "the revived replica gets traffic"
    );
    let new = format!("echo-2 token {new_token}");
    let by_old = records
        .iter()
        .filter(|record| record.began > killed && record.text.contains("echo-2"));
    for record in by_old {
        assert!(
            record.text.contains(&new),
            "only the new holder answers: {}",
            record.text
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_replicas_down_the_answer_is_an_explicit_503_and_never_a_hang() {
    let gateway = Gateway::demo().await;
    for replica in ["echo-1", "echo-2", "echo-3"] {
        assert_eq!(
            gateway
                .admin_post(&format!("/replicas/{replica}/kill"))
                .await
                .0,
            200
        );
    }
    let began = Instant::now();
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(
        answer.text.contains("no healthy replica") || answer.text.contains("no-endpoint"),
        "{}",
        answer.text
    );
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "the wait is bounded to a second"
    );

    gateway
        .wait_until("all leases expire", async || {
            gateway.topology().await["endpoints"]
                .as_array()
                .unwrap()
                .is_empty()
        })
        .await;
    let began = Instant::now();
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("no-endpoints"), "{}", answer.text);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "at once, when the topology is known to be empty"
    );
    assert_eq!(
        gateway.admin_get("/ready").await.0,
        503,
        "a gateway that can serve nobody is not ready"
    );

    assert_eq!(gateway.admin_post("/replicas/echo-1/revive").await.0, 200);
    gateway
        .wait_until("it serves again", async || {
            gateway.get(1, "/").await.status == 200
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_refuses_connections_costs_no_request() {
    let living = Backend::named("living").await;
    // It keeps no connections: one that died unnoticed in the gateway's pool may cost the request that is written to it.
    let dying = Backend::new(|_| async {
        http::Response::builder()
            .header("connection", "close")
            .body(crate::common::full("dying"))
            .unwrap()
    })
    .await;
    let gateway = Gateway::with_backends(&[living.address, dying.address], "").await;
    for _ in 0..20 {
        assert_eq!(gateway.get(1, "/").await.status, 200);
    }
    assert!(living.served() > 0 && dying.served() > 0);
    let address = dying.address;
    dying.kill().await;
    for _ in 0..50 {
        let answer = gateway.get(1, "/").await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (200, "living")
        );
    }
    // It comes back under its old address, and is found without intervention.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let back = Backend::on(listener, |_| async {
        http::Response::new(crate::common::full("back"))
    });
    gateway
        .wait_until("it serves again", async || {
            gateway.get(1, "/").await.text == "back"
        })
        .await;
    drop(back);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_backends_dead_requests_are_rejected_in_bounded_time() {
    let dead = Backend::named("dead").await;
    let address = dead.address;
    dead.kill().await;
    let config = crate::common::config(&[address], "[balance]\nmax_wait = '200ms'\n");
    let file = crate::common::TempFile::new(&config);
    let gateway = Gateway::unready(&["--config", file.0.to_str().unwrap()]).await;
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 503, "{}", answer.text);
}

/// Three backends whose `POST` is 501, as Python's `http.server` has it, or whose `/bug` is 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_client_makes_every_backend_answer_refuses_no_other_client() {
    for (request, status) in [("/post", 501), ("/bug", 500)] {
        let mut backends = Vec::new();
        for _ in 0..3 {
            let backend = Backend::new(move |asked| {
                let is_bad = asked.uri().path() == request;
                async move {
                    let mut answer = http::Response::new(crate::common::full("fine"));
                    if is_bad {
                        *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
                    }
                    answer
                }
            });
            backends.push(backend.await);
        }
        let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
        let gateway = Gateway::with_backends(&addresses, "").await;
        let (mut bad, mut good) = (gateway.connect(1).await, gateway.connect(2).await);
        for _ in 0..40 {
            for _ in 0..5 {
                let answer = send(&mut bad, get(request)).await.unwrap();
                assert_eq!(answer.status, status, "{}", answer.text);
            }
            let answer = send(&mut good, get("/fine")).await.unwrap();
            assert_eq!(answer.status, 200, "{request}: {}", answer.text);
        }
    }
}
