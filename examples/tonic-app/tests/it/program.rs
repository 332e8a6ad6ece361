//! The app as its users meet it: a program, gRPC clients, a signal.

use std::{error::Error, net::Ipv4Addr, time::Duration};

use testkit::Program;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use self::weather::{Place, WatchRequest, weather_client::WeatherClient};

mod weather {
    #![allow(
        missing_docs,
        unreachable_pub,
        dead_code,
        clippy::use_self,
        reason = "generated"
    )]
    tonic::include_proto!("weather.v1");
}

fn app() -> (Program, String) {
    let app = Program::start(env!("CARGO_BIN_EXE_tonic-app"), &["127.0.0.1:0"]);
    let address = app.told("tonic-app listening on ");
    (app, address)
}

/// A client with its own loopback address, selected by `number`.
async fn client(address: &str, number: u8) -> WeatherClient<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
    let endpoint = endpoint
        .local_address(Some(Ipv4Addr::new(127, 0, 1, number).into()))
        .timeout(Program::PATIENCE);
    WeatherClient::new(endpoint.connect().await.unwrap())
}

async fn now(client: &mut WeatherClient<Channel>, place: &str) -> Result<i32, Status> {
    Ok(client
        .now(Place {
            name: place.to_owned(),
        })
        .await?
        .into_inner()
        .celsius)
}

/// The delay before a retry, if the server sent one.
fn pushback(refused: &Status) -> Option<Duration> {
    let hint = refused.metadata().get("grpc-retry-pushback-ms")?;
    Some(Duration::from_millis(
        hint.to_str().unwrap().parse().unwrap(),
    ))
}

/// The call was not processed, so any client may repeat it, as gRPC's clients do: there was no connection, it was closed before
/// the call was written, or the server sent GOAWAY with an earlier call as its last one (RFC 9113 sections 6.8 and 8.7).
fn was_not_seen(status: &Status) -> bool {
    let mut next = status.source();
    while let Some(error) = next {
        if error.is::<tonic::ConnectError>()
            || error.downcast_ref().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref().is_some_and(|error: &h2::Error| {
                error.is_go_away()
                    && error.is_remote()
                    && error.reason() == Some(h2::Reason::NO_ERROR)
            })
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_works_as_before() {
    let (_app, address) = app();
    let mut client = client(&address, 1).await;
    assert_eq!(now(&mut client, "Oslo").await.unwrap(), 4);
    assert_eq!(
        now(&mut client, "Atlantis").await.unwrap_err().code(),
        Code::NotFound
    );
    let request = WatchRequest {
        place: Some(Place {
            name: "Oslo".to_owned(),
        }),
        reports: 3,
    };
    let mut reports = client.watch(request).await.unwrap().into_inner();
    for serial in 1..=3 {
        assert_eq!(reports.message().await.unwrap().unwrap().serial, serial);
    }
    assert!(reports.message().await.unwrap().is_none(), "and then OK");
}

/// Twenty calls at once are within the limit, and then twenty a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_past_its_limit_that_heeds_the_hints_gets_every_answer() {
    let (_app, address) = app();
    let client_1 = client(&address, 1).await;
    let calls = (0..40).map(|_| {
        let mut client = client_1.clone();
        tokio::spawn(async move {
            let mut hints = Vec::new();
            loop {
                match now(&mut client, "Oslo").await {
                    Ok(_) => return hints,
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        let hint = pushback(&status).expect("a hint");
                        hints.push(hint);
                        sleep(hint).await;
                    }
                }
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    assert_eq!(
        now(&mut client(&address, 2).await, "Oslo").await.unwrap(),
        4,
        "another client is not affected"
    );
    let mut hints = Vec::new();
    for call in calls {
        hints.extend(
            timeout(Program::PATIENCE, call)
                .await
                .expect("the hints are of use")
                .unwrap(),
        );
    }
    assert!(!hints.is_empty(), "forty at once are more than twenty");
    assert!(
        hints
            .iter()
            .all(|hint| (1..=50).contains(&hint.as_millis())),
        "a twentieth of a second: {hints:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_that_fails_opens_the_circuit_and_an_answer_that_is_no_does_not() {
    let (_app, address) = app();
    let mut client = client(&address, 1).await;
    for _ in 0..6 {
        assert_eq!(
            now(&mut client, "Atlantis").await.unwrap_err().code(),
            Code::NotFound
        );
    }
    for _ in 0..5 {
        let failed = now(&mut client, "Nowhere").await.unwrap_err();
        assert_eq!(
            (failed.code(), pushback(&failed)),
            (Code::Unavailable, None),
            "the app's own answer"
        );
    }
    let refused = now(&mut client, "Oslo").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let hint = pushback(&refused).expect("when to come back");
    assert!(
        (1..=12).contains(&hint.as_secs()),
        "ten seconds, with some chance in it: {hint:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_under_load_fails_no_call_and_ends_every_stream_well() {
    let (app, address) = app();
    let callers: Vec<_> = (1..=4)
        .map(|number| {
            let address = address.clone();
            tokio::spawn(async move {
                let (mut client, mut answered) = (client(&address, number).await, 0);
                // Until the server is gone.
                loop {
                    match now(&mut client, "Oslo").await {
                        Ok(_) => answered += 1,
                        Err(status) if was_not_seen(&status) => return (answered, Instant::now()),
                        Err(status) => panic!("after {answered} answers: {status:?}"),
                    }
                    sleep(Duration::from_millis(60)).await;
                }
            })
        })
        .collect();
    let request = WatchRequest {
        place: Some(Place {
            name: "Oslo".to_owned(),
        }),
        reports: 0,
    };
    let mut reports = client(&address, 5)
        .await
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    let watcher = tokio::spawn(async move {
        let mut last = 0;
        while let Some(report) = reports.message().await.expect("the stream does not break") {
            assert_eq!(report.serial, last + 1);
            last = report.serial;
        }
        last
    });
    sleep(Duration::from_millis(500)).await;
    let signalled = Instant::now();
    app.signal("TERM");
    let mut answered = 0;
    for caller in callers {
        let (answers, until) = timeout(Program::PATIENCE, caller)
            .await
            .expect("it ends")
            .unwrap();
        answered += answers;
        let served = until - signalled;
        assert!(
            served >= Duration::from_secs(5),
            "everybody is served while it announces: {served:?}"
        );
    }
    assert!(answered > 40, "{answered}");
    let reports = timeout(Program::PATIENCE, watcher)
        .await
        .expect("it ends")
        .unwrap();
    assert!(reports > 40, "{reports}");
    let (code, lines) = tokio::task::spawn_blocking(|| app.ended()).await.unwrap();
    assert_eq!(code, Some(0), "{lines:?}");
    let report = lines
        .iter()
        .find_map(|line| line.strip_prefix("ended: "))
        .expect("a report");
    assert!(report.contains(" 0 forced, 0 leaked"), "{report}");
}
