use std::{
    fmt,
    hash::Hash,
    mem,
    task::{Context, Poll, ready},
};

use tower_layer::Layer;
use tower_outcome::{
    classify::{self, AnyErr, Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::{self, Fail, Refuse},
};
use tower_service::Service;

use crate::{
    CustomClassify, DefaultClassify, KeyedCircuits, Permit, ResponseFuture, future::RecordedCall,
    handling::Handling,
};

/// Adds [`KeyedCircuits`] in front of a service: each request is admitted or rejected by the circuit of its key.
///
/// ```
/// use http::{Request, uri::Authority};
/// use tower::{Layer, service_fn};
/// use tower_circuit::{Circuit, KeyedCircuitLayer, KeyedCircuits};
///
/// let hosts = KeyedCircuits::<Option<Authority>>::new(Circuit::builder());
/// let by_host = |request: &Request<String>| request.uri().authority().cloned();
/// let client = KeyedCircuitLayer::new(&hosts, by_host)
///     .layer(service_fn(async |_: Request<String>| Ok::<_, std::io::Error>(())));
/// ```
///
/// Nothing is allocated for an admitted request if making its key allocates nothing (a number, an `Arc<str>`, a part of the
/// URI).
///
/// The last type parameter is whether a classification was set; [`respond`](Self::respond) keeps one that was.
#[derive(Clone)]
pub struct KeyedCircuitLayer<K, F, C = AnyErr, R = Fail, N = DefaultClassify> {
    circuits: KeyedCircuits<K>,
    key: F,
    handling: Handling<C, R, N>,
}

/// Calls the inner service while the circuit of the request's key admits it. Made by [`KeyedCircuitLayer`].
///
/// It is ready when the inner service is, because the circuit depends on the request. A request that is rejected has used up
/// this readiness.
pub struct KeyedCircuitService<S, K, F, C = AnyErr, R = Fail> {
    inner: S,
    circuits: KeyedCircuits<K>,
    key: F,
    handling: Handling<C, R>,
    ready: bool,
}

// === impl KeyedCircuitLayer ===

impl<K, F> KeyedCircuitLayer<K, F> {
    /// Rejects with an error, and classifies any `Err` as a failure. Accepts `circuits` or `&circuits`.
    pub fn new(circuits: impl Into<KeyedCircuits<K>>, key: F) -> Self {
        Self {
            circuits: circuits.into(),
            key,
            handling: Handling::new(),
        }
    }
}

impl<K, F, C, R> KeyedCircuitLayer<K, F, C, R, DefaultClassify> {
    /// As [`CircuitLayer::respond`](crate::CircuitLayer::respond).
    pub fn respond(self) -> KeyedCircuitLayer<K, F, classify::Auto, refuse::Auto, DefaultClassify> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            handling: self.handling.respond(),
        }
    }
}

impl<K, F, C, R> KeyedCircuitLayer<K, F, C, R, CustomClassify> {
    /// As [`CircuitLayer::respond`](crate::CircuitLayer::respond): keeps the classification that was set.
    pub fn respond(self) -> KeyedCircuitLayer<K, F, C, refuse::Auto, CustomClassify> {
        self.respond_with(refuse::Auto::new())
    }
}

impl<K, F, C, R, N> KeyedCircuitLayer<K, F, C, R, N> {
    /// What a failure is. Default: [`AnyErr`], and [`classify::Auto`] with [`respond`](Self::respond). HTTP and gRPC clients
    /// need [`classify::Auto`].
    pub fn classify<T>(self, classify: T) -> KeyedCircuitLayer<K, F, T, R, CustomClassify> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            handling: self.handling.classify(classify),
        }
    }

    /// Rejects with another response, see [`refuse`]. The classification stays as it is; the callers are clients, as with
    /// [`respond`](Self::respond).
    pub fn respond_with<T>(self, refuse: T) -> KeyedCircuitLayer<K, F, C, T, N> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            handling: self.handling.respond_with(refuse),
        }
    }
}

impl<S, K, F: Clone, C: Clone, R: Clone, N> Layer<S> for KeyedCircuitLayer<K, F, C, R, N> {
    type Service = KeyedCircuitService<S, K, F, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyedCircuitService {
            inner,
            circuits: self.circuits.clone(),
            key: self.key.clone(),
            handling: self.handling.of_service(),
            ready: false,
        }
    }
}

impl<K, F, C, R, N> fmt::Debug for KeyedCircuitLayer<K, F, C, R, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuitLayer")
            .field("circuits", &self.circuits)
            .finish_non_exhaustive()
    }
}

// === impl KeyedCircuitService ===

impl<S, K, F, C, R> KeyedCircuitService<S, K, F, C, R> {
    /// The circuits.
    pub fn circuits(&self) -> &KeyedCircuits<K> {
        &self.circuits
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it bypasses the circuits.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, without the circuits.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, K, F, C, R, Req> Service<Req> for KeyedCircuitService<S, K, F, C, R>
where
    S: Service<Req>,
    K: Hash + Eq + Clone,
    F: Fn(&Req) -> K,
    C: Classify<Req>,
    C::Classifier: ClassifyResponse<S::Response, S::Error>,
    <C::Classifier as ClassifyResponse<S::Response, S::Error>>::Scope:
        Scope<S::Response, Judge<C::Classifier, Permit>>,
    R: Refuse<Req, Judged<C::Classifier, Permit, S::Response, S::Error>, S::Error> + Clone,
{
    type Response = R::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S::Future, C::Classifier, R, R::Context, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        self.ready = false;
        Poll::Ready(match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => {
                self.ready = true;
                Ok(())
            }
            Err(error) => R::pass(Err(error)).map(drop),
        })
    }

    fn call(&mut self, request: Req) -> Self::Future {
        assert!(
            mem::take(&mut self.ready),
            "`call` without a successful `poll_ready` of this clone"
        );
        let circuit = self.circuits.get(&(self.key)(&request));
        match circuit.admit_call(self.handling.caller) {
            Ok(permit) => ResponseFuture::admitted(RecordedCall::new(
                &mut self.inner,
                &self.handling.classify,
                request,
                permit,
            )),
            Err(open) => ResponseFuture::rejected(&self.handling.refuse, &request, open),
        }
    }
}

impl<S: Clone, K, F: Clone, C: Clone, R: Clone> Clone for KeyedCircuitService<S, K, F, C, R> {
    /// A clone shares the circuits, and is not ready.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            circuits: self.circuits.clone(),
            key: self.key.clone(),
            handling: self.handling.of_service(),
            ready: false,
        }
    }
}

impl<S: fmt::Debug, K, F, C, R> fmt::Debug for KeyedCircuitService<S, K, F, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuitService")
            .field("inner", &self.inner)
            .field("circuits", &self.circuits)
            .finish_non_exhaustive()
    }
}
