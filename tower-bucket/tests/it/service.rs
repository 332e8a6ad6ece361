//! The layer around a strict inner service, in paused time.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use testkit::{Answer, Probe, ProbeHandle, Wakes, contract};
use tower::{BoxError, Layer, Service, ServiceExt as _, util::BoxCloneSyncService};
use tower_bucket::{
    BucketLayer, ClientIp, Exhausted, Header, KeyedLimiter, Limiter, OnMissingKey, Path, PeerIp,
    ProxiedIp, Quota,
};
use tower_outcome::{
    Class, PeerAddr, Refusal,
    refuse::{Custom, Grpc, Http, Protocol},
};

const FIVE_A_SECOND: Quota = Quota::per_second(5);
const A_MILLION: Quota = Quota::per_second(1_000_000);

fn request() -> Request<String> {
    Request::new(String::new())
}

fn from(peer: &str) -> Request<String> {
    let mut request = request();
    request
        .extensions_mut()
        .insert(PeerAddr(SocketAddr::new(peer.parse().unwrap(), 4711)));
    request
}

fn grpc(mut request: Request<String>) -> Request<String> {
    *request.method_mut() = http::Method::POST;
    request
        .headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    request
}

fn layered<L: Layer<Probe>>(layer: &L) -> (L::Service, ProbeHandle) {
    let (probe, handle) = Probe::new();
    (layer.layer(probe), handle)
}

async fn call<S: Service<Request<String>>>(
    service: &mut S,
    request: Request<String>,
) -> Result<S::Response, S::Error> {
    service.ready().await?.call(request).await
}

/// Calls until rejected in any way; how many passed before.
async fn pass<S, B>(service: &mut S, mut request: impl FnMut() -> Request<String>) -> usize
where
    S: Service<Request<String>, Response = Response<B>>,
{
    let admitted = |response: Response<B>| {
        response.status() == StatusCode::OK && !response.headers().contains_key("grpc-status")
    };
    for passed in 0..1_000 {
        if !call(service, request()).await.is_ok_and(admitted) {
            return passed;
        }
    }
    panic!("never refused");
}

#[tokio::test(start_paused = true)]
async fn every_layer_keeps_the_contract() {
    let everyone = |_: &Request<String>| Some(());
    contract::check(|probe| BucketLayer::new(Limiter::new(A_MILLION)).layer(probe));
    contract::check(|probe| {
        BucketLayer::new(Limiter::new(A_MILLION))
            .respond()
            .layer(probe)
    });
    contract::check(|probe| {
        BucketLayer::keyed(KeyedLimiter::new(A_MILLION), everyone).layer(probe)
    });
    contract::check(|probe| BucketLayer::per_client(A_MILLION).respond().layer(probe));
}

#[tokio::test(start_paused = true)]
async fn a_client_beyond_its_five_a_second_gets_a_429_and_another_is_not_affected() {
    let (mut service, probe) = layered(&BucketLayer::per_client(FIVE_A_SECOND).respond());
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 5);
    let refused = call(&mut service, from("192.0.2.1")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "rate limit exhausted\n");
    assert_eq!(
        probe.calls(),
        5,
        "what is refused does not reach the inner service"
    );

    assert_eq!(pass(&mut service, || from("192.0.2.2")).await, 5);
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(
        pass(&mut service, || from("192.0.2.1")).await,
        1,
        "one more after a fifth of a second"
    );
}

#[tokio::test(start_paused = true)]
async fn a_grpc_client_gets_resource_exhausted_with_pushback() {
    let (mut service, _probe) = layered(&BucketLayer::per_client(FIVE_A_SECOND).respond());
    assert_eq!(pass(&mut service, || grpc(from("192.0.2.1"))).await, 5);
    tokio::time::advance(Duration::from_micros(50_500)).await;
    let refused = call(&mut service, grpc(from("192.0.2.1"))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!(refused.headers()["content-type"], "application/grpc");
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(
        refused.headers()["grpc-retry-pushback-ms"],
        "150",
        "149.5 ms, rounded up"
    );
    assert_eq!(refused.into_body().collect().await.unwrap().to_bytes(), "");
}

#[tokio::test(start_paused = true)]
async fn one_limiter_serves_both_protocols() {
    let (mut service, _probe) = layered(&BucketLayer::per_client(FIVE_A_SECOND).respond());
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 5);
    let refused = call(&mut service, grpc(from("192.0.2.1"))).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "8");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_found_as_itself_and_as_a_refusal() {
    let (mut service, probe) = layered(&BucketLayer::new(Limiter::new(FIVE_A_SECOND)));
    assert_eq!(pass(&mut service, request).await, 5);
    let error = call(&mut service, request()).await.unwrap_err();
    let exhausted = error.downcast_ref::<Exhausted>().unwrap();
    assert_eq!(exhausted.retry_after(), Some(Duration::from_millis(200)));
    assert_eq!(exhausted.to_string(), "rate limit exhausted");
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.class(), refusal.code()),
        (Class::Limited, "rate-limited")
    );
    assert_eq!(refusal.retry_after(), exhausted.retry_after());
    assert_eq!(probe.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn readiness_costs_no_token_and_an_empty_bucket_no_readiness() {
    let limiter = Limiter::new(FIVE_A_SECOND);
    let (mut service, probe) = layered(&BucketLayer::new(limiter.clone()));
    for _ in 0..100 {
        assert!(service.ready().await.is_ok());
    }
    assert_eq!(limiter.snapshot(), Default::default());
    assert_eq!(pass(&mut service, request).await, 5);
    let polls = probe.polls();
    assert!(
        service.ready().await.is_ok(),
        "refusing is the business of `call`"
    );
    assert_eq!(probe.polls(), polls + 1);

    probe.be_pending();
    let (_, waker) = Wakes::new();
    assert!(
        service
            .poll_ready(&mut std::task::Context::from_waker(&waker))
            .is_pending()
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_has_spent_its_token_and_a_refused_one_spends_none() {
    let limiter = Limiter::new(FIVE_A_SECOND);
    let (mut service, probe) = layered(&BucketLayer::new(limiter.clone()));
    probe.answer(Answer::Hang);
    drop(service.ready().await.unwrap().call(request()));
    assert_eq!((probe.calls(), probe.in_flight()), (1, 0));
    assert_eq!(pass(&mut service, request).await, 4);
    for _ in 0..100 {
        drop(service.ready().await.unwrap().call(request()));
    }
    tokio::time::advance(Duration::from_millis(200)).await;
    assert!(call(&mut service, request()).await.is_ok());
    assert_eq!(
        (limiter.snapshot().allowed, limiter.snapshot().refused),
        (6, 101)
    );
}

#[tokio::test(start_paused = true)]
async fn all_that_one_layer_makes_draws_from_one_limiter() {
    let layer = BucketLayer::per_client(FIVE_A_SECOND).respond();
    let (mut first, _probe) = layered(&layer);
    let (mut second, _probe) = layered(&layer.clone());
    let mut third = second.clone();
    assert_eq!(pass(&mut first, || from("192.0.2.1")).await, 5);
    assert_eq!(pass(&mut second, || from("192.0.2.1")).await, 0);
    assert_eq!(pass(&mut third, || from("192.0.2.1")).await, 0);
    let snapshot = layer.limiter().snapshot();
    assert_eq!(
        (snapshot.allowed, snapshot.refused, snapshot.keys),
        (5, 3, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_client_cannot_get_more_by_changing_its_address() {
    let (mut service, _probe) = layered(&BucketLayer::per_client(FIVE_A_SECOND).respond());
    let mut last = 0;
    let hopping = || {
        last += 1;
        from(&format!("2001:db8::{last:x}"))
    };
    assert_eq!(pass(&mut service, hopping).await, 5);
    assert_eq!(pass(&mut service, || from("2001:db8:0:1::1")).await, 5);
    assert_eq!(pass(&mut service, || from("::ffff:192.0.2.1")).await, 5);
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_shares_a_bucket_or_passes_or_is_rejected_and_never_a_500() {
    let layer = |choice| {
        BucketLayer::per_client(FIVE_A_SECOND)
            .on_missing_key(choice)
            .respond()
    };

    let shared = layer(OnMissingKey::default());
    let (mut service, _probe) = layered(&shared);
    assert_eq!(pass(&mut service, request).await, 5);
    assert_eq!(pass(&mut service, || from("192.0.2.1")).await, 5);
    let snapshot = shared.limiter().snapshot();
    assert_eq!(
        (
            snapshot.allowed,
            snapshot.refused,
            snapshot.keyless,
            snapshot.keys
        ),
        (10, 2, 6, 1)
    );

    let allow = layer(OnMissingKey::Allow);
    let (mut service, _probe) = layered(&allow);
    for _ in 0..100 {
        assert_eq!(
            call(&mut service, request()).await.unwrap().status(),
            StatusCode::OK
        );
    }
    assert_eq!(
        (
            allow.limiter().snapshot().allowed,
            allow.limiter().snapshot().keyless
        ),
        (100, 100)
    );

    let deny = layer(OnMissingKey::Deny);
    let (mut service, probe) = layered(&deny);
    let refused = call(&mut service, request()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        !refused.headers().contains_key("retry-after"),
        "waiting would not help"
    );
    assert_eq!(
        refused.into_body().collect().await.unwrap().to_bytes(),
        "rate limit key missing\n"
    );
    assert_eq!((deny.limiter().snapshot().refused, probe.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_header_or_a_function_may_be_the_key() {
    let with = |value: &'static str| {
        Request::builder()
            .header("x-tenant", value)
            .body(String::new())
            .unwrap()
    };
    let tenant = Header::new(HeaderName::from_static("x-tenant"));
    let (mut service, _probe) =
        layered(&BucketLayer::keyed(KeyedLimiter::new(FIVE_A_SECOND), tenant).respond());
    assert_eq!(pass(&mut service, || with("one")).await, 5);
    assert_eq!(pass(&mut service, || with("two")).await, 5);

    let length = |request: &Request<String>| Some(request.body().len());
    let (mut service, _probe) =
        layered(&BucketLayer::keyed(KeyedLimiter::new(FIVE_A_SECOND), length).respond());
    assert_eq!(pass(&mut service, || Request::new("one".into())).await, 5);
    assert_eq!(pass(&mut service, || Request::new("two".into())).await, 0);
    assert_eq!(pass(&mut service, || Request::new("three".into())).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_may_be_rendered_by_the_user() {
    let layer = || BucketLayer::new(Limiter::new(FIVE_A_SECOND));
    let problem = layer().respond_with(Http::new().problem_json());
    let (mut service, _probe) = layered(&problem);
    assert_eq!(pass(&mut service, request).await, 5);
    let refused = call(&mut service, request()).await.unwrap();
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );

    let (mut service, _probe) = layered(&layer().respond_with(Grpc));
    assert_eq!(pass(&mut service, request).await, 5);
    assert_eq!(
        call(&mut service, request()).await.unwrap().headers()["grpc-status"],
        "8"
    );

    let teapot = Custom::new(|refusal: &Refusal, _: Protocol| {
        Response::builder()
            .status(418)
            .body(refusal.code().into())
            .unwrap()
    });
    let (mut service, _probe) = layered(&layer().respond_with(teapot));
    assert_eq!(pass(&mut service, request).await, 5);
    assert_eq!(
        call(&mut service, request()).await.unwrap().status(),
        StatusCode::IM_A_TEAPOT
    );
}

#[tokio::test(start_paused = true)]
async fn requests_need_not_be_http() {
    let mut service = BucketLayer::new(Limiter::new(FIVE_A_SECOND)).layer(tower::service_fn(
        async |number: u32| Ok::<_, Infallible>(number + 1),
    ));
    assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
    let boxed: BoxCloneSyncService<u32, u32, BoxError> = BoxCloneSyncService::new(service);
    assert_eq!(boxed.oneshot(2).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_extremes_neither_panic_nor_let_through_what_they_should_not() {
    let fast = Quota::per_second(u32::MAX);
    let slow = Quota::every(Duration::MAX).unwrap();
    let deep = Quota::every(Duration::MAX).unwrap().burst(u32::MAX);
    for quota in [fast, slow, deep] {
        let (mut service, _probe) = layered(&BucketLayer::per_client(quota).respond());
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(
                call(&mut service, from("192.0.2.1"))
                    .await
                    .unwrap()
                    .status()
                    .as_u16(),
            );
            tokio::time::advance(Duration::from_secs(1_000_000_000)).await;
        }
        assert_eq!(
            answers,
            if quota == fast {
                [200, 200, 200]
            } else {
                [200, 429, 429]
            }
        );
    }
}

/// `cargo test -p tower-bucket --test it bytes -- --nocapture` prints it.
#[test]
fn a_hundred_thousand_clients_take_22_bytes_each_at_most() {
    const CLIENTS: u32 = 100_000;
    let mut limiter = None;
    let counted = allocation_counter::measure(|| {
        let made = KeyedLimiter::<ClientIp>::new(Quota::per_hour(1));
        for number in 0..CLIENTS {
            let _ = made.check_key(&ClientIp::from(IpAddr::from(
                (0x0A00_0000 + number).to_be_bytes(),
            )));
        }
        limiter = Some(made);
    });
    let snapshot = limiter.unwrap().snapshot();
    assert!(snapshot.keys > 99_900, "{snapshot:?}");
    let bytes = counted.bytes_current as f64 / snapshot.keys as f64;
    println!("{bytes:.1} bytes a client");
    assert!(
        bytes <= 22.0 && counted.bytes_max == counted.bytes_current as u64,
        "{bytes}, {counted:?}"
    );
}

#[test]
fn a_client_costs_no_allocation_be_it_known_or_new() {
    let mut service = BucketLayer::per_client(Quota::every(Duration::from_nanos(1)).unwrap())
        .layer(tower::service_fn(|_: Request<String>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(())))
        }));
    for peer in ["192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::2"] {
        let request = from(peer);
        let mut answer = None;
        let counted = allocation_counter::measure(|| answer = service.call(request).now_or_never());
        assert!(answer.unwrap().is_ok());
        assert_eq!(counted.count_total, 0, "{peer}");
    }
}

/// All that the READMEs and the table of the crate's documentation recommend, except the fields, whose cost is documented.
#[test]
fn nor_does_a_request_that_passes_under_any_of_the_other_limits() {
    fn allocations<L>(layer: &L, request: Request<String>) -> u64
    where
        L: Layer<Plain>,
        L::Service: Service<Request<String>>,
    {
        let mut service = layer.layer(Plain);
        let mut answer = None;
        let counted = allocation_counter::measure(|| answer = service.call(request).now_or_never());
        assert!(answer.unwrap().is_ok());
        counted.count_total
    }
    let proxied = || {
        let mut request = from("10.0.0.1");
        let headers = request.headers_mut();
        headers.insert(
            "x-forwarded-for",
            "198.51.100.7, 192.0.2.1".parse().unwrap(),
        );
        headers.insert(
            "forwarded",
            "for=198.51.100.7, for=192.0.2.1".parse().unwrap(),
        );
        // As in what a server has read, whose values share one allocation: a clone is a reference.
        headers.insert("x-api-key", HeaderValue::from_static("a"));
        request
    };
    let shared = || BucketLayer::new(Limiter::new(A_MILLION));
    let behind = || ProxiedIp::behind(1);
    let networks = || ProxiedIp::trusting(["10.0.0.0/8".parse().unwrap()]);
    let api_key = || Header::new(HeaderName::from_static("x-api-key"));
    assert_eq!(allocations(&shared(), request()), 0);
    assert_eq!(allocations(&shared().respond(), request()), 0);
    macro_rules! keyed {
        ($($key:expr),*) => {$(
            let layer = BucketLayer::keyed(KeyedLimiter::new(A_MILLION), $key).respond();
            assert_eq!(allocations(&layer, proxied()), 0, stringify!($key));
        )*};
    }
    keyed!(
        behind(),
        behind().forwarded(),
        networks(),
        networks().forwarded(),
        api_key(),
        Path,
        (PeerIp, api_key())
    );
    let both = shared().and(BucketLayer::per_client(A_MILLION));
    let tuned = both
        .clone()
        .cost(|_: &Request<String>| 2)
        .quota_fn(|_: &Request<String>| Some(FIVE_A_SECOND))
        .respond();
    assert_eq!(allocations(&both, proxied()), 0);
    assert_eq!(allocations(&tuned, proxied()), 0);
    assert_eq!(allocations(&shared().shadow(), request()), 0);
}

/// Answers at once.
#[derive(Clone)]
struct Plain;

impl Service<Request<String>> for Plain {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        std::future::ready(Ok(Response::new(())))
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_takes_a_limiter_or_a_reference_to_one() {
    let limiter = Limiter::new(FIVE_A_SECOND);
    let keyed = KeyedLimiter::<ClientIp>::new(FIVE_A_SECOND);
    let (mut one, _probe) =
        layered(&BucketLayer::new(&limiter).and(BucketLayer::keyed(&keyed, PeerIp)));
    let _owned = (
        BucketLayer::new(limiter.clone()),
        BucketLayer::keyed(keyed.clone(), PeerIp),
    );
    assert!(one.ready().await.unwrap().call(request()).await.is_ok());
    assert_eq!(
        (limiter.snapshot().allowed, keyed.snapshot().allowed),
        (1, 1)
    );
}
