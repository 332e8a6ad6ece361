use std::time::Duration;

use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail};

use crate::{
    And, BucketService, ClientIp, Cost, Keyed, KeyedLimiter, Limiter, OnMissingKey, PeerIp,
    PolicyName, Queue, Quota, QuotaFn, Reject, Shadow, Share, Tuned, WithHeaders,
};

/// Lets no more requests through than a limiter admits. Makes a [`BucketService`] around a service.
///
/// The limiter is a value that you own; all services made by this layer and its clones draw from it.
///
/// ```
/// use http::{HeaderName, HeaderValue};
/// use tower_bucket::{BucketLayer, Header, KeyedLimiter, Limiter, OnMissingKey, Quota};
///
/// // At most 100 a second to this upstream, from all clients; beyond that an `Err`.
/// let upstream = BucketLayer::new(Limiter::new(Quota::per_second(100)));
///
/// // For each client 100 a second; beyond that a 429 with `Retry-After`.
/// let site = BucketLayer::per_client(Quota::per_second(100)).respond();
///
/// // For each API key 100 a minute, and nothing without one.
/// let tenants = KeyedLimiter::<HeaderValue>::new(Quota::per_minute(100));
/// let api_key = Header::new(HeaderName::from_static("x-api-key"));
/// let api = BucketLayer::keyed(tenants.clone(), api_key).on_missing_key(OnMissingKey::Deny).respond();
/// # let _ = (upstream, site, api);
/// ```
///
/// Several limits at once, requests that cost more, and responses with the state of the limits:
///
/// ```
/// # use http::Request;
/// # use tower_bucket::{BucketLayer, Limiter, PolicyName, Quota};
/// const SITE: PolicyName = PolicyName::new("site").unwrap();
/// const CLIENT: PolicyName = PolicyName::new("client").unwrap();
///
/// let site = BucketLayer::new(Limiter::new(Quota::per_second(100))).rate_limit_headers(SITE);
/// let client = BucketLayer::per_client(Quota::per_second(10)).rate_limit_headers(CLIENT);
/// let both = site.and(client).cost(|request: &Request<String>| if request.method() == "POST" { 5 } else { 1 }).respond();
/// # let _ = both;
/// ```
///
/// # Order of calls
///
/// What makes the limit comes first ([`new`](Self::new), [`on_missing_key`](Self::on_missing_key)), then how it is applied
/// ([`quota_fn`](Self::quota_fn), [`cost`](Self::cost), [`shadow`](Self::shadow),
/// [`rate_limit_headers`](Self::rate_limit_headers), [`and`](Self::and)), then
/// how requests are rejected and whether they may wait. `cost` and the like apply to all limits that are combined by then, except
/// those that have a setting already: the first one, of fewer limits, applies. [`wait`](Self::wait) is called once.
#[derive(Clone, Copy, Debug)]
pub struct BucketLayer<L, R = Fail, M = Reject> {
    limit: L,
    refuse: R,
    mode: M,
}

// === impl BucketLayer ===

impl BucketLayer<Limiter> {
    /// All requests draw from one bucket. Takes a limiter or a reference to one.
    #[must_use]
    pub fn new(limiter: impl Into<Limiter>) -> Self {
        Self {
            limit: limiter.into(),
            refuse: Fail,
            mode: Reject,
        }
    }
}

impl<F, K> BucketLayer<Keyed<F, K>> {
    /// Each request draws from the bucket of its key: a [`PeerIp`], a [`Header`](crate::Header), or what your function
    /// makes of the request.
    ///
    /// ```
    /// use axum::{Router, extract::Request, routing::get};
    /// use tower_bucket::{BucketLayer, KeyedLimiter, Quota};
    ///
    /// let limiter = KeyedLimiter::new(Quota::per_second(1));
    /// let host = |request: &Request| request.uri().host().map(str::to_owned);
    /// let app: Router = Router::new()
    ///     .route("/", get(async || "hello"))
    ///     .layer(BucketLayer::keyed(limiter, host).respond());
    /// ```
    #[must_use]
    pub fn keyed(limiter: impl Into<KeyedLimiter<K>>, key: F) -> Self {
        Self {
            limit: Keyed::new(limiter.into(), key),
            refuse: Fail,
            mode: Reject,
        }
    }
}

impl BucketLayer<Keyed<PeerIp, ClientIp>> {
    /// The same quota for each client, identified by the address of its connection ([`PeerIp`]).
    ///
    /// The buckets are made here, once: clones of this layer and all services it makes share them. Reach them by
    /// [`limiter`](Self::limiter). Up to 100 000 clients; for another number, use [`keyed`](Self::keyed).
    #[must_use]
    pub fn per_client(quota: Quota) -> Self {
        Self::keyed(KeyedLimiter::new(quota), PeerIp)
    }
}

impl<F, K, R, M> BucketLayer<Keyed<F, K>, R, M> {
    /// What becomes of a request without a key. Default: [`OnMissingKey::Shared`].
    #[must_use]
    pub fn on_missing_key(self, choice: OnMissingKey) -> Self {
        Self {
            limit: self.limit.on_missing_key(choice),
            ..self
        }
    }

    /// The limiter that is drawn from.
    pub fn limiter(&self) -> &KeyedLimiter<K> {
        self.limit.limiter()
    }
}

impl<L, R, M> BucketLayer<L, R, M> {
    /// A request must pass `other`, too. Of the other one the limits are taken, not how it refuses.
    ///
    /// All limits are asked first and take only if none refuses; if another request then is faster, what was taken is given
    /// back. The refusal has the longest wait. The first limit is counted and reported first.
    #[must_use]
    pub fn and<T>(self, other: BucketLayer<T>) -> BucketLayer<And<L, T>, R, M> {
        self.map(|limit| And::new(limit, other.limit))
    }

    /// How many tokens a request costs: `Fn(&Req) -> u32`. Default: 1. What costs none always passes; what costs more than
    /// the burst never does, and is refused without a time to come back ([`Exhausted::is_cost`](crate::Exhausted::is_cost)).
    #[must_use]
    pub fn cost<F>(self, tokens: F) -> BucketLayer<Tuned<L, Cost<F>>, R, M> {
        self.map(|limit| Tuned::new(limit, Cost::new(tokens)))
    }

    /// Which quota a request is held to, such as its tenant's plan: `Fn(&Req) -> Option<Quota>`. Default, and where it returns
    /// `None`: the limiter's own.
    ///
    /// Let it depend on nothing but the key. What is owed is time: a key that is asked under a slow quota and under a fast one
    /// pays for both.
    ///
    /// ```
    /// use http::{HeaderName, HeaderValue, Request};
    /// use tower_bucket::{BucketLayer, Header, KeyedLimiter, Quota};
    ///
    /// #[derive(Clone)]
    /// struct Tenant { plan: Quota } // put into the extensions where the API key is checked
    ///
    /// let api_key = Header::new(HeaderName::from_static("x-api-key"));
    /// let tenants = KeyedLimiter::<HeaderValue>::new(Quota::per_minute(1));
    /// let layer = BucketLayer::keyed(tenants, api_key)
    ///     .quota_fn(|request: &Request<String>| request.extensions().get::<Tenant>().map(|tenant| tenant.plan))
    ///     .respond();
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn quota_fn<F>(self, quota: F) -> BucketLayer<Tuned<L, QuotaFn<F>>, R, M> {
        self.map(|limit| Tuned::new(limit, QuotaFn::new(quota)))
    }

    /// Refuses nothing, and only counts what would have been refused ([`Snapshot::shadowed`](crate::Snapshot)): to try a
    /// quota on real traffic.
    #[must_use]
    pub fn shadow(self) -> BucketLayer<Tuned<L, Shadow>, R, M> {
        self.map(|limit| Tuned::new(limit, Shadow))
    }

    /// Adds the state of the limit to every response, in the `RateLimit` and `RateLimit-Policy` fields, also to those that were let
    /// through; see [`RateLimitHeaders`](crate::RateLimitHeaders). For HTTP responses. Default: off, as it costs a few allocations.
    ///
    /// After [`and`](Self::and) it reports the limit that leaves least; before it, each one.
    #[must_use]
    pub fn rate_limit_headers(self, name: PolicyName) -> BucketLayer<WithHeaders<L>, R, M> {
        self.map(|limit| WithHeaders::new(limit, name))
    }

    /// Answers refused requests with a 429, or `RESOURCE_EXHAUSTED` if they are gRPC. The inner error type stays as it
    /// is: for servers. Default: `Err(Exhausted)`, boxed ([`Fail`]), for clients.
    #[must_use]
    pub fn respond(self) -> BucketLayer<L, Auto, M> {
        self.respond_with(Auto::new())
    }

    /// Rejects in another way: [`refuse`](tower_outcome::refuse) has some, and a trait for new ones.
    #[must_use]
    pub fn respond_with<T>(self, refuse: T) -> BucketLayer<L, T, M> {
        BucketLayer {
            limit: self.limit,
            refuse,
            mode: self.mode,
        }
    }

    fn map<T>(self, change: impl FnOnce(L) -> T) -> BucketLayer<T, R, M> {
        BucketLayer {
            limit: change(self.limit),
            refuse: self.refuse,
            mode: self.mode,
        }
    }
}

impl<L, R> BucketLayer<L, R> {
    /// Lets a request that finds no token wait for one, for up to `longest`, instead of refusing it. A request whose turn
    /// would come later is refused at once; so are those beyond the number of [`waiters`](BucketLayer::waiters) or beyond one
    /// key's [share](BucketLayer::waiters_per_key) of them.
    ///
    /// It waits in the response future, before the inner service is called, first come, first served. What a request that is
    /// dropped while it waits would have cost goes to those behind it. See [`Queue`] for the order, and
    /// [`WaitFuture`](crate::WaitFuture) for cancellation. The inner service must be `Clone`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_bucket::{BucketLayer, Limiter, Quota};
    ///
    /// // A client of an API that allows ten a second: a burst is spread out instead of failing.
    /// let ten = Limiter::new(Quota::per_second(10));
    /// let layer = BucketLayer::new(ten).wait(Duration::from_secs(5));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn wait(self, longest: Duration) -> BucketLayer<L, R, Queue> {
        BucketLayer {
            limit: self.limit,
            refuse: self.refuse,
            mode: Queue::new(longest),
        }
    }
}

impl<L, R> BucketLayer<L, R, Queue> {
    /// How many requests may wait at a time, in all services that this layer and its clones make. Zero: none, each is
    /// rejected. Default: 1024; a request
    /// that waits is held in memory, with what of its body has come.
    #[must_use]
    pub fn waiters(mut self, most: u32) -> Self {
        self.mode.limit_mut().at_most(most);
        self
    }

    /// How many of the [`waiters`](Self::waiters) may be one key's: its share of the places that the other keys leave.
    /// Default: one in two, so that the requests of one client, however many it sends, leave half of the places to other clients. A
    /// request beyond that is refused as if all places were taken.
    ///
    /// Keys are those of all keyed limiters of this layer; requests that share a bucket because they have no key, or because
    /// theirs found no room, count as one key. A [`Limiter`] has no keys, and all requests that draw from it share all places.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_bucket::{BucketLayer, Quota, Share};
    ///
    /// let ten = 10;
    /// let layer = BucketLayer::per_client(Quota::per_second(ten))
    ///     .respond()
    ///     .wait(Duration::from_secs(2))
    ///     .waiters(500)
    ///     .waiters_per_key(Share::one_in(ten));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn waiters_per_key(mut self, share: Share) -> Self {
        self.mode.limit_mut().per_key(share);
        self
    }

    /// The requests that wait, to see how many there are.
    pub const fn queue(&self) -> &Queue {
        &self.mode
    }
}

impl<S, L: Clone, R: Clone, M: Clone> Layer<S> for BucketLayer<L, R, M> {
    type Service = BucketService<S, L, R, M>;

    fn layer(&self, inner: S) -> Self::Service {
        BucketService::new(
            inner,
            self.limit.clone(),
            self.refuse.clone(),
            self.mode.clone(),
        )
    }
}
