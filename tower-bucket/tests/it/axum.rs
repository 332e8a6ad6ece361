//! On an axum router: no `HandleErrorLayer`, no `Buffer`, and one limiter however often axum layers.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tower::ServiceExt as _;
use tower_bucket::{BucketLayer, KeyedLimiter, Limiter, PolicyName, Quota};
use tower_outcome::PeerAddr;

const FIVE_A_MINUTE: Quota = Quota::per_minute(5);

fn request<T: Clone + Send + Sync + 'static>(path: &str, peer: T) -> Request<Body> {
    Request::builder()
        .uri(path)
        .extension(peer)
        .body(Body::empty())
        .unwrap()
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 4711))
}

async fn status(app: &Router, request: Request<Body>) -> StatusCode {
    app.clone().oneshot(request).await.unwrap().status()
}

fn app() -> Router {
    Router::new()
        .route("/one", get(async || "one"))
        .route("/two", get(async || "two").post(async || "posted"))
}

#[tokio::test(start_paused = true)]
async fn a_clients_limit_holds_over_all_routes_and_methods() {
    let app = app().layer(BucketLayer::per_client(FIVE_A_MINUTE).respond());
    for path in ["/one", "/two", "/one", "/two", "/nowhere"] {
        assert_ne!(
            status(&app, request(path, PeerAddr(addr(1)))).await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    for path in ["/one", "/two", "/nowhere"] {
        assert_eq!(
            status(&app, request(path, PeerAddr(addr(1)))).await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    assert_eq!(
        status(&app, request("/one", PeerAddr(addr(2)))).await,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_shared_limit_and_one_by_function_stand_on_one_router() {
    let path = |request: &Request<Body>| Some(request.uri().path().to_owned());
    let per_path = BucketLayer::keyed(KeyedLimiter::new(FIVE_A_MINUTE), path).respond();
    let limiter = Limiter::new(Quota::per_minute(8));
    let app = app()
        .layer(per_path)
        .layer(BucketLayer::new(limiter.clone()).respond());
    let mut passed = 0;
    for path in ["/one", "/two"] {
        for _ in 0..5 {
            passed += u32::from(status(&app, request(path, ())).await == StatusCode::OK);
        }
    }
    assert_eq!(
        (
            passed,
            limiter.snapshot().allowed,
            limiter.snapshot().refused
        ),
        (8, 8, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn limits_that_wait_and_write_headers_fit_on_a_router() {
    let all = BucketLayer::new(Limiter::new(Quota::per_minute(600)));
    let layer = all
        .and(BucketLayer::per_client(FIVE_A_MINUTE))
        .rate_limit_headers(PolicyName::default())
        .respond();
    let app = app().layer(layer.wait(Duration::from_secs(30)));
    let begin = tokio::time::Instant::now();
    for turn in 0..7 {
        let response = app
            .clone()
            .oneshot(request("/one", PeerAddr(addr(1))))
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers().contains_key("ratelimit"), "{turn}");
    }
    assert_eq!(
        begin.elapsed().as_secs(),
        24,
        "two of the seven waited for twelve seconds each"
    );
}

#[cfg(feature = "axum")]
#[tokio::test(start_paused = true)]
async fn axums_connect_info_identifies_the_client() {
    use axum::extract::ConnectInfo;

    let layer = BucketLayer::per_client(FIVE_A_MINUTE).respond();
    let app = app().layer(layer.clone());
    for client in [1, 2] {
        for _ in 0..5 {
            assert_eq!(
                status(&app, request("/one", ConnectInfo(addr(client)))).await,
                StatusCode::OK
            );
        }
    }
    assert_eq!(
        status(&app, request("/one", ConnectInfo(addr(1)))).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        (
            layer.limiter().snapshot().keys,
            layer.limiter().snapshot().keyless
        ),
        (2, 0)
    );
}
