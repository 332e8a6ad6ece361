//! The same small app on three servers: tower-drain with all its limits, `axum::serve`, and an accept loop over hyper-util
//! as its documentation shows it.
#![forbid(unsafe_code)]

use std::{future::IntoFuture, io, net::Ipv4Addr, time::Duration};

use axum::{Router, routing::get};
use clap::{Parser, ValueEnum};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_benches::rig;
use tower_drain::{ConnectionLimit, Drain, DrainLayer, Http, Server};

#[derive(Parser)]
struct Args {
    /// Which server
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Drain,
    /// With a `DrainLayer` too, which it does not need
    DrainLayered,
    Axum,
    Hyper,
}

fn main() -> io::Result<()> {
    let kind = Args::parse().kind;
    rig::runtime()?.block_on(serve(kind))
}

async fn serve(kind: Kind) -> io::Result<()> {
    let app = Router::new().route("/", get(|| async { "hello" }));
    let mut end = signal(SignalKind::terminate())?;
    match kind {
        Kind::Hyper => {
            rig::serve(move |stream| {
                let service = TowerToHyperService::new(app.clone());
                async move {
                    // A client that goes away in the middle is no business of a server's.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                }
            })
            .await
        }
        Kind::Axum => {
            let listener = axum::serve::ListenerExt::tap_io(listen().await?, |stream| {
                let _ = stream.set_nodelay(true);
            });
            let leave = async move {
                end.recv().await;
            };
            axum::serve(listener, app)
                .with_graceful_shutdown(leave)
                .into_future()
                .await
        }
        Kind::Drain | Kind::DrainLayered => {
            let drain = Drain::builder().announce(Duration::ZERO).build();
            let app = if matches!(kind, Kind::Drain) {
                app
            } else {
                app.layer(DrainLayer::new(&drain))
            };
            let limit = ConnectionLimit::default();
            let server = Server::new(&drain, listen().await?)
                .limit(&limit)
                .run(Http::new(&drain, app));
            tokio::spawn(async move {
                end.recv().await;
                drain.shutdown();
            });
            server.await.map(|_| ())
        }
    }
}

async fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(listener)
}
