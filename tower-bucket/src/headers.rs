//! The `RateLimit` and `RateLimit-Policy` fields of answers.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::{Admitted, Exhausted, Quota, error::Reason, limit::Standing};

/// The state of a limit in a response: the fields of draft-ietf-httpapi-ratelimit-headers-11.
///
/// ```text
/// ratelimit-policy: "default";q=100;w=60
/// ratelimit: "default";r=42;t=1
/// ```
///
/// The policy is the rate, over the time in which an empty bucket becomes full, in whole seconds and at least one: `q`
/// requests in `w` seconds. `r` is how many more would pass at once, and `t` how long that stays true: the seconds until
/// there is one more, rounded up, and the same as `Retry-After` where the request was refused. It is left out where
/// waiting adds nothing: the bucket is full, or no wait helps.
///
/// Several limits add a line each, with their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitHeaders {
    name: PolicyName,
    standing: Standing,
}

/// A limit's name in the [`RateLimitHeaders`]. Default: `default`.
///
/// ```
/// use tower_bucket::PolicyName;
///
/// const PER_CLIENT: PolicyName = PolicyName::new("per-client").unwrap();
/// assert!(PolicyName::new("\"").is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyName(&'static str);

/// Writes itself into an answer: nothing, [`RateLimitHeaders`], or several.
#[expect(unnameable_types, reason = "part of a sealed trait")]
pub trait DecorateResponse<Res> {
    /// Writes.
    fn decorate(&self, response: &mut Res);
}

// === impl RateLimitHeaders ===

impl RateLimitHeaders {
    /// The fields of a request that was let through.
    #[must_use]
    pub const fn admitted(name: PolicyName, admitted: Admitted) -> Self {
        Self::new(name, Standing::Admitted(admitted))
    }

    /// The fields of a request that was rejected under `quota`.
    #[must_use]
    pub fn rejected(name: PolicyName, quota: Quota, exhausted: Exhausted) -> Self {
        let reason = exhausted.retry_after().map_or(Reason::Cost, |after| {
            Reason::Wait(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
        });
        Self::new(name, Standing::Denied(quota, reason))
    }

    pub(crate) const fn new(name: PolicyName, standing: Standing) -> Self {
        Self { name, standing }
    }

    /// Appends the fields.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        let (quota, remaining, after) = match self.standing {
            Standing::Admitted(admitted) => (
                admitted.quota(),
                admitted.remaining(),
                until_more(&admitted),
            ),
            Standing::Denied(quota, Reason::Wait(nanos)) => {
                (quota, 0, Some(Duration::from_nanos(nanos)))
            }
            Standing::Denied(quota, _) => (quota, 0, None),
            Standing::None => return,
        };
        let ((requests, seconds), name) = (policy(quota), self.name.0);
        headers.append(
            RATELIMIT_POLICY,
            value(format_args!("\"{name}\";q={requests};w={seconds}")),
        );
        headers.append(
            RATELIMIT,
            match after.map(whole_seconds) {
                Some(after) => value(format_args!("\"{name}\";r={remaining};t={after}")),
                None => value(format_args!("\"{name}\";r={remaining}")),
            },
        );
    }
}

fn until_more(admitted: &Admitted) -> Option<Duration> {
    Some(admitted.next_after()).filter(|after| !after.is_zero())
}

/// Requests and seconds, as whole numbers nearest to the rate.
fn policy(quota: Quota) -> (u64, u64) {
    let (interval, refill) = (quota.interval().as_nanos(), quota.refill());
    let seconds = refill.as_secs() + u64::from(refill.subsec_nanos() >= 500_000_000);
    let seconds = seconds.max(1);
    let requests = (u128::from(seconds) * 1_000_000_000 + interval / 2) / interval;
    (
        u64::try_from(requests).map_or(MOST, |requests| {
            requests.clamp(u64::from(quota.burst_size() > 0), MOST)
        }),
        seconds,
    )
}

fn whole_seconds(after: Duration) -> u64 {
    after
        .as_secs()
        .saturating_add(u64::from(after.subsec_nanos() > 0))
        .max(1)
}

fn value(text: fmt::Arguments<'_>) -> HeaderValue {
    let mut value = String::with_capacity(USUAL);
    value
        .write_fmt(text)
        .expect("a string takes all that is written to it");
    HeaderValue::try_from(value).expect("digits, and a name that was checked")
}

// === impl PolicyName ===

impl PolicyName {
    /// `None` if it has a character that would not be itself in a structured field's string (RFC 9651 section 3.3.3): one
    /// that is not printable ASCII, a quote or a backslash.
    #[must_use]
    pub const fn new(name: &'static str) -> Option<Self> {
        let (bytes, mut at) = (name.as_bytes(), 0);
        while at < bytes.len() {
            if !matches!(bytes[at], b' '..=b'~') || matches!(bytes[at], b'"' | b'\\') {
                return None;
            }
            at += 1;
        }
        Some(Self(name))
    }
}

impl Default for PolicyName {
    fn default() -> Self {
        Self("default")
    }
}

// === impl DecorateResponse ===

impl<Res> DecorateResponse<Res> for () {
    fn decorate(&self, _: &mut Res) {}
}

impl<B> DecorateResponse<Response<B>> for RateLimitHeaders {
    fn decorate(&self, response: &mut Response<B>) {
        self.add_to(response.headers_mut());
    }
}

impl<Res, A: DecorateResponse<Res>, B: DecorateResponse<Res>> DecorateResponse<Res> for (A, B) {
    fn decorate(&self, response: &mut Res) {
        self.0.decorate(response);
        self.1.decorate(response);
    }
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Bytes that a field has, so that it is written in one go.
const USUAL: usize = 64;

/// The greatest integer of a structured field (RFC 9651 section 3.3.1).
const MOST: u64 = 999_999_999_999_999;

#[cfg(test)]
mod tests;
