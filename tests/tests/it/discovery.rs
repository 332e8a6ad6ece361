//! From a name to an answer: a resolver, a cache, a balance, and around each endpoint what it has for itself.
//!
//! The closures that make an endpoint's service are meant to be copied. Each is called once for an instance, and again
//! if its service is finished; what it makes is cloned for each request.

use std::{net::SocketAddr, time::Duration};

use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Status,
    transport::{Channel, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, balance::p2c,
    limit::ConcurrencyLimitLayer, load::Constant,
};
use tower_circuit::CircuitGateLayer;
use tower_lease::LeaseLayer;
use tower_outcome::{EjectionBudget, Refusal, classify};
use tower_resolve::{
    Balance, CachedResolver, DiscoverEndpoints, Endpoint, Resolve, StaticResolver,
    policy::RoundRobin,
};

use crate::parts::{AnyBody, PATIENCE, circuit, full, held_lease};

/// The request, at that address.
fn at(addr: SocketAddr, mut request: Request<AnyBody>) -> Request<AnyBody> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let uri = Uri::builder()
        .scheme("http")
        .authority(addr.to_string())
        .path_and_query(path)
        .build();
    *request.uri_mut() = uri.expect("made of parts that were valid");
    request
}

/// A server that answers with its name.
async fn http_server(name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        // The connections end with the server.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |_: Request<Incoming>| async move {
                Ok::<_, std::convert::Infallible>(Response::new(full(name)))
            });
            connections.spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    (addr, server)
}

async fn grpc_server() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .add_service(health)
        .serve_with_incoming(TcpListenerStream::new(listener));
    (addr, tokio::spawn(async move { server.await.unwrap() }))
}

fn names(addrs: &[SocketAddr]) -> CachedResolver<StaticResolver> {
    let endpoints = addrs
        .iter()
        .map(|addr| Endpoint::new(addr.to_string(), *addr));
    CachedResolver::new(StaticResolver::new().with("echo", endpoints))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hypers_client_around_each_endpoint_with_a_circuit_a_limit_and_a_lease() {
    let ((one, server), (two, _two)) = (http_server("one").await, http_server("two").await);
    let (lease, keeper) = held_lease().await;
    // hyper-util's client with its pool, shared by all endpoints; the endpoint has the address.
    let client: Client<HttpConnector, AnyBody> = Client::builder(TokioExecutor::new()).build_http();

    // From the outside in: an endpoint is used only while this client holds its lease, for ten requests at a time, and
    // while its circuit is closed. All three are gates, so the balance goes round what is not ready.
    let gate = LeaseLayer::new(&lease).gate();
    let make = move |endpoint: &Endpoint, _: &EjectionBudget| {
        let addr = endpoint.addr();
        ServiceBuilder::new()
            .layer(gate.clone())
            .layer(ConcurrencyLimitLayer::new(10))
            .layer(CircuitGateLayer::new(circuit()).classify(classify::Http::new()))
            .map_request(move |request| at(addr, request))
            .service(client.clone())
    };
    let updates = names(&[one, two]).resolve("echo");
    let (balance, driver) = Balance::builder()
        .http()
        .policy(RoundRobin::new())
        .build(updates, make);
    let driver = tokio::spawn(driver);
    let ask = async || {
        let request = Request::get("/hello?x=1").body(full("")).unwrap();
        let response = timeout(PATIENCE, balance.clone().oneshot(request))
            .await
            .expect("an answer in time")?;
        let text = response.into_body().collect().await?.to_bytes();
        Ok::<_, BoxError>(String::from_utf8_lossy(&text).into_owned())
    };
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(ask().await.unwrap());
    }
    assert!(
        ["one", "two"]
            .iter()
            .all(|name| answers.iter().any(|answer| answer == name)),
        "{answers:?}"
    );

    // One of them dies: its circuit opens at the second consecutive failure, and it gets no more requests.
    server.abort();
    let mut failures = 0;
    for _ in 0..20 {
        failures += usize::from(ask().await.is_err());
    }
    assert!((1..=3).contains(&failures), "{failures}");
    assert_eq!(ask().await.unwrap(), "two");

    // The lease ends: no endpoint is eligible, and requests are rejected.
    keeper.abort();
    let _ = keeper.await;
    let error = ask().await.unwrap_err();
    assert_eq!(
        Refusal::find(&*error).expect("our own").code(),
        "no-endpoints",
        "{error}"
    );
    driver.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonics_channel_around_each_endpoint() {
    let ((one, server), (two, _two)) = (grpc_server().await, grpc_server().await);
    // A channel connects at the first request, and again after a failure; the circuit judges by the status.
    let make = |endpoint: &Endpoint, _: &EjectionBudget| {
        let channel = Channel::from_shared(format!("http://{}", endpoint.addr()))
            .expect("an address is a valid URI");
        let channel = channel
            .connect_timeout(Duration::from_secs(1))
            .connect_lazy();
        CircuitGateLayer::new(circuit())
            .classify(classify::Grpc::new())
            .layer(channel)
    };
    let updates = names(&[one, two]).resolve("echo");
    let (balance, driver) = Balance::builder()
        .policy(RoundRobin::new())
        .build(updates, make);
    let driver = tokio::spawn(driver);
    // The balance is a client's channel as it is: `Clone`, and without a buffer.
    let client = HealthClient::new(balance.clone());
    let check = async || {
        let mut client = client.clone();
        let answer = timeout(PATIENCE, client.check(HealthCheckRequest::default()))
            .await
            .expect("an answer in time")?;
        Ok::<_, Status>(answer.into_inner().status)
    };
    for _ in 0..10 {
        assert_eq!(check().await.unwrap(), 1);
    }
    let picks: Vec<_> = balance
        .snapshot()
        .endpoints
        .iter()
        .map(|endpoint| endpoint.picks)
        .collect();
    assert!(
        picks.len() == 2 && picks.iter().all(|picks| *picks >= 2),
        "{picks:?}"
    );
    server.abort();
    let mut failures = 0;
    for _ in 0..20 {
        failures += usize::from(check().await.is_err());
    }
    assert!(
        failures <= 3,
        "the circuit opens at the second in a row: {failures}"
    );
    assert_eq!(check().await.unwrap(), 1);
    driver.abort();
}

/// With Tower's balance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn towers_balance_over_the_same_endpoints() {
    let ((one, _one), (two, _two)) = (http_server("one").await, http_server("two").await);
    let client: Client<HttpConnector, AnyBody> = Client::builder(TokioExecutor::new()).build_http();
    let discover =
        DiscoverEndpoints::new(names(&[one, two]).resolve("echo"), |endpoint: &Endpoint| {
            let addr = endpoint.addr();
            let client = client.clone().map_request(move |request| at(addr, request));
            Constant::new(
                CircuitGateLayer::new(circuit())
                    .classify(classify::Http::new())
                    .layer(client),
                1,
            )
        });
    let mut balance = p2c::Balance::new(discover);
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let balance = timeout(PATIENCE, balance.ready())
            .await
            .expect("ready in time")
            .unwrap();
        let response = balance
            .call(Request::get("/").body(full("")).unwrap())
            .await
            .unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        answers.insert(text);
    }
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), ["one", "two"]);
}
