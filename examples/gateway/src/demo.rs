//! The demo's replicas: echo servers that serve only while they hold a lease, and that can be killed.

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{Either, Full};
use tokio::{task::JoinHandle, time::timeout};
use tower::{Layer, service_fn};
use tower_drain::{Drain, Http, ListenerConfig, RequestBody, Server};
use tower_lease::{FencingToken, Holder, Lease, LeaseKey, LeaseLayer, MemoryStore};

use crate::records::LeaseRecords;

/// Three replicas and the store that their leases are in.
#[derive(Debug)]
pub(crate) struct Demo {
    store: MemoryStore,
    replicas: Vec<Replica>,
}

/// A replica that runs, or that was killed.
#[derive(Debug)]
struct Replica {
    name: String,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    lease: Lease,
    drain: Drain,
    keeper: JoinHandle<()>,
    server: JoinHandle<()>,
}

// === impl Demo ===

impl Demo {
    /// Starts the replicas, and waits until each holds its lease.
    pub(crate) async fn start() -> Result<Self, String> {
        let store = MemoryStore::new();
        let starting =
            (1..=REPLICAS).map(|number| Replica::start(&store, format!("echo-{number}")));
        let replicas = join_all(starting)
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { store, replicas })
    }

    /// Finds the replicas by their lease records, under [`PREFIX`].
    pub(crate) fn records(&self) -> LeaseRecords<MemoryStore> {
        LeaseRecords::new(self.store.clone())
    }

    /// Name, address and token of each replica that runs.
    pub(crate) fn replicas(&self) -> Vec<(&str, SocketAddr, u64)> {
        self.replicas.iter().filter_map(Replica::told).collect()
    }

    /// What a replica's lease is like, in words; `None` if it does not run.
    pub(crate) fn lease_state(&self, name: &str) -> Option<String> {
        let running = self.replica(name)?.running.lock().expect("not poisoned");
        running
            .as_ref()
            .map(|running| running.lease.state().to_string())
    }

    /// Ends a replica as a crash would: no release, no goodbye. `None`: there is no such replica.
    pub(crate) async fn kill(&self, name: &str) -> Option<&'static str> {
        let running = self
            .replica(name)?
            .running
            .lock()
            .expect("not poisoned")
            .take();
        let Some(running) = running else {
            return Some("it was not running\n");
        };
        running.kill().await;
        Some("killed: its lease expires in two seconds, requests fail over at once\n")
    }

    /// Starts a replica again, on another port and with another incarnation. `None`: there is no such replica.
    pub(crate) async fn revive(&self, name: &str) -> Option<Result<&'static str, String>> {
        let replica = self.replica(name)?;
        if replica.running.lock().expect("not poisoned").is_some() {
            return Some(Ok("it is running\n"));
        }
        Some(Running::start(&self.store, name).await.map(|running| {
            // Of two revivals at once the later one stays; the earlier one ends by being dropped.
            *replica.running.lock().expect("not poisoned") = Some(running);
            "revived: it serves as soon as it holds its lease\n"
        }))
    }

    /// Ends in good order: each replica gives its lease back.
    pub(crate) async fn stop(&self) {
        let running = self
            .replicas
            .iter()
            .filter_map(|replica| replica.running.lock().expect("not poisoned").take());
        join_all(running.map(|running| async move { running.lease.step_down().await })).await;
    }

    fn replica(&self, name: &str) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.name == name)
    }
}

/// The prefix of the replicas' lease keys.
pub(crate) const PREFIX: &str = "echo/";
const REPLICAS: usize = 3;
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// Short, so that an expiry can be watched; the crate's default is 10 s.
const TTL: Duration = Duration::from_secs(2);
/// How long the first start may take.
const START: Duration = Duration::from_secs(10);

// === impl Replica ===

impl Replica {
    async fn start(store: &MemoryStore, name: String) -> Result<Self, String> {
        let running = Running::start(store, &name).await?;
        match timeout(START, running.lease.held()).await {
            Ok(Ok(_)) => Ok(Self {
                name,
                running: Mutex::new(Some(running)),
            }),
            Ok(Err(_)) | Err(_) => Err(format!("{name} did not get its lease")),
        }
    }

    fn told(&self) -> Option<(&str, SocketAddr, u64)> {
        let running = self.running.lock().expect("not poisoned");
        let running = running.as_ref()?;
        Some((
            &self.name,
            running.address,
            running.lease.token()?.epoch().get(),
        ))
    }
}

// === impl Running ===

impl Running {
    async fn start(store: &MemoryStore, name: &str) -> Result<Self, String> {
        let failed =
            |what: &str, error: &dyn std::fmt::Display| format!("{name} cannot {what}: {error}");
        let listener = ListenerConfig::new()
            .bind(ANY_PORT.into())
            .map_err(|error| failed("listen", &error))?;
        let address = listener
            .local_addr()
            .map_err(|error| failed("listen", &error))?;
        let holder = Holder::new(name)
            .with_payload(address.to_string())
            .map_err(|error| failed("find its address", &error))?;
        let key = LeaseKey::new(&format!("{PREFIX}{name}"))
            .map_err(|error| failed("name its lease", &error))?;
        let (lease, keeper) = Lease::builder(store.clone(), key, holder)
            .ttl(TTL)
            .build()
            .map_err(|error| failed("take a lease", &error))?;
        let drain = Drain::builder().announce(Duration::ZERO).build();
        let echo = {
            let name: std::sync::Arc<str> = name.into();
            service_fn(move |request| echo(name.clone(), request))
        };
        // Twice: connections are accepted and closed without the lease, requests are refused without it.
        let http = Http::new(&drain, LeaseLayer::new(&lease).respond().layer(echo));
        let server = Server::new(&drain, listener).run(LeaseLayer::new(&lease).layer(http));
        // The record can be read before the grant arrives here. A client that is that quick waits in the queue of the socket,
        // which listens already, and is not refused.
        let held = lease.clone();
        let server = async move {
            if held.held().await.is_ok() {
                _ = server.await;
            }
        };
        Ok(Self {
            address,
            lease,
            drain,
            keeper: tokio::spawn(async { _ = keeper.run().await }),
            server: tokio::spawn(server),
        })
    }

    async fn kill(self) {
        // The connections first: the end of the keeper would be a response to requests in flight, and a crash gives none.
        self.server.abort();
        while self.drain.snapshot().guests > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.keeper.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
        self.keeper.abort();
    }
}

type Echo = Response<Either<Full<Bytes>, RequestBody>>;

/// `/delay/MILLIS` answers later; a body comes back as it is; any other path returns the name of the replica and its token.
async fn echo(
    name: std::sync::Arc<str>,
    request: Request<RequestBody>,
) -> Result<Echo, Infallible> {
    if let Some(millis) = request
        .uri()
        .path()
        .strip_prefix("/delay/")
        .and_then(|millis| millis.parse().ok())
    {
        tokio::time::sleep(Duration::from_millis(millis).min(LONGEST_DELAY)).await;
    }
    if request.method() == http::Method::POST {
        return Ok(Response::new(Either::Right(request.into_body())));
    }
    let mut text = name.to_string();
    if let Some(token) = request.extensions().get::<FencingToken>() {
        let _ = write!(text, " token {}", token.epoch());
    }
    text.push('\n');
    Ok(Response::new(Either::Left(Full::new(text.into()))))
}

const LONGEST_DELAY: Duration = Duration::from_secs(10);
