//! A minimal proxy with hyper: the lower bound for the cost of a gateway.
//!
//! It takes HTTP/1.1 and HTTP/2 without TLS, asks one backend over pooled HTTP/1.1 connections, streams both ways, and
//! does nothing else: no limit, no balance, no deadline, no header looked at.
#![forbid(unsafe_code)]

use std::{convert::Infallible, io, net::SocketAddr};

use clap::Parser;
use http_body_util::{Either, Empty};
use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tower_benches::rig;

#[derive(Parser)]
struct Args {
    /// Address of the backend, for example 127.0.0.1:9000
    backend: SocketAddr,
}

fn main() -> io::Result<()> {
    let backend = Args::parse().backend;
    rig::runtime()?.block_on(async {
        let client = upstream();
        rig::serve(move |stream| {
            let client = client.clone();
            async move {
                let service = service_fn(move |request| forward(client.clone(), backend, request));
                // A client that goes away in the middle is no business of a proxy's.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await
    })
}

type Upstream = Client<HttpConnector, Incoming>;

fn upstream() -> Upstream {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn forward(
    client: Upstream,
    backend: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>, Infallible> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("http://{backend}{path}")
        .parse::<Uri>()
        .expect("a path of a valid URI");
    *request.version_mut() = Version::HTTP_11;
    Ok(match client.request(request).await {
        Ok(response) => response.map(Either::Left),
        Err(error) => {
            eprintln!("upstream: {error}");
            let mut response = Response::new(Either::Right(Empty::new()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    })
}
