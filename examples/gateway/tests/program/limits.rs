//! The per-client limit, and the circuit round a backend that fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::common::{Backend, Gateway, get, send, status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_past_its_limit_is_told_when_to_come_back_and_others_are_not_affected() {
    let backend = Backend::named("backend").await;
    let gateway = Gateway::with_backends(&[backend.address], "[per_client]\nrate = 5\nburst = 5\n").await;
    let mut connection = gateway.connect(1).await;
    let mut refused = 0;
    for _ in 0..8 {
        let answer = send(&mut connection, get("/")).await.unwrap();
        match answer.status.as_u16() {
            200 => {}
            429 => {
                refused += 1;
                assert_eq!(answer.headers["retry-after"], "1", "a fifth of a second, rounded up");
            }
            other => panic!("{other}"),
        }
    }
    assert!((2..=3).contains(&refused), "{refused} of 8 refused at 5 a second with a burst of 5");
    assert_eq!(gateway.get(2, "/").await.status, 200, "another client");
    assert_eq!(gateway.metric("gateway_responses_total{code=\"429\"}").await as usize, refused);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(send(&mut connection, get("/")).await.unwrap().status, 200, "told 1 s, served after 1 s");
}

/// A backend that answers with a status the test sets; 0 is no answer at all.
async fn moody(mood: &Arc<AtomicU16>) -> Backend {
    let mood = mood.clone();
    Backend::new(move |_| {
        let mood = mood.load(SeqCst);
        async move {
            if mood == 0 {
                std::future::pending::<()>().await;
            }
            status(mood)
        }
    })
    .await
}

async fn circuit(gateway: &Gateway, backend: &str) -> String {
    let topology = gateway.topology().await;
    let endpoints = topology["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|endpoint| endpoint["id"] == backend).unwrap();
    endpoint["circuit"]["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_failures_open_the_circuit_the_balance_goes_round_it_and_one_probe_closes_it() {
    let mood = Arc::new(AtomicU16::new(500));
    let (bad, good) = (moody(&mood).await, Backend::named("good").await);
    let more = "[circuit]\nopen_for = '400ms'\n[balance]\npolicy = 'round-robin'\n";
    let gateway = Gateway::with_backends(&[bad.address, good.address], more).await;
    let mut connection = gateway.connect(1).await;
    let mut failures = 0;
    for _ in 0..10 {
        failures += usize::from(send(&mut connection, get("/")).await.unwrap().status == 500);
    }
    assert_eq!((failures, bad.served()), (5, 5), "the circuit opens at the fifth failure in a row");
    assert_eq!(circuit(&gateway, "b0").await, "open");
    for _ in 0..10 {
        assert_eq!(send(&mut connection, get("/")).await.unwrap().text, "good");
    }
    assert_eq!(bad.served(), 5, "nothing reaches it while the circuit is open");

    mood.store(200, SeqCst);
    gateway
        .wait_until("a probe closes it", async || {
            assert_eq!(gateway.get(1, "/").await.status, 200);
            circuit(&gateway, "b0").await == "closed"
        })
        .await;
    let before = bad.served();
    for _ in 0..10 {
        assert_eq!(send(&mut connection, get("/")).await.unwrap().status, 200);
    }
    assert!(bad.served() > before, "it gets its share again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_whose_client_hangs_up_does_not_wedge_the_circuit() {
    let mood = Arc::new(AtomicU16::new(500));
    let backend = moody(&mood).await;
    let more = "[circuit]\nopen_for = '200ms'\n[balance]\nmax_wait = '5s'\n";
    let gateway = Gateway::with_backends(&[backend.address], more).await;
    for _ in 0..5 {
        assert_eq!(gateway.get(1, "/").await.status, 500);
    }
    assert_eq!(circuit(&gateway, "b0").await, "open");

    mood.store(0, SeqCst);
    let served = backend.served();
    let mut connection = gateway.connect(1).await;
    let probe = tokio::spawn(async move { send(&mut connection, get("/")).await });
    gateway.wait_until("the probe reaches the backend", async || backend.served() > served).await;
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());

    mood.store(200, SeqCst);
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 200, "the next caller probes: {}", answer.text);
    assert_eq!(circuit(&gateway, "b0").await, "closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_answer_is_told_as_a_timeout() {
    let backend = moody(&Arc::new(AtomicU16::new(0))).await;
    let gateway = Gateway::with_backends(&[backend.address], "[timeouts]\nresponse = '200ms'\n").await;
    let answer = gateway.get(1, "/").await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}
