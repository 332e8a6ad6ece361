use std::{fmt, hash::Hash};

use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail};

use crate::{Admitted, Bucket, ClientIp, Exhausted, Key, KeyedLimiter, Limiter, OnMissingKey, PeerIp, Quota};

/// Lets no more requests through than a limiter admits. Makes a [`Bucket`] around a service.
///
/// The limiter is a value that you own; all services made by this layer and its clones draw from it.
///
/// ```
/// use std::num::NonZeroU32;
/// use http::{HeaderName, HeaderValue};
/// use tower_bucket::{BucketLayer, Header, KeyedLimiter, Limiter, OnMissingKey, Quota};
///
/// const HUNDRED: NonZeroU32 = NonZeroU32::new(100).unwrap();
///
/// // At most 100 a second to this upstream, whoever asks; beyond that an `Err`.
/// let upstream = BucketLayer::new(Limiter::new(Quota::per_second(HUNDRED)));
///
/// // For each client 100 a second; beyond that a 429 with `Retry-After`.
/// let site = BucketLayer::per_client(Quota::per_second(HUNDRED)).respond();
///
/// // For each API key 100 a minute, and nothing without one.
/// let tenants = KeyedLimiter::<HeaderValue>::new(Quota::per_minute(HUNDRED));
/// let api_key = Header::new(HeaderName::from_static("x-api-key"));
/// let api = BucketLayer::keyed(tenants.clone(), api_key).on_missing_key(OnMissingKey::Deny).respond();
/// # let _ = (upstream, site, api);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BucketLayer<L, R = Fail> {
    limit: L,
    refuse: R,
}

/// Decides about a request: a [`Limiter`], or a [`Keyed`] one. Implemented here only.
pub trait Limit<Req>: sealed::Sealed {
    /// Takes what the request costs. `None`: it passes unlimited.
    ///
    /// # Errors
    ///
    /// The bucket that the request draws from is empty.
    fn admit(&self, request: &Req) -> Result<Option<Admitted>, Exhausted>;
}

/// A [`KeyedLimiter`] together with the [`Key`] that tells whose bucket a request draws from.
pub struct Keyed<F, K: ?Sized> {
    limiter: KeyedLimiter<K>,
    key: F,
    missing: OnMissingKey,
}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for crate::Limiter {}
    impl<F, K: ?Sized> Sealed for super::Keyed<F, K> {}
}

// === impl BucketLayer ===

impl BucketLayer<Limiter> {
    /// All requests draw from one bucket.
    #[must_use]
    pub const fn new(limiter: Limiter) -> Self {
        Self { limit: limiter, refuse: Fail }
    }
}

impl<F, K> BucketLayer<Keyed<F, K>> {
    /// Each request draws from the bucket of its key: a [`PeerIp`], a [`Header`](crate::Header), or what your function
    /// makes of the request.
    ///
    /// ```
    /// use std::num::NonZeroU32;
    /// use axum::{Router, extract::Request, routing::get};
    /// use tower_bucket::{BucketLayer, KeyedLimiter, Quota};
    ///
    /// let limiter = KeyedLimiter::new(Quota::per_second(NonZeroU32::MIN));
    /// let host = |request: &Request| request.uri().host().map(str::to_owned);
    /// let app: Router = Router::new()
    ///     .route("/", get(async || "hello"))
    ///     .layer(BucketLayer::keyed(limiter, host).respond());
    /// ```
    #[must_use]
    pub fn keyed(limiter: KeyedLimiter<K>, key: F) -> Self {
        Self { limit: Keyed { limiter, key, missing: OnMissingKey::default() }, refuse: Fail }
    }
}

impl BucketLayer<Keyed<PeerIp, ClientIp>> {
    /// The same quota for each client, told apart by the address of its connection ([`PeerIp`]).
    ///
    /// The buckets are made here, once: clones of this layer and all services it makes share them. Reach them by
    /// [`limiter`](Self::limiter). Up to 100 000 clients; for another number, use [`keyed`](Self::keyed).
    #[must_use]
    pub fn per_client(quota: Quota) -> Self {
        Self::keyed(KeyedLimiter::new(quota), PeerIp)
    }
}

impl<F, K, R> BucketLayer<Keyed<F, K>, R> {
    /// What becomes of a request without a key. Default: [`OnMissingKey::Shared`].
    #[must_use]
    pub fn on_missing_key(mut self, choice: OnMissingKey) -> Self {
        self.limit.missing = choice;
        self
    }

    /// The limiter that is drawn from.
    pub fn limiter(&self) -> &KeyedLimiter<K> {
        &self.limit.limiter
    }
}

impl<L, R> BucketLayer<L, R> {
    /// Answers refused requests with a 429, or `RESOURCE_EXHAUSTED` if they are gRPC. The inner error type stays as it
    /// is: for servers. Default: `Err(Exhausted)`, boxed ([`Fail`]), for clients.
    #[must_use]
    pub fn respond(self) -> BucketLayer<L, Auto> {
        self.respond_with(Auto::new())
    }

    /// Tells refusals in another way: [`refuse`](tower_outcome::refuse) has some, and room for yours.
    #[must_use]
    pub fn respond_with<T>(self, refuse: T) -> BucketLayer<L, T> {
        BucketLayer { limit: self.limit, refuse }
    }
}

impl<S, L: Clone, R: Clone> Layer<S> for BucketLayer<L, R> {
    type Service = Bucket<S, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Bucket::new(inner, self.limit.clone(), self.refuse.clone())
    }
}

// === impl Limit ===

impl<Req> Limit<Req> for Limiter {
    fn admit(&self, _: &Req) -> Result<Option<Admitted>, Exhausted> {
        self.check().map(Some)
    }
}

impl<Req, F, K> Limit<Req> for Keyed<F, K>
where
    F: Key<Req, Key = K>,
    K: Hash,
{
    fn admit(&self, request: &Req) -> Result<Option<Admitted>, Exhausted> {
        match self.key.key(request) {
            Some(key) => self.limiter.check_key(&key).map(Some),
            None => self.limiter.check_missing(self.missing),
        }
    }
}

// === impl Keyed ===

impl<F: Clone, K: ?Sized> Clone for Keyed<F, K> {
    fn clone(&self) -> Self {
        Self { limiter: self.limiter.clone(), key: self.key.clone(), missing: self.missing }
    }
}

impl<F, K: ?Sized> fmt::Debug for Keyed<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("limiter", &self.limiter).field("missing", &self.missing).finish_non_exhaustive()
    }
}
