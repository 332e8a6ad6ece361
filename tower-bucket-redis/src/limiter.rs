use std::{fmt, hash::Hash, mem, sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError, aio::ConnectionLike};
use tokio::time::timeout;
use tower_bucket::{
    Admitted, Exhausted, Quota, Snapshot,
    adapter::{Decision, LocalBucket, LocalLimiter, Withdrawal},
};

use crate::{RedisKey, server::Server};

/// A bucket for each key, kept in Redis for all machines: a cheap handle, whose clones share it.
///
/// `C` is a connection that can be cloned and used concurrently and that reconnects, such as
/// `redis::aio::ConnectionManager` or a cluster's. The [crate's documentation](crate) describes how it decides.
pub struct RedisLimiter<K: ?Sized, C> {
    connection: C,
    local: LocalLimiter<K>,
    prefix: Arc<str>,
    timeout: Duration,
    on_failure: OnFailure,
    server: Arc<Server>,
}

/// What happens to a request when Redis does not reply in time, or not at all, or with an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFailure {
    /// The local bucket of this machine decides. The default: the service stays up, and a client gets at most the quota from
    /// each machine.
    #[default]
    Local,
    /// It passes. For limits that are not critical.
    Open,
    /// It is rejected: 503, code `rate-limit-unavailable`. For limits that must hold, such as paid ones.
    Closed,
}

/// What a request is charged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    pub(crate) tokens: u32,
    pub(crate) quota: Quota,
    /// Only counts.
    pub(crate) shadow: bool,
}

/// The decision about a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// `None`: it is not limited.
    Allowed(Option<Admitted>),
    Shadowed,
    Rejected(Quota, Exhausted),
}

/// The part of a decision that takes no round trip.
pub(crate) enum First {
    Decided(Outcome),
    Ask(Question),
}

/// What the server decides.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    name: Vec<u8>,
    bucket: LocalBucket,
    charge: Charge,
    withdrawal: Withdrawal,
}

/// Counts a request that is dropped before the server replies.
struct Asked<'a, K: ?Sized, C> {
    limiter: &'a RedisLimiter<K, C>,
    bucket: LocalBucket,
}

// === impl RedisLimiter ===

impl<K: ?Sized, C> RedisLimiter<K, C> {
    /// The same quota for each key, over all machines that use the same Redis and prefix.
    ///
    /// The names of the buckets in Redis begin with the prefix, such as `shop:logins`. It is the limit's name there
    /// and has no default: two limiters with the same prefix draw from the same buckets, even with different quotas. A zero byte
    /// separates it from the key, so that no key that a client sends is a bucket of a limiter with a longer prefix.
    #[must_use]
    pub fn new(connection: C, prefix: &str, quota: Quota) -> Self {
        Self {
            connection,
            local: LocalLimiter::new(quota),
            prefix: prefix.into(),
            timeout: DEFAULT_TIMEOUT,
            on_failure: OnFailure::default(),
            server: Arc::default(),
        }
    }

    /// How long a request waits for Redis. Default: 100 ms, many times a round trip in a network, and acceptable for
    /// the requests that find a server dead.
    #[must_use]
    pub fn timeout(self, longest: Duration) -> Self {
        Self {
            timeout: longest,
            ..self
        }
    }

    /// What happens to requests when Redis does not reply. Default: [`OnFailure::Local`].
    #[must_use]
    pub fn on_failure(self, choice: OnFailure) -> Self {
        Self {
            on_failure: choice,
            ..self
        }
    }

    /// How many keys this machine remembers. Default: 100,000. Call it first, as it makes these buckets anew.
    ///
    /// When that many keys are active, new keys share one local bucket, as for a
    /// [`KeyedLimiter`](tower_bucket::KeyedLimiter), and Redis is asked no more often than that bucket allows: a flood of
    /// made-up keys does not fill Redis. Set a greater number where this machine receives more clients than that within
    /// the [`interval`](Quota::interval) of a quota.
    #[must_use]
    pub fn capacity(self, keys: u32) -> Self {
        Self {
            local: self.local.capacity(keys),
            server: Arc::default(),
            ..self
        }
    }

    /// Changes the quota on this machine. It must be changed on each; until then each applies its own.
    pub fn set_quota(&self, quota: Quota) {
        self.local.limiter().set_quota(quota);
    }

    /// The counters of this machine; keys and evictions are those of the local buckets.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.local.limiter().snapshot()
    }

    /// How many requests got no decision from Redis, because of a timeout, an I/O error or an error reply.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.server.failures()
    }

    /// Whether Redis is asked. Not so for a second after a timeout or an I/O error; then one request at a time asks until it
    /// replies.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.server.is_up()
    }

    pub(crate) fn quota(&self) -> Quota {
        self.local.limiter().quota()
    }

    pub(crate) fn missing_key(&self) -> LocalBucket {
        self.local.missing_key()
    }

    /// Decides without a round trip, if possible.
    pub(crate) fn first(
        &self,
        bucket: LocalBucket,
        charge: Charge,
        name: impl FnOnce(&mut Vec<u8>),
    ) -> First {
        if charge.tokens == 0 {
            return First::Decided(Outcome::Allowed(None));
        }
        let is_up = self.is_up();
        if !is_up && let Some(outcome) = self.without_the_server(charge) {
            return First::Decided(outcome);
        }
        let withdrawal = match self.local.take(bucket, charge.tokens, charge.quota) {
            Ok(withdrawal) => withdrawal,
            Err(exhausted) => return First::Decided(charge.reject(exhausted)),
        };
        let question = Question {
            name: bucket_name(&self.prefix, name),
            bucket,
            charge,
            withdrawal,
        };
        if !is_up {
            First::Decided(question.local_outcome())
        } else if self.server.may_ask() {
            First::Ask(question)
        } else {
            First::Decided(self.decide_alone(&question))
        }
    }

    /// For a request about which the server cannot be asked. `None`: the local bucket decides.
    fn without_the_server(&self, charge: Charge) -> Option<Outcome> {
        match self.on_failure {
            OnFailure::Local => None,
            OnFailure::Open => Some(Outcome::Allowed(None)),
            OnFailure::Closed => Some(charge.reject(Exhausted::unavailable())),
        }
    }

    fn decide_alone(&self, question: &Question) -> Outcome {
        let outcome = self
            .without_the_server(question.charge)
            .unwrap_or(question.local_outcome());
        if let Outcome::Rejected(..) = outcome {
            self.local.refund(&question.withdrawal);
        }
        outcome
    }

    /// Without a reply the server is not asked for a while.
    #[cold]
    fn no_reply(&self, question: &Question, error: Option<&RedisError>) -> Outcome {
        if self.server.record_no_reply() {
            let error = error.map_or("timed out".to_owned(), ToString::to_string);
            tracing::warn!(error, on_failure = ?self.on_failure, "redis does not reply to the rate limiter");
        }
        self.server.count_failure();
        self.decide_alone(question)
    }

    /// An error reply concerns this request or its key, and no other.
    #[cold]
    fn error_reply(&self, question: &Question, error: &RedisError) -> Outcome {
        self.record_reply();
        if self.server.may_log_error() {
            tracing::warn!(%error, on_failure = ?self.on_failure, "redis replied to the rate limiter with an error");
        }
        self.server.count_failure();
        self.decide_alone(question)
    }

    fn decided(&self, question: &Question, (wait, debt): (u64, u64)) -> Outcome {
        self.record_reply();
        let Question {
            charge, withdrawal, ..
        } = question;
        if wait == 0 {
            let debt = Duration::from_micros(debt);
            return Outcome::Allowed(Some(Admitted::from_reset_after(debt, charge.quota)));
        }
        // A rejected request uses up nothing here either.
        self.local.refund(withdrawal);
        let wait = Duration::from_micros(wait);
        self.local.reject_for(withdrawal, wait);
        charge.reject(Exhausted::wait(wait))
    }

    fn record_reply(&self) {
        if self.server.record_reply() {
            tracing::info!("redis replies to the rate limiter again");
        }
    }

    pub(crate) fn count(&self, bucket: LocalBucket, outcome: &Outcome) {
        let decision = match outcome {
            Outcome::Allowed(_) => Decision::Allowed,
            Outcome::Shadowed => Decision::Shadowed,
            Outcome::Rejected(..) => Decision::Refused,
        };
        self.local.count(bucket, decision);
    }
}

impl<K: ?Sized, C: ConnectionLike + Clone> RedisLimiter<K, C> {
    pub(crate) async fn ask(&self, question: &Question) -> Outcome {
        let asked = Asked {
            limiter: self,
            bucket: question.bucket,
        };
        let outcome = self.ask_the_server(question).await;
        mem::forget(asked);
        outcome
    }

    async fn ask_the_server(&self, question: &Question) -> Outcome {
        let (cost, depth) = in_micros(question.charge.quota, question.charge.tokens);
        let mut connection = self.connection.clone();
        let mut call = self.server.script.prepare_invoke();
        call.key(&question.name).arg(cost).arg(depth);
        match timeout(self.timeout, call.invoke_async(&mut connection)).await {
            Ok(Ok(reply)) => self.decided(question, reply),
            Ok(Err(error)) if is_reply(&error) => self.error_reply(question, &error),
            Ok(Err(error)) => self.no_reply(question, Some(&error)),
            Err(_) => self.no_reply(question, None),
        }
    }
}

impl<K: Hash + RedisKey + ?Sized, C: ConnectionLike + Clone> RedisLimiter<K, C> {
    /// Takes one token from the bucket of `key`.
    ///
    /// # Errors
    ///
    /// The bucket is empty; or Redis does not reply and [`OnFailure::Closed`] is set.
    pub async fn check_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        self.check_key_cost(key, 1).await
    }

    /// Takes `tokens` from the bucket of `key`. Zero tokens always pass, without a round trip.
    ///
    /// # Errors
    ///
    /// The bucket does not hold that many now, or never does; or Redis does not reply and [`OnFailure::Closed`] is set.
    pub async fn check_key_cost(&self, key: &K, tokens: u32) -> Result<Admitted, Exhausted> {
        let bucket = self.local.bucket(key);
        let charge = Charge {
            tokens,
            quota: self.quota(),
            shadow: false,
        };
        let outcome = match self.first_for(key, charge) {
            (_, First::Decided(outcome)) => outcome,
            (_, First::Ask(question)) => self.ask(&question).await,
        };
        self.count(bucket, &outcome);
        match outcome {
            Outcome::Allowed(Some(admitted)) => Ok(admitted),
            Outcome::Allowed(None) | Outcome::Shadowed => {
                Ok(Admitted::from_reset_after(Duration::ZERO, charge.quota))
            }
            Outcome::Rejected(_, exhausted) => Err(exhausted),
        }
    }

    pub(crate) fn first_for(&self, key: &K, charge: Charge) -> (LocalBucket, First) {
        let bucket = self.local.bucket(key);
        (
            bucket,
            self.first(bucket, charge, |name| key.write_to(name)),
        )
    }
}

impl<K: ?Sized, C: Clone> Clone for RedisLimiter<K, C> {
    fn clone(&self) -> Self {
        Self {
            connection: self.connection.clone(),
            local: self.local.clone(),
            prefix: self.prefix.clone(),
            server: self.server.clone(),
            ..*self
        }
    }
}

impl<K: ?Sized, C: Clone> From<&Self> for RedisLimiter<K, C> {
    fn from(limiter: &Self) -> Self {
        limiter.clone()
    }
}

impl<K: ?Sized, C> fmt::Debug for RedisLimiter<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimiter")
            .field("prefix", &self.prefix)
            .field("on_failure", &self.on_failure)
            .field("is_up", &self.is_up())
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

// === impl Charge ===

impl Charge {
    pub(crate) fn reject(self, exhausted: Exhausted) -> Outcome {
        if self.shadow {
            Outcome::Shadowed
        } else {
            Outcome::Rejected(self.quota, exhausted)
        }
    }
}

// === impl Question ===

impl Question {
    /// As the local bucket has decided.
    fn local_outcome(&self) -> Outcome {
        Outcome::Allowed(Some(self.withdrawal.admitted()))
    }
}

// === impl Asked ===

impl<K: ?Sized, C> Drop for Asked<'_, K, C> {
    fn drop(&mut self) {
        self.limiter.local.count(self.bucket, Decision::Abandoned);
    }
}

/// The name of a key's bucket in Redis.
fn bucket_name(prefix: &str, key: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut name = prefix.as_bytes().to_vec();
    name.push(0);
    key(&mut name);
    name
}

/// Whether the error came from the server, and not from the connection to it.
fn is_reply(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType
    )
}

/// Cost and depth in whole microseconds, rounded up: `tokens`, and the burst.
fn in_micros(quota: Quota, tokens: u32) -> (u64, u64) {
    let one = quota.interval().as_nanos().div_ceil(1000);
    // Lua's numbers are exact up to 2^53; the clock is below 2^51, and two of these are added to it.
    let micros = |tokens: u32| (one * u128::from(tokens)).min(MOST_MICROS.into()) as u64;
    (micros(tokens), micros(quota.burst_size()))
}

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);

/// 2^51 µs, 71 years.
const MOST_MICROS: u64 = 1 << 51;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_named_as_one_of_a_limiter_with_a_longer_prefix() {
        let name = |prefix, key: &str| bucket_name(prefix, |name| key.write_to(name));
        assert_ne!(
            name("shop:", "logins:192.0.2.1"),
            name("shop:logins:", "192.0.2.1")
        );
        assert_eq!(name("shop", "alice"), b"shop\0alice");
    }

    #[test]
    fn a_quota_in_microseconds_is_never_more_than_it_was() {
        assert_eq!(
            in_micros(Quota::per_second(100).burst(20), 1),
            (10_000, 200_000)
        );
        assert_eq!(
            in_micros(Quota::per_second(100).burst(20), 20),
            (200_000, 200_000)
        );
        assert_eq!(in_micros(Quota::per_second(3), 2), (666_668, 1_000_002));
        assert_eq!(
            in_micros(Quota::per_second(4_000_000).burst(10), 1),
            (1, 10)
        );
        let never = Quota::every(Duration::MAX).unwrap();
        assert_eq!(in_micros(never, 1), (MOST_MICROS, MOST_MICROS));
    }
}
