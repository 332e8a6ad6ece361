//! The same quota on many machines: buckets kept in Redis.
//!
//! ```text
//!   request ──► this machine's own bucket ── empty ──────────────────────────► refused, no round trip
//!                        │ token there
//!                        ▼
//!                one script on the server ── passes ─────────────────────────► inner service
//!                        │                ├─ empty ─► remembered here until then ► refused
//!                        │                └─ an error reply ─► OnFailure, for this request alone
//!                        └─ no reply: a timeout, an I/O error ─► OnFailure: local, open or closed; and Redis is left alone
//!                                       for a second, after which one request at a time tries it, until it replies
//! ```
//!
//! A decision is one script and one round trip: it reads the server's clock, so that the machines' need not agree, and
//! leaves a key that goes by itself when its bucket is full again. What this machine's own requests have used up is refused
//! without asking, and so is what Redis has refused until the time that it told: a flood stays here.
//!
//! An error reply is a reply: a key that holds another type (`WRONGTYPE`), or a server that refuses to write, costs a round
//! trip and the requests that meet it, and never makes the limiter leave the server alone for all keys.
//!
//! # Connections
//!
//! Give it a connection that reconnects by itself: a `redis::aio::ConnectionManager`, or a cluster's. A
//! `MultiplexedConnection` never does: after the server was restarted, each machine would count for itself for ever. A
//! manager made by `Client::get_connection_manager_lazy` lets an application start while Redis is away.
//!
//! ```toml
//! redis = { version = "1.8", default-features = false, features = ["connection-manager", "tokio-comp"] }
//! ```
//!
//! # Limits of the server
//!
//! The server is Redis 5 or newer, or what speaks its language. One that forgets, because it is restarted without its data,
//! has full buckets; the local ones, which stay as they are, bound what that lets through. The script is loaded again by
//! itself.
//!
//! The server counts in whole microseconds, rounded up: a quota is never exceeded, and one of more than a million a second
//! is kept as a million. The local buckets hold the same quota by the local clock, which drifts; where the two differ by that
//! the stricter one wins.
//!
//! # Cancel safety
//!
//! A call that is dropped while Redis is asked may have spent its token there, and has spent the local one. It is counted as
//! [`abandoned`](crate::Snapshot::abandoned).

mod key;
mod layer;

use std::{
    fmt,
    hash::Hash,
    mem,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{ErrorKind, RedisError, Script, aio::ConnectionLike};
use tokio::time::{Instant, timeout};

pub use self::{
    key::RedisKey,
    layer::{RedisBucket, RedisFuture, RedisLayer},
};
use crate::{
    Admitted, Exhausted, KeyedLimiter, Quota, Snapshot,
    error::Reason,
    limit::{Denial, Taken, Terms},
    snapshot::Fate,
    store::{Drawer, Drawn, OnceAMinute},
};

/// A bucket for each key, kept in Redis for all machines: a cheap handle, whose clones share it.
///
/// `C` is a connection that can be cloned and used by many at a time and that reconnects, such as
/// `redis::aio::ConnectionManager` or a cluster's. The [module's documentation](self) describes how it decides.
///
/// ```no_run
/// use std::num::NonZeroU32;
/// use tower_bucket::{ClientIp, PeerIp, Quota, redis::{OnFailure, RedisLayer, RedisLimiter}};
///
/// # async fn connect() -> redis::RedisResult<()> {
/// let connection = redis::Client::open("redis://127.0.0.1/")?.get_connection_manager().await?;
/// let quota = Quota::per_minute(NonZeroU32::new(600).unwrap());
/// let limiter = RedisLimiter::<ClientIp, _>::new(connection, "shop", quota).on_failure(OnFailure::Local);
/// let app: axum::Router = axum::Router::new().layer(RedisLayer::new(limiter, PeerIp).respond());
/// # let _ = app;
/// # Ok(())
/// # }
/// ```
pub struct RedisLimiter<K: ?Sized, C> {
    connection: C,
    local: KeyedLimiter<K>,
    prefix: Arc<str>,
    timeout: Duration,
    on_failure: OnFailure,
    server: Arc<Server>,
}

/// What becomes of a request when Redis does not reply in time, or not at all, or with an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFailure {
    /// This machine's own bucket decides. The default: the service stays up, and a client gets at most the quota from each
    /// machine.
    #[default]
    Local,
    /// It passes. For limits that only keep order.
    Open,
    /// It is refused: 503, code `rate-limit-unavailable`. For limits that must hold, such as paid ones.
    Closed,
}

/// What is known of the server.
#[derive(Debug)]
struct Server {
    script: Script,
    /// Nanoseconds since the local limiter's start; 0 while it answers.
    down_until: AtomicU64,
    failures: AtomicU64,
    error_replies: OnceAMinute,
}

/// What is decided without a round trip.
enum First {
    Decided(Result<Taken, Denial>),
    Ask(Question),
}

/// What the server is to be asked.
#[derive(Clone, Debug)]
struct Question {
    name: Vec<u8>,
    drawer: Drawer,
    terms: Terms,
    /// From the local bucket.
    taken: Taken,
    drawn: Drawn,
}

/// Counts one who goes before there is an answer.
struct Asked<'a, K: ?Sized, C> {
    limiter: &'a RedisLimiter<K, C>,
    drawer: Drawer,
}

// === impl RedisLimiter ===

impl<K: ?Sized, C> RedisLimiter<K, C> {
    /// The same quota for each key, over all machines that use the same Redis and prefix.
    ///
    /// The prefix is what the names of the buckets in Redis begin with, such as `shop:logins`. It is the limit's name there
    /// and has no default: two limiters with the same prefix draw from the same buckets, whatever their quotas say. A zero byte
    /// stands between it and the key, so that no key, whatever a client writes, is a bucket of a limiter with a longer prefix.
    #[must_use]
    pub fn new(connection: C, prefix: &str, quota: Quota) -> Self {
        Self {
            connection,
            local: KeyedLimiter::new(quota),
            prefix: prefix.into(),
            timeout: DEFAULT_TIMEOUT,
            on_failure: OnFailure::default(),
            server: Arc::default(),
        }
    }

    /// How long a request waits for Redis. Default: 100 ms, many times what a round trip in a network takes, and bearable for
    /// those that meet a server that has just died, before it is left alone.
    #[must_use]
    pub fn timeout(self, longest: Duration) -> Self {
        Self {
            timeout: longest,
            ..self
        }
    }

    /// What becomes of requests when Redis does not answer. Default: [`OnFailure::Local`].
    #[must_use]
    pub fn on_failure(self, choice: OnFailure) -> Self {
        Self {
            on_failure: choice,
            ..self
        }
    }

    /// How many keys this machine remembers by itself. Default: 100 000. Call it first, as it makes these buckets anew.
    ///
    /// When so many keys are active, newcomers share one local bucket, as for a [`KeyedLimiter`], and are not asked about in
    /// Redis beyond that: so a flood of made-up keys does not fill Redis either. Name a greater number where this machine sees more
    /// clients than that within a quota's [`interval`](Quota::interval).
    #[must_use]
    pub fn capacity(self, keys: NonZeroU32) -> Self {
        Self {
            local: self.local.capacity(keys),
            server: Arc::default(),
            ..self
        }
    }

    /// Keeps another quota from now on, here. Each machine must be told; until all are, each holds to its own.
    pub fn set_quota(&self, quota: Quota) {
        self.local.set_quota(quota);
    }

    /// What it has done so far on this machine; the keys and evictions are those of its own buckets.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            redis_failures: self.server.failures.load(Relaxed),
            ..self.local.snapshot()
        }
    }

    /// Whether Redis is asked. Not so for a second after a timeout or an I/O error; then one request at a time asks until it
    /// replies.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.local.since_start(Instant::now()) >= self.server.down_until.load(Relaxed)
    }

    /// Decides by itself, if that can be done.
    fn first(&self, drawer: Drawer, terms: Terms, name: impl FnOnce(&mut Vec<u8>)) -> First {
        let (quota, now) = (
            terms.quota_or(self.local.quota()),
            self.local.since_start(Instant::now()),
        );
        let is_up = now >= self.server.down_until.load(Relaxed);
        if !is_up && let Some(decision) = self.without_the_server(terms) {
            return First::Decided(decision);
        }
        let taken = match terms.take(now, quota, 0, |ask| self.local.take(drawer, ask)) {
            Ok(taken) if is_up => taken,
            decision => return First::Decided(decision),
        };
        let Some(drawn) = taken.drawn() else {
            return First::Decided(Ok(taken));
        };
        if !self.server.may_ask(now) {
            let decision = self.without_the_server(terms).unwrap_or(Ok(taken));
            if decision.is_err() {
                self.give_back(drawer, taken, drawn);
            }
            return First::Decided(decision);
        }
        First::Ask(Question {
            name: bucket_name(&self.prefix, name),
            drawer,
            terms,
            taken,
            drawn,
        })
    }

    /// What becomes of a request about which the server cannot be asked. `None`: the local bucket decides.
    fn without_the_server(&self, terms: Terms) -> Option<Result<Taken, Denial>> {
        match self.on_failure {
            OnFailure::Local => None,
            _ if terms.tokens() == 0 => None,
            OnFailure::Open => Some(Ok(Taken::NOTHING)),
            OnFailure::Closed => Some(terms.refuse(Reason::Unavailable)),
        }
    }

    /// There was no reply: for a while the server is not asked.
    #[cold]
    fn no_reply(&self, question: &Question, error: Option<&RedisError>) -> Result<Taken, Denial> {
        let now = self.local.since_start(Instant::now());
        if self.server.down_until.swap(now + PAUSE, Relaxed) == 0 {
            let error = error.map_or("timed out".to_owned(), ToString::to_string);
            tracing::warn!(error, instead = ?self.on_failure, "redis does not answer the rate limiter");
        }
        self.failed(question)
    }

    /// The reply was an error: that is this request's, or this key's, and says nothing about the others.
    #[cold]
    fn error_reply(&self, question: &Question, error: &RedisError) -> Result<Taken, Denial> {
        self.server.replied();
        let now = self.local.since_start(Instant::now());
        if self.server.error_replies.is_due(now) {
            tracing::warn!(%error, instead = ?self.on_failure, "redis replied to the rate limiter with an error");
        }
        self.failed(question)
    }

    fn failed(&self, question: &Question) -> Result<Taken, Denial> {
        self.server.failures.fetch_add(1, Relaxed);
        let decision = self
            .without_the_server(question.terms)
            .unwrap_or(Ok(question.taken));
        if decision.is_err() {
            self.give_back(question.drawer, question.taken, question.drawn);
        }
        decision
    }

    fn answered(&self, question: &Question, (wait, debt): (u64, u64)) -> Result<Taken, Denial> {
        self.server.replied();
        let nanos = |micros: u64| micros.saturating_mul(1000);
        if wait == 0 {
            return Ok(question.taken.owing(nanos(debt)));
        }
        // What did not pass has used up nothing here either.
        self.give_back(question.drawer, question.taken, question.drawn);
        self.local
            .hold(question.drawer, question.taken.ask(), nanos(wait));
        question.terms.refuse(Reason::Wait(nanos(wait)))
    }

    fn give_back(&self, drawer: Drawer, taken: Taken, drawn: Drawn) {
        let (bucket, now) = (drawn.bucket(drawer), self.local.since_start(Instant::now()));
        self.local
            .give_back(bucket, taken.ask(), taken.at_once(), now);
    }

    fn count(&self, drawer: Drawer, decision: Result<Taken, Denial>) -> Result<Taken, Exhausted> {
        self.local.count(
            drawer,
            decision.map_or(Fate::Refused, |taken| taken.fate(false)),
        );
        decision.map_err(|denial| denial.exhausted())
    }
}

impl<K: ?Sized, C: ConnectionLike + Clone> RedisLimiter<K, C> {
    async fn ask(&self, question: &Question) -> Result<Taken, Denial> {
        let asked = Asked {
            limiter: self,
            drawer: question.drawer,
        };
        let decision = self.ask_the_server(question).await;
        mem::forget(asked);
        decision
    }

    async fn ask_the_server(&self, question: &Question) -> Result<Taken, Denial> {
        let (cost, depth) = in_micros(question.taken.quota(), question.terms.tokens());
        let mut connection = self.connection.clone();
        let mut call = self.server.script.prepare_invoke();
        call.key(&question.name).arg(cost).arg(depth);
        match timeout(self.timeout, call.invoke_async(&mut connection)).await {
            Ok(Ok(answer)) => self.answered(question, answer),
            Ok(Err(error)) if is_reply(&error) => self.error_reply(question, &error),
            Ok(Err(error)) => self.no_reply(question, Some(&error)),
            Err(_) => self.no_reply(question, None),
        }
    }
}

impl<K: Hash + RedisKey + ?Sized, C: ConnectionLike + Clone> RedisLimiter<K, C> {
    /// Takes one token from the bucket of `key`, now.
    ///
    /// # Errors
    ///
    /// The bucket is empty; or Redis does not answer, and that means no ([`OnFailure::Closed`]).
    pub async fn check_key(&self, key: &K) -> Result<Admitted, Exhausted> {
        self.check_key_cost(key, 1).await
    }

    /// Takes so many tokens from the bucket of `key`, now. What costs none always passes, and asks nobody.
    ///
    /// # Errors
    ///
    /// The bucket has not so many now, or never holds so many; or Redis does not answer, and that means no.
    pub async fn check_key_cost(&self, key: &K, tokens: u32) -> Result<Admitted, Exhausted> {
        let drawer = Drawer::Key(self.local.fingerprint(key));
        let decision = match self.first(drawer, Terms::costing(tokens), |name| key.write_to(name)) {
            First::Decided(decision) => decision,
            First::Ask(question) => self.ask(&question).await,
        };
        let debt = self
            .count(drawer, decision)?
            .drawn()
            .map_or(0, |drawn| drawn.debt);
        Ok(Admitted::new(debt, self.local.quota()))
    }
}

// === impl Asked ===

impl<K: ?Sized, C> Drop for Asked<'_, K, C> {
    fn drop(&mut self) {
        self.limiter.local.count(self.drawer, Fate::Abandoned);
    }
}

/// The name of a key's bucket in Redis.
fn bucket_name(prefix: &str, key: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut name = prefix.as_bytes().to_vec();
    name.push(0);
    key(&mut name);
    name
}

/// Whether the server said so, and not the connection to it.
fn is_reply(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType
    )
}

// === impl Server ===

impl Server {
    /// It is asked again, if it was left alone.
    fn replied(&self) {
        if self.down_until.load(Relaxed) != 0 && self.down_until.swap(0, Relaxed) != 0 {
            tracing::info!("redis answers the rate limiter again");
        }
    }

    /// While it is not known to answer, one asks, and the others do not wait for it with that one.
    fn may_ask(&self, now: u64) -> bool {
        let until = self.down_until.load(Relaxed);
        until == 0
            || until <= now
                && self
                    .down_until
                    .compare_exchange(until, now + PAUSE, Relaxed, Relaxed)
                    .is_ok()
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            script: Script::new(SCRIPT),
            down_until: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            error_replies: OnceAMinute::default(),
        }
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

/// Cost and depth in whole microseconds, rounded up: so many tokens, and as many as the burst says.
fn in_micros(quota: Quota, tokens: u32) -> (u64, u64) {
    let (interval, burst) = quota.parts();
    let one = interval.div_ceil(1000);
    // Lua's numbers are exact up to 2^53; the clock is below 2^51, and two of these are added to it.
    let micros = |tokens: u32| one.saturating_mul(tokens.into()).min(MOST_MICROS);
    (micros(tokens), micros(burst))
}

const SCRIPT: &str = include_str!("gcra.lua");
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);

/// For so many nanoseconds Redis is left alone after a failure, so that not every request waits for the timeout.
const PAUSE: u64 = 1_000_000_000;

/// 2^51 µs, 71 years.
const MOST_MICROS: u64 = 1 << 51;

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

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
            in_micros(Quota::per_second(n(100)).burst(n(20)), 1),
            (10_000, 200_000)
        );
        assert_eq!(
            in_micros(Quota::per_second(n(100)).burst(n(20)), 20),
            (200_000, 200_000)
        );
        assert_eq!(in_micros(Quota::per_second(n(3)), 2), (666_668, 1_000_002));
        assert_eq!(
            in_micros(Quota::per_second(n(4_000_000)).burst(n(10)), 1),
            (1, 10)
        );
        let never = Quota::every(Duration::MAX).unwrap();
        assert_eq!(in_micros(never, 1), (MOST_MICROS, MOST_MICROS));
    }
}
