//! `RespondLayer`: refusals by their class, other errors by the setting, never an error.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_layer::Layer;
use tower_outcome::{
    BoxError, Class, Outcome, Refusal, RespondLayer,
    classify::{Classify, ClassifyResponse, Http},
    refuse,
};
use tower_service::Service;

const NO_ENDPOINTS: Refusal = Refusal::new(Class::Unavailable, "no-endpoints");

/// Fails in `poll_ready` or in `call`, with a refusal or with another error.
#[derive(Clone, Copy)]
struct Failing {
    unready: bool,
    error: fn() -> BoxError,
}

impl Service<Request<()>> for Failing {
    type Response = Response<String>;
    type Error = BoxError;
    type Future = Ready<Result<Response<String>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(if self.unready {
            Err((self.error)())
        } else {
            Ok(())
        })
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(!self.unready, "called though it is not ready");
        ready(Err((self.error)()))
    }
}

fn refused() -> BoxError {
    NO_ENDPOINTS.into()
}

fn reset() -> BoxError {
    "connection reset by 10.0.0.7".into()
}

async fn respond<S, B>(mut service: S, request: Request<()>) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .unwrap();
    service.call(request).await.unwrap()
}

fn verdict<B>(response: &Response<B>) -> Option<Outcome> {
    let classifier = Http::new().classify(&Request::new(()));
    ClassifyResponse::<_, Infallible>::head(&classifier, response)
}

#[tokio::test]
async fn a_refusal_from_readiness_or_from_a_call_has_the_status_of_its_class() {
    for unready in [false, true] {
        let service = RespondLayer::new().layer(Failing {
            unready,
            error: refused,
        });
        let response = respond(service, Request::new(())).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.extensions().get(), Some(&NO_ENDPOINTS));
        assert_eq!(verdict(&response), Some(Outcome::IGNORE));
    }
}

#[tokio::test]
async fn any_other_error_is_a_502_that_counts_as_a_failure_further_out() {
    for unready in [false, true] {
        let service = RespondLayer::new().layer(Failing {
            unready,
            error: reset,
        });
        let response = respond(service, Request::new(())).await;
        assert_eq!(response.status(), 502);
        assert_eq!(response.extensions().get::<Refusal>(), None);
        assert_eq!(verdict(&response), Some(Outcome::FAILURE));
        let text = format!("{response:?}");
        assert!(!text.contains("10.0.0.7"), "the client must not receive it");
    }
}

#[tokio::test]
async fn other_errors_and_the_format_of_the_response_can_be_set() {
    let layer = RespondLayer::new()
        .otherwise(Refusal::new(Class::Internal, "internal"))
        .with(refuse::Http::new().problem_json());
    let failing = Failing {
        unready: false,
        error: reset,
    };
    let response = respond(layer.layer(failing), Request::new(())).await;
    assert_eq!(response.status(), 500);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
}

#[tokio::test]
async fn a_grpc_request_gets_a_grpc_status() {
    let request = Request::post("/")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let service = RespondLayer::new().layer(Failing {
        unready: false,
        error: refused,
    });
    let response = respond(service, request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
}

#[tokio::test]
async fn an_error_of_readiness_becomes_one_response_and_is_not_cloned() {
    let mut service = RespondLayer::new().layer(Failing {
        unready: true,
        error: refused,
    });
    let polled = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
    polled.unwrap();
    let clone = service.clone();
    assert_eq!(
        service.call(Request::new(())).await.unwrap().status(),
        503,
        "the inner service is not called"
    );
    assert_eq!(respond(clone, Request::new(())).await.status(), 503);
}
