//! The composition: this file is what to copy.

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, stream::BoxStream};
use http::{Request, Response};
use tower::{
    Layer, ServiceBuilder,
    util::{Either, MapResponseLayer},
};
use tower_bucket::{BucketLayer, ClientIp, Keyed, PeerIp, Quota};
use tower_circuit::{Circuit, CircuitGateLayer, Cooldown, Trip};
use tower_drain::{BoundListener, ConnectionLimit, Drain, DrainLayer, Http, RequestBody, Server};
use tower_outcome::{EjectionBudget, body::RespondBody, classify, refuse};
use tower_resolve::{
    Balance, Endpoint, Resolve, StaticResolver, Update,
    policy::{LeastRequest, Policy, RoundRobin},
    upstream::Upstream,
};

use crate::{
    admin::Admin,
    answer::{AnswerLayer, Watched},
    config::{self, Config, Per},
    demo::{Demo, PREFIX},
    forward::{ForwardLayer, REFUSE},
    metrics::Metrics,
    upgrade::NoUpgradeLayer,
};

/// Everything an operator may want to look at while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) drain: Drain,
    pub(crate) metrics: Metrics,
    pub(crate) circuits: Circuits,
    pub(crate) connections: ConnectionLimit,
    per_client: Option<PerClient>,
}

/// A limit per client, which answers 429.
type PerClient = BucketLayer<Keyed<PeerIp, ClientIp>, refuse::Auto>;

/// The circuits of the endpoints, by their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circuits(Arc<Mutex<HashMap<String, Circuit>>>);

/// The drain that a gateway is to be run with.
pub(crate) fn drain(config: &Config) -> Drain {
    let config::Drain {
        announce,
        close,
        force,
    } = config.drain;
    Drain::builder()
        .announce(announce)
        .close(close)
        .force(force)
        .build()
}

/// Runs the gateway until it is drained.
pub(crate) async fn run(
    config: &Config,
    drain: Drain,
    listener: BoundListener,
    admin: BoundListener,
    demo: Option<Demo>,
) -> ExitCode {
    let gateway = Gateway::new(config, drain);
    match config.balance.policy {
        config::Policy::LeastRequest => {
            serve(config, LeastRequest, gateway, listener, admin, demo).await
        }
        config::Policy::RoundRobin => {
            serve(
                config,
                RoundRobin::default(),
                gateway,
                listener,
                admin,
                demo,
            )
            .await
        }
    }
}

async fn serve<P: Policy<Request<RequestBody>>>(
    config: &Config,
    policy: P,
    gateway: Gateway,
    listener: BoundListener,
    admin: BoundListener,
    demo: Option<Demo>,
) -> ExitCode {
    let demo = demo.map(Arc::new);

    // What each endpoint has for itself: a pool of connections, and a circuit before it that closes the gate.
    let (circuits, own) = (gateway.circuits.clone(), config.clone());
    let make = move |endpoint: &Endpoint, budget: &EjectionBudget| {
        let circuit = circuit(&own, endpoint, budget);
        circuits.put(endpoint, &circuit);
        // To backends it speaks HTTP/1, which cannot carry gRPC: its status codes are all there is to judge by.
        let circuit = CircuitGateLayer::new(circuit).classify(classify::Http::new());
        circuit.layer(AnswerLayer::new(own.timeouts.response).layer(upstream(&own, endpoint)))
    };
    let (balance, driver) = Balance::builder()
        .http()
        .policy(policy)
        .max_waiting(config.balance.max_waiting.get())
        .max_wait(config.balance.max_wait)
        .build(updates(config, demo.as_deref()), make);
    let driver = tokio::spawn(driver);

    let app = ServiceBuilder::new()
        .layer(DrainLayer::new(&gateway.drain))
        .layer(gateway.metrics.clone())
        .layer(NoUpgradeLayer)
        .layer(match gateway.per_client.clone() {
            Some(limit) => Either::Left(limit),
            None => Either::Right(MapResponseLayer::new(|response: Response<_>| {
                response.map(RespondBody::inner)
            })),
        })
        .layer(ForwardLayer)
        .service(balance.clone());
    let http = Http::new(&gateway.drain, app).half_close(config.half_close);

    // The admin port has a separate drain, so that it can report the gateway's until the end.
    let admin = Admin::start(
        admin,
        gateway.clone(),
        move || balance.snapshot(),
        demo.clone(),
    );
    let ended = Server::new(&gateway.drain, listener)
        .limit(&gateway.connections)
        .run(http)
        .await;
    admin.stop().await;
    driver.abort();
    if let Some(demo) = demo {
        demo.stop().await;
    }
    match ended {
        Ok(report) => {
            crate::say(format_args!("ended: {report}"));
            if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(CUT)
            }
        }
        Err(error) => {
            eprintln!("the listener broke: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ended by force, and something was cut.
const CUT: u8 = 3;

/// Where the endpoints are: the demo's lease records, or the file's backends, which do not change.
fn updates(config: &Config, demo: Option<&Demo>) -> BoxStream<'static, Update> {
    match demo {
        Some(demo) => demo.records().resolve(PREFIX),
        None => {
            let backends = config.backends.iter();
            let backends =
                backends.map(|backend| Endpoint::new(backend.name.as_str(), backend.address));
            StaticResolver::new()
                .with("backends", backends)
                .resolve("backends")
                .boxed()
        }
    }
}

fn circuit(config: &Config, endpoint: &Endpoint, budget: &EjectionBudget) -> Circuit {
    let config::Circuit {
        consecutive_failures,
        open_for,
        probe_deadline,
    } = config.circuit;
    Circuit::builder()
        .name(endpoint.id().as_str())
        .trip(Trip::consecutive(consecutive_failures.get()))
        .cooldown(Cooldown::new(open_for))
        .probe_deadline(probe_deadline)
        // Clients come and go; an endpoint that hangs is found by its timeout, which is inside.
        .abandoned_is_failure_after(None)
        // Responses that one client provokes from every endpoint must not open all circuits.
        .ejection_budget(budget)
        .build()
}

fn upstream(config: &Config, endpoint: &Endpoint) -> Upstream<Watched<RequestBody>> {
    let config::Upstream {
        max_connections,
        max_idle,
        idle_timeout,
    } = config.upstream;
    Upstream::builder(endpoint.addr())
        .connect_timeout(config.timeouts.connect)
        .max_connections(max_connections)
        .max_idle(max_idle.get())
        .idle_timeout(idle_timeout)
        .build()
}

fn quota(limit: config::PerClient) -> Quota {
    let rate = match limit.per {
        Per::Second => Quota::per_second,
        Per::Minute => Quota::per_minute,
        Per::Hour => Quota::per_hour,
    };
    rate(limit.rate.get()).burst(limit.burst.get())
}

// === impl Gateway ===

impl Gateway {
    fn new(config: &Config, drain: Drain) -> Self {
        Self {
            drain,
            metrics: Metrics::default(),
            circuits: Circuits::default(),
            connections: ConnectionLimit::new(config.max_connections),
            per_client: config
                .per_client
                .map(|limit| BucketLayer::per_client(quota(limit)).respond_with(REFUSE)),
        }
    }

    /// What the limit per client has done; `None` if there is none.
    pub(crate) fn clients(&self) -> Option<tower_bucket::Snapshot> {
        self.per_client
            .as_ref()
            .map(|layer| layer.limiter().snapshot())
    }
}

// === impl Circuits ===

impl Circuits {
    /// A new instance of an endpoint begins with a new circuit. As many as there are names, which the topology bounds.
    fn put(&self, endpoint: &Endpoint, circuit: &Circuit) {
        let mut circuits = self.0.lock().expect("not poisoned");
        circuits.insert(endpoint.id().as_str().to_owned(), circuit.clone());
    }

    pub(crate) fn get(&self, id: &str) -> Option<Circuit> {
        self.0.lock().expect("not poisoned").get(id).cloned()
    }
}
