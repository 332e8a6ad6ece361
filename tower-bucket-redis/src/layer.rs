use std::{fmt, hash::Hash};

use tower_bucket::{Exhausted, Key, OnMissingKey, PolicyName, adapter::LocalBucket};
use tower_outcome::refuse::{Auto, Fail};

use crate::{
    RedisKey, RedisLimiter,
    limiter::{Charge, First, Outcome},
    modifiers::{CostFn, Modifiers, QuotaFn},
};

/// Applies a [`RedisLimiter`] to a service. Makes a [`RedisService`](crate::RedisService).
///
/// For local limits besides, put a [`BucketLayer`](tower_bucket::BucketLayer) outside. Requests do not wait for tokens:
/// their order would have to be kept over all machines.
///
/// ```no_run
/// use http::Request;
/// use tower_bucket::{ClientIp, PeerIp, PolicyName, Quota};
/// use tower_bucket_redis::{RedisLayer, RedisLimiter};
///
/// # async fn connect() -> redis::RedisResult<()> {
/// const SITE: PolicyName = PolicyName::new("site").unwrap();
///
/// let connection = redis::Client::open("redis://127.0.0.1/")?.get_connection_manager().await?;
/// let quota = Quota::per_minute(600);
/// let limiter = RedisLimiter::<ClientIp, _>::new(connection, "site", quota);
/// let layer = RedisLayer::new(&limiter, PeerIp)
///     .cost(|request: &Request<String>| if request.method() == "POST" { 5 } else { 1 })
///     .rate_limit_headers(SITE)
///     .respond();
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
pub struct RedisLayer<F, K: ?Sized, C, R = Fail, M = Modifiers> {
    pub(crate) limiter: RedisLimiter<K, C>,
    key: F,
    missing: OnMissingKey,
    pub(crate) refuse: R,
    pub(crate) modifiers: M,
}

// === impl RedisLayer ===

impl<F, K: ?Sized, C> RedisLayer<F, K, C> {
    /// Each request draws from the bucket of its key. Takes a limiter or a reference to one.
    #[must_use]
    pub fn new(limiter: impl Into<RedisLimiter<K, C>>, key: F) -> Self {
        Self {
            limiter: limiter.into(),
            key,
            missing: OnMissingKey::default(),
            refuse: Fail,
            modifiers: Modifiers::default(),
        }
    }
}

impl<F, K: ?Sized, C, R, Q, H> RedisLayer<F, K, C, R, Modifiers<(), Q, H>> {
    /// How many tokens a request costs, as [`BucketLayer::cost`](tower_bucket::BucketLayer::cost). Default: 1.
    #[must_use]
    pub fn cost<T>(self, tokens: T) -> RedisLayer<F, K, C, R, Modifiers<T, Q, H>> {
        self.map(|modifiers| Modifiers {
            cost: tokens,
            quota: modifiers.quota,
            headers: modifiers.headers,
            shadow: modifiers.shadow,
        })
    }
}

impl<F, K: ?Sized, C, R, T, H> RedisLayer<F, K, C, R, Modifiers<T, (), H>> {
    /// The quota of a request, as [`BucketLayer::quota_fn`](tower_bucket::BucketLayer::quota_fn). All machines must return
    /// the same for a key. Default: that of the limiter.
    #[must_use]
    pub fn quota_fn<Q>(self, quota: Q) -> RedisLayer<F, K, C, R, Modifiers<T, Q, H>> {
        self.map(|modifiers| Modifiers {
            cost: modifiers.cost,
            quota,
            headers: modifiers.headers,
            shadow: modifiers.shadow,
        })
    }
}

impl<F, K: ?Sized, C, R, T, Q> RedisLayer<F, K, C, R, Modifiers<T, Q, ()>> {
    /// Adds `RateLimit` and `RateLimit-Policy` fields to responses, as
    /// [`BucketLayer::rate_limit_headers`](tower_bucket::BucketLayer::rate_limit_headers): of the bucket in Redis, or of
    /// the local one where that has decided. Default: none.
    #[must_use]
    pub fn rate_limit_headers(
        self,
        name: PolicyName,
    ) -> RedisLayer<F, K, C, R, Modifiers<T, Q, PolicyName>> {
        self.map(|modifiers| Modifiers {
            cost: modifiers.cost,
            quota: modifiers.quota,
            headers: name,
            shadow: modifiers.shadow,
        })
    }
}

impl<F, K: ?Sized, C, R, T, Q, H> RedisLayer<F, K, C, R, Modifiers<T, Q, H>> {
    /// Rejects nothing, and only counts what would have been rejected. A request still waits for Redis, up to the
    /// [timeout](RedisLimiter::timeout). Default: off.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.map(|modifiers| Modifiers {
            shadow: true,
            ..modifiers
        })
    }
}

impl<F, K: ?Sized, C, R, M> RedisLayer<F, K, C, R, M> {
    /// What happens to a request without a key. Default: [`OnMissingKey::Shared`], over all machines.
    #[must_use]
    pub fn on_missing_key(self, choice: OnMissingKey) -> Self {
        Self {
            missing: choice,
            ..self
        }
    }

    /// Rejects with a response, as [`BucketLayer::respond`](tower_bucket::BucketLayer::respond). Default: with an error.
    #[must_use]
    pub fn respond(self) -> RedisLayer<F, K, C, Auto, M> {
        self.respond_with(Auto::new())
    }

    /// Rejects in another way; [`refuse`](tower_outcome::refuse) has some.
    #[must_use]
    pub fn respond_with<T>(self, refuse: T) -> RedisLayer<F, K, C, T, M> {
        RedisLayer {
            limiter: self.limiter,
            key: self.key,
            missing: self.missing,
            refuse,
            modifiers: self.modifiers,
        }
    }

    /// The limiter.
    pub const fn limiter(&self) -> &RedisLimiter<K, C> {
        &self.limiter
    }

    fn map<T>(self, change: impl FnOnce(M) -> T) -> RedisLayer<F, K, C, R, T> {
        RedisLayer {
            limiter: self.limiter,
            key: self.key,
            missing: self.missing,
            refuse: self.refuse,
            modifiers: change(self.modifiers),
        }
    }
}

impl<F, K, C, R, T, Q, H> RedisLayer<F, K, C, R, Modifiers<T, Q, H>>
where
    K: Hash + RedisKey,
    C: redis::aio::ConnectionLike + Clone,
{
    pub(crate) fn first<Req>(&self, request: &Req) -> (LocalBucket, First)
    where
        F: Key<Req, Key = K>,
        T: CostFn<Req>,
        Q: QuotaFn<Req>,
    {
        let quota = self.modifiers.quota.quota(request);
        let charge = Charge {
            tokens: self.modifiers.cost.tokens(request),
            quota: quota.unwrap_or(self.limiter.quota()),
            shadow: self.modifiers.shadow,
        };
        if let Some(key) = self.key.key(request) {
            return self.limiter.first_for(&key, charge);
        }
        let bucket = self.limiter.missing_key();
        let first = match self.missing {
            OnMissingKey::Allow => First::Decided(Outcome::Allowed(None)),
            OnMissingKey::Deny => First::Decided(charge.reject(Exhausted::key_missing())),
            _ => self
                .limiter
                .first(bucket, charge, |name| name.extend_from_slice(KEYLESS)),
        };
        (bucket, first)
    }
}

impl<F: Clone, K: ?Sized, C: Clone, R: Clone, M: Clone> Clone for RedisLayer<F, K, C, R, M> {
    fn clone(&self) -> Self {
        Self {
            limiter: self.limiter.clone(),
            key: self.key.clone(),
            missing: self.missing,
            refuse: self.refuse.clone(),
            modifiers: self.modifiers.clone(),
        }
    }
}

impl<F, K: ?Sized, C, R, M> fmt::Debug for RedisLayer<F, K, C, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLayer")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

/// The key of requests without one: no header has a line feed, and no text the byte behind it.
const KEYLESS: &[u8] = b"\n\xffkeyless";
