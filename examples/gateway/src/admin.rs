//! The operators' port: is it alive, is it ready, what is it doing, and the demo's kill switch.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};
use tower::service_fn;
use tower_circuit::State;
use tower_drain::{BoundListener, Drain, Http, RequestBody, Server};
use tower_resolve::balance::{BalanceSnapshot, EndpointSnapshot};

use crate::{demo::Demo, gateway::Gateway, metrics::Page};

/// The admin server: it lives until it is stopped, which is after the gateway has drained.
#[derive(Debug)]
pub(crate) struct Admin {
    drain: Drain,
    server: JoinHandle<()>,
}

/// What the pages are made of.
struct Office {
    gateway: Gateway,
    look: Box<dyn Fn() -> BalanceSnapshot + Send + Sync>,
    demo: Option<Arc<Demo>>,
}

type Answer = Response<Full<Bytes>>;

// === impl Admin ===

impl Admin {
    pub(crate) fn start(
        listener: BoundListener,
        gateway: Gateway,
        look: impl Fn() -> BalanceSnapshot + Send + Sync + 'static,
        demo: Option<Arc<Demo>>,
    ) -> Self {
        let drain = Drain::builder()
            .announce(Duration::ZERO)
            .close(LAST_PAGE)
            .force(Duration::ZERO)
            .build();
        let office = Arc::new(Office {
            gateway,
            look: Box::new(look),
            demo,
        });
        let app = service_fn(move |request| {
            let office = office.clone();
            async move { Ok::<_, Infallible>(office.answer(request).await) }
        });
        let server =
            Server::new(&drain, listener).run(Http::new(&drain, app).last_chance(Duration::ZERO));
        let server = tokio::spawn(async {
            if let Err(error) = server.await {
                tracing::error!(%error, "the admin port broke");
            }
        });
        Self { drain, server }
    }

    pub(crate) async fn stop(self) {
        self.drain.shutdown();
        let _ = self.server.await;
    }
}

/// How long a page under way may take once the gateway has ended.
const LAST_PAGE: Duration = Duration::from_secs(1);

// === impl Office ===

impl Office {
    async fn answer(&self, request: Request<RequestBody>) -> Answer {
        // The connection leaves out the body of an answer to `HEAD`.
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/live" | "/ready" | "/metrics" | "/topology" if !reads => not_allowed("GET, HEAD"),
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready(),
            "/metrics" => page("text/plain; version=0.0.4", self.metrics()),
            "/topology" => page("application/json", format!("{:#}\n", self.topology())),
            path if path.starts_with("/replicas/") && request.method() == Method::POST => {
                self.order(path).await
            }
            path if path.starts_with("/replicas/") && self.demo.is_some() => not_allowed("POST"),
            _ => text(StatusCode::NOT_FOUND, PAGES),
        }
    }

    /// Ready: no drain has begun, and an endpoint can be reached.
    fn ready(&self) -> Answer {
        if !self.gateway.drain.is_ready() {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{}\n", self.gateway.drain.phase()),
            );
        }
        match (self.look)().ready() {
            0 => text(StatusCode::SERVICE_UNAVAILABLE, "no healthy replica\n"),
            _ => text(StatusCode::OK, "ready\n"),
        }
    }

    async fn order(&self, path: &str) -> Answer {
        let Some(demo) = &self.demo else {
            return text(StatusCode::NOT_FOUND, "only the demo has replicas\n");
        };
        let done = match path
            .strip_prefix("/replicas/")
            .and_then(|rest| rest.split_once('/'))
        {
            Some((name, "kill")) => demo.kill(name).await.map(Ok),
            Some((name, "revive")) => demo.revive(name).await,
            _ => None,
        };
        match done {
            Some(Ok(told)) => text(StatusCode::OK, told),
            Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            None => text(
                StatusCode::NOT_FOUND,
                "POST /replicas/NAME/kill or /replicas/NAME/revive, NAME as in /topology\n",
            ),
        }
    }

    fn topology(&self) -> Value {
        let balance = (self.look)();
        json!({
            "generation": balance.generation.map(|generation| generation.value),
            "degraded": balance.degraded,
            "waiting": balance.waiting,
            "endpoints": balance.endpoints.iter().map(|endpoint| self.endpoint(endpoint)).collect::<Vec<_>>(),
        })
    }

    fn endpoint(&self, seen: &EndpointSnapshot) -> Value {
        let id = seen.endpoint.id().as_str();
        let lease = seen.endpoint.epoch().map(|token| {
            let state = self.demo.as_ref().and_then(|demo| demo.lease_state(id));
            json!({ "token": token, "state": state })
        });
        json!({
            "id": id,
            "address": seen.endpoint.addr().to_string(),
            "ready": seen.ready,
            "in_flight": seen.in_flight,
            "picks": seen.picks,
            "failures": seen.failures,
            "lease": lease,
            "circuit": self.circuit(id),
        })
    }

    fn circuit(&self, id: &str) -> Option<Value> {
        let circuit = self.gateway.circuits.get(id)?.snapshot();
        let in_millis =
            |at: Instant| at.saturating_duration_since(Instant::now()).as_millis() as u64;
        Some(json!({
            "state": circuit.state.as_str(),
            "consecutive_failures": circuit.consecutive_failures,
            "trips": circuit.trips,
            "last_reason": circuit.last_reason.map(|reason| reason.to_string()),
            "next_probe_in_ms": circuit.next_probe_at.map(in_millis),
        }))
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        self.gateway.metrics.tell(&mut page);
        self.tell_connections(&mut page);
        self.tell_endpoints(&(self.look)(), &mut page);
        page.into_text()
    }

    fn tell_connections(&self, page: &mut Page) {
        let drain = self.gateway.drain.snapshot();
        page.head("gateway_ready", "gauge", "Whether new clients are welcome.");
        page.line(
            "gateway_ready",
            &[],
            u8::from(self.gateway.drain.is_ready()),
        );
        page.head(
            "gateway_requests_in_flight",
            "gauge",
            "Requests whose response has not ended.",
        );
        page.line("gateway_requests_in_flight", &[], drain.requests);
        page.head("gateway_connections", "gauge", "Client connections.");
        page.line("gateway_connections", &[], self.gateway.connections.open());
        page.head(
            "gateway_connections_refused_total",
            "counter",
            "Connections beyond the limit.",
        );
        page.line(
            "gateway_connections_refused_total",
            &[],
            self.gateway.connections.refused(),
        );
        if let Some(clients) = self.gateway.clients() {
            page.head(
                "gateway_clients",
                "gauge",
                "Clients whose limit is remembered.",
            );
            page.line("gateway_clients", &[], clients.keys);
            page.head(
                "gateway_clients_evicted_total",
                "counter",
                "Clients forgotten to make room.",
            );
            page.line("gateway_clients_evicted_total", &[], clients.evictions);
        }
    }

    fn tell_endpoints(&self, balance: &BalanceSnapshot, page: &mut Page) {
        page.head(
            "gateway_topology_generation",
            "gauge",
            "The generation of the topology in use.",
        );
        page.line(
            "gateway_topology_generation",
            &[],
            balance.generation.map_or(0, |generation| generation.value),
        );
        page.head(
            "gateway_requests_waiting",
            "gauge",
            "Requests that wait for an endpoint.",
        );
        page.line("gateway_requests_waiting", &[], balance.waiting);
        let mut each = |name: &str,
                        kind: &str,
                        help: &str,
                        value: &dyn Fn(&EndpointSnapshot) -> Option<u64>| {
            page.head(name, kind, help);
            for endpoint in &balance.endpoints {
                if let Some(value) = value(endpoint) {
                    page.line(name, &[("endpoint", endpoint.endpoint.id())], value);
                }
            }
        };
        each(
            "gateway_endpoint_ready",
            "gauge",
            "Whether an endpoint can be given requests.",
            &|seen| Some(u64::from(seen.ready)),
        );
        each(
            "gateway_endpoint_in_flight",
            "gauge",
            "Requests an endpoint has.",
            &|seen| Some(seen.in_flight.into()),
        );
        each(
            "gateway_endpoint_picks_total",
            "counter",
            "Requests given to an endpoint.",
            &|seen| Some(seen.picks),
        );
        each(
            "gateway_endpoint_failures_total",
            "counter",
            "Of those, the ones that failed or came back unsent.",
            &|seen| Some(seen.failures),
        );
        each(
            "gateway_circuit_open",
            "gauge",
            "0 closed, 1 open, 2 half-open.",
            &|seen| {
                Some(
                    match self
                        .gateway
                        .circuits
                        .get(seen.endpoint.id().as_str())?
                        .state()
                    {
                        State::Closed => 0,
                        State::Open { .. } => 1,
                        State::HalfOpen => 2,
                    },
                )
            },
        );
        each(
            "gateway_circuit_trips_total",
            "counter",
            "How often a circuit opened.",
            &|seen| {
                Some(
                    self.gateway
                        .circuits
                        .get(seen.endpoint.id().as_str())?
                        .snapshot()
                        .trips,
                )
            },
        );
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Office").finish_non_exhaustive()
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = page("text/plain; charset=utf-8", text);
    *response.status_mut() = status;
    response
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{allowed} only\n"));
    response
        .headers_mut()
        .insert(ALLOW, http::HeaderValue::from_static(allowed));
    response
}

fn page(content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

const PAGES: &str = "GET /live, /ready, /metrics, /topology; in the demo also POST /replicas/NAME/kill and /replicas/NAME/revive\n";
