//! A client with two attempts per request: it repeats a request that the server failed to answer, but not one that a local layer
//! rejected. At the edge, errors become HTTP responses.
//!
//! `cargo run -p tower-outcome --example retry`

use std::{io, time::Duration};

use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_layer::Layer as _;
use tower_outcome::{BoxError, Class, Refusal, RespondLayer};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let client = ServiceBuilder::new().service(service_fn(send));
    let retrying = service_fn(move |request: Request<()>| async move {
        let again = request.clone();
        match client.oneshot(request).await {
            Err(error) if may_retry(&error) => {
                println!("  {error}: second attempt");
                client.oneshot(again).await
            }
            result => result,
        }
    });
    let edge = RespondLayer::new().layer(retrying);
    for path in ["/", "/broken", "/limited"] {
        println!("GET {path}");
        let response = edge.clone().oneshot(Request::get(path).body(())?).await?;
        let retry_after = response.headers().get("retry-after");
        println!("  {}, retry-after: {retry_after:?}", response.status());
    }
    Ok(())
}

fn may_retry(error: &BoxError) -> bool {
    Refusal::find(&**error).is_none()
}

/// In place of a network: one path works, one is broken, and one is rejected by a rate limit in this process.
async fn send(request: Request<()>) -> Result<Response<String>, BoxError> {
    match request.uri().path() {
        "/broken" => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        "/limited" => {
            let refusal = Refusal::new(Class::Limited, "rate");
            Err(refusal
                .with_retry_after(Some(Duration::from_millis(1_500)))
                .into())
        }
        _ => Ok(Response::new("hello".to_owned())),
    }
}
