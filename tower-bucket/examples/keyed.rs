//! A server with a limit for each API key: five requests a minute, and none without a key. Sends some requests to itself and
//! ends: `cargo run -p tower-bucket --example keyed`.

use std::convert::Infallible;

use http::{HeaderName, HeaderValue, Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bucket::{BucketLayer, Header, KeyedLimiter, OnMissingKey, PolicyName, Quota};

const PER_KEY: PolicyName = PolicyName::new("per-key").unwrap();

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let limiter = KeyedLimiter::<HeaderValue>::new(Quota::per_minute(5));
    let api_key = Header::new(HeaderName::from_static("x-api-key"));
    let layer = BucketLayer::keyed(&limiter, api_key)
        .on_missing_key(OnMissingKey::Deny)
        .rate_limit_headers(PER_KEY)
        .respond();
    let mut service = layer.layer(service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new(String::from("hello")))
    }));

    for key in [Some("alice"); 6].into_iter().chain([Some("bob"), None]) {
        let mut request = Request::new(String::new());
        if let Some(key) = key {
            request
                .headers_mut()
                .insert("x-api-key", HeaderValue::from_static(key));
        }
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        let field = |name| {
            response
                .headers()
                .get(name)
                .map_or("-", |value| value.to_str().unwrap())
        };
        println!(
            "{key:?}: {}, ratelimit {}, retry-after {}",
            response.status(),
            field("ratelimit"),
            field("retry-after"),
        );
    }
    println!("{:?}", limiter.snapshot());
}
