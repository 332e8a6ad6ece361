use std::{
    fmt,
    hash::Hash,
    marker::PhantomData,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_outcome::{
    classify::{self, AnyErr, Classify, ClassifyResponse, Judge, Judged, Scope},
    refuse::{self, Fail, Refuse},
};
use tower_service::Service;

use crate::{KeyedCircuits, Named, Permit, ResponseFuture, Unnamed, permit::Callers};

/// Puts [`KeyedCircuits`] in front of a service: each request is admitted or refused by the circuit of its key.
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
/// A key that is cheap to make (a number, an `Arc<str>`, a part of the URI) keeps the admitted path free of allocations.
///
/// The last type says whether a classification has been named; [`respond`](Self::respond) keeps one that has.
#[derive(Clone)]
pub struct KeyedCircuitLayer<K, F, C = AnyErr, R = Fail, N = Unnamed> {
    circuits: KeyedCircuits<K>,
    key: F,
    classify: C,
    refuse: R,
    callers: Callers,
    named: PhantomData<N>,
}

/// Calls the inner service while the circuit of the request's key admits it. Made by [`KeyedCircuitLayer`].
///
/// It is ready when the inner service is: which circuit to ask, only the request will tell. So a request that is refused
/// leaves the inner service's readiness for the next one.
pub struct KeyedCircuitService<S, K, F, C = AnyErr, R = Fail> {
    inner: S,
    circuits: KeyedCircuits<K>,
    key: F,
    classify: C,
    refuse: R,
    callers: Callers,
    ready: bool,
}

// === impl KeyedCircuitLayer ===

impl<K, F> KeyedCircuitLayer<K, F> {
    /// Refuses with an error, and takes any `Err` for a failure. Takes `circuits` or `&circuits`.
    pub fn new(circuits: impl Into<KeyedCircuits<K>>, key: F) -> Self {
        Self {
            circuits: circuits.into(),
            key,
            classify: AnyErr,
            refuse: Fail,
            callers: Callers::Ours,
            named: PhantomData,
        }
    }
}

impl<K, F, C, R> KeyedCircuitLayer<K, F, C, R, Unnamed> {
    /// As [`CircuitLayer::respond`](crate::CircuitLayer::respond).
    pub fn respond(self) -> KeyedCircuitLayer<K, F, classify::Auto, refuse::Auto, Unnamed> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            classify: classify::Auto::new(),
            refuse: refuse::Auto::new(),
            callers: Callers::Clients,
            named: PhantomData,
        }
    }
}

impl<K, F, C, R> KeyedCircuitLayer<K, F, C, R, Named> {
    /// As [`CircuitLayer::respond`](crate::CircuitLayer::respond): keeps the classification that was named.
    pub fn respond(self) -> KeyedCircuitLayer<K, F, C, refuse::Auto, Named> {
        self.respond_with(refuse::Auto::new())
    }
}

impl<K, F, C, R, N> KeyedCircuitLayer<K, F, C, R, N> {
    /// What counts as a failure. Default: [`AnyErr`], and [`classify::Auto`] with [`respond`](Self::respond). HTTP and gRPC
    /// users want [`classify::Auto`].
    pub fn classify<T>(self, classify: T) -> KeyedCircuitLayer<K, F, T, R, Named> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            classify,
            refuse: self.refuse,
            callers: self.callers,
            named: PhantomData,
        }
    }

    /// Answers refused requests in another way, see [`refuse`]. The classification stays as it is; the callers are clients,
    /// as with [`respond`](Self::respond).
    pub fn respond_with<T>(self, refuse: T) -> KeyedCircuitLayer<K, F, C, T, N> {
        KeyedCircuitLayer {
            circuits: self.circuits,
            key: self.key,
            classify: self.classify,
            refuse,
            callers: Callers::Clients,
            named: PhantomData,
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
            classify: self.classify.clone(),
            refuse: self.refuse.clone(),
            callers: self.callers,
            ready: false,
        }
    }
}

impl<K, F, C: fmt::Debug, R: fmt::Debug, N> fmt::Debug for KeyedCircuitLayer<K, F, C, R, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuitLayer")
            .field("circuits", &self.circuits)
            .field("classify", &self.classify)
            .field("refuse", &self.refuse)
            .finish_non_exhaustive()
    }
}

// === impl KeyedCircuitService ===

impl<S, K, F, C, R> KeyedCircuitService<S, K, F, C, R> {
    /// The circuits it asks.
    pub fn circuits(&self) -> &KeyedCircuits<K> {
        &self.circuits
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calling it goes past the circuits.
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
    type Future = ResponseFuture<S, C, R, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        let ready = self.inner.poll_ready(cx);
        self.ready = matches!(ready, Poll::Ready(Ok(())));
        match ready {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(R::pass(Err(error)).map(drop)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        assert!(
            self.ready,
            "`call` needs `poll_ready` to have said ready on this clone"
        );
        self.ready = false;
        match self.circuits.get(&(self.key)(&request)).admit_call() {
            Ok(leave) => {
                let mut leave = leave.of(self.callers);
                let classifier = self.classify.classify(&request);
                let call = leave.run(|| self.inner.call(request));
                ResponseFuture::admitted(call, classifier, leave)
            }
            Err(open) => {
                ResponseFuture::refused(self.refuse.clone(), self.refuse.context(&request), open)
            }
        }
    }
}

impl<S: Clone, K, F: Clone, C: Clone, R: Clone> Clone for KeyedCircuitService<S, K, F, C, R> {
    /// A clone shares the circuits and has to ask for readiness itself.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            circuits: self.circuits.clone(),
            key: self.key.clone(),
            classify: self.classify.clone(),
            refuse: self.refuse.clone(),
            callers: self.callers,
            ready: false,
        }
    }
}

impl<S: fmt::Debug, K, F, C: fmt::Debug, R: fmt::Debug> fmt::Debug
    for KeyedCircuitService<S, K, F, C, R>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuitService")
            .field("inner", &self.inner)
            .field("circuits", &self.circuits)
            .field("classify", &self.classify)
            .field("refuse", &self.refuse)
            .finish_non_exhaustive()
    }
}
