use std::{any::Any, error::Error, fmt, sync::Mutex, time::Duration};

use http::StatusCode;

/// The error type of every layer that rejects with an error, as in Tower: reordering layers changes no types.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a request was rejected. The class decides the HTTP and the gRPC status.
///
/// | class | HTTP | gRPC |
/// |---|---|---|
/// | `Unavailable` | 503 | 14 `UNAVAILABLE` |
/// | `Limited` | 429 | 8 `RESOURCE_EXHAUSTED` |
/// | `Exhausted` | 503 | 8 `RESOURCE_EXHAUSTED` |
/// | `TimedOut` | 504 | 4 `DEADLINE_EXCEEDED` |
/// | `BadUpstream` | 502 | 14 `UNAVAILABLE` |
/// | `Misdirected` | 421 | 14 `UNAVAILABLE` |
/// | `Stale` | 412 | 9 `FAILED_PRECONDITION` |
/// | `BadRequest` | 400 | 13 `INTERNAL` |
/// | `Internal` | 500 | 13 `INTERNAL` |
///
/// The HTTP codes follow RFC 9110 section 15 and RFC 6585 section 4, the gRPC ones gRPC's `statuscodes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Temporarily unable to serve: a circuit is open, a lease is not held, there is no endpoint, the process is draining.
    Unavailable,
    /// The client exceeded its rate limit.
    Limited,
    /// The server's own capacity is used up, independent of the client.
    Exhausted,
    /// No response within the time limit.
    TimedOut,
    /// The upstream failed: it closed the connection or sent an invalid response.
    BadUpstream,
    /// Meant for another instance that had this address before (RFC 9110 section 15.5.20).
    Misdirected,
    /// The request carries a lower fencing token than an earlier one did.
    Stale,
    /// The client's fault: the request is malformed, or its body broke off.
    BadRequest,
    /// A fault of this process.
    Internal,
}

/// A rejection by a local layer: its class, a code for programs to match on, and the delay before a retry.
///
/// Each crate has an error type named after the state that rejects (`Open`, `Exhausted`, `NotHeld` …) whose `source()` is
/// its `Refusal`. [`Refusal::find`] searches an error chain for it and so distinguishes a local rejection from a failure of
/// the upstream, independent of the layers in between. Retry layers use it to skip requests that were rejected locally.
///
/// ```
/// use tower_outcome::{BoxError, Class, Refusal};
///
/// let error: BoxError = Refusal::new(Class::Unavailable, "circuit-open").into();
/// assert_eq!(Refusal::find(&*error).unwrap().code(), "circuit-open");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    class: Class,
    code: &'static str,
    retry_after: Option<Duration>,
}

/// An error type that contains a [`Refusal`].
pub trait Refused: Error + Send + Sync + 'static {
    /// The refusal.
    fn refusal(&self) -> &Refusal;
}

/// A request that was never written to a connection, returned inside an error.
///
/// A gate that closes between readiness and `call`, or a pool that cannot connect, returns this error, so that a balancer
/// can send the same request to another endpoint. That is failover, not a retry: no byte of the request was sent. The
/// cause is the `source()`.
///
/// ```
/// use tower_outcome::{BoxError, Class, Refusal, Unsent};
///
/// let error: BoxError = Unsent::new("request", Refusal::new(Class::Unavailable, "circuit-open")).into();
/// let (request, cause) = Unsent::<&str>::recover(error).unwrap();
/// assert_eq!(request, "request");
/// assert!(cause.is::<Refusal>());
/// ```
pub struct Unsent<Req> {
    // Never locked. It makes the error `Sync` for requests that are not.
    request: Mutex<Req>,
    cause: BoxError,
}

// === impl Class ===

impl Class {
    /// The HTTP status of this class.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Unavailable | Self::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limited => StatusCode::TOO_MANY_REQUESTS,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::BadUpstream => StatusCode::BAD_GATEWAY,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Stale => StatusCode::PRECONDITION_FAILED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC status code of this class.
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::TimedOut => 4,
            Self::Limited | Self::Exhausted => 8,
            Self::Stale => 9,
            Self::BadRequest | Self::Internal => 13,
            Self::Unavailable | Self::BadUpstream | Self::Misdirected => 14,
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Limited => "too many requests",
            Self::Exhausted => "out of capacity",
            Self::TimedOut => "timed out",
            Self::BadUpstream => "bad upstream",
            Self::Misdirected => "meant for another instance",
            Self::Stale => "stale fencing token",
            Self::BadRequest => "bad request",
            Self::Internal => "internal error",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal without a retry hint. `code` is for programs to match on: lower-case words joined by `-`, such as
    /// `circuit-open`.
    #[must_use]
    pub const fn new(class: Class, code: &'static str) -> Self {
        Self {
            class,
            code,
            retry_after: None,
        }
    }

    /// Sets the delay before a retry; `None` if it is not known.
    #[must_use]
    pub const fn with_retry_after(self, after: Option<Duration>) -> Self {
        Self {
            retry_after: after,
            ..self
        }
    }

    /// The class.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// The code for programs to match on.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// The delay before a retry, if it is known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Finds a refusal in an error or its chain of sources. Costs one downcast per link of the chain.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            // Tower's wrappers return the boxed error itself as their source, so one downcast per link is enough.
            if let Some(refusal) = error.downcast_ref() {
                return Some(refusal);
            }
            next = error.source();
        }
        None
    }

    /// Like [`find`](Self::find), for the error type of a generic layer.
    ///
    /// Searches a [`BoxError`] and recognizes a bare `Refusal`. For any other type it returns `None`: a layer that required
    /// `Error` to search it could not accept a [`BoxError`], which does not implement `Error`.
    #[must_use]
    pub fn of<E: 'static>(error: &E) -> Option<&Self> {
        let error: &dyn Any = error;
        if let Some(boxed) = error.downcast_ref::<BoxError>() {
            return Self::find(&**boxed);
        }
        error.downcast_ref()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.class.message(), self.code)
    }
}

impl Error for Refusal {}

impl Refused for Refusal {
    fn refusal(&self) -> &Refusal {
        self
    }
}

// === impl Unsent ===

impl<Req> Unsent<Req> {
    /// Returns `request` because of `cause`.
    pub fn new(request: Req, cause: impl Into<BoxError>) -> Self {
        Self {
            request: Mutex::new(request),
            cause: cause.into(),
        }
    }

    /// The request and the reason why it was not sent.
    pub fn into_parts(self) -> (Req, BoxError) {
        let request = self
            .request
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        (request, self.cause)
    }
}

impl<Req: Send + 'static> Unsent<Req> {
    /// Takes the request out of an error.
    ///
    /// # Errors
    ///
    /// Returns the error unchanged if its outermost type is not `Unsent<Req>`: the request may have been written, and sending
    /// it again would be a retry.
    pub fn recover(error: BoxError) -> Result<(Req, BoxError), BoxError> {
        error.downcast::<Self>().map(|unsent| unsent.into_parts())
    }
}

impl<Req> fmt::Debug for Unsent<Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsent")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

impl<Req> fmt::Display for Unsent<Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was not sent")
    }
}

impl<Req> Error for Unsent<Req> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(BoxError);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    const OPEN: Refusal = Refusal::new(Class::Unavailable, "circuit-open");

    #[test]
    fn a_refusal_is_found_however_deep_it_lies() {
        let error: BoxError = Wrapped(Wrapped(OPEN.into()).into()).into();
        assert_eq!(Refusal::find(&*error), Some(&OPEN));
        assert_eq!(Refusal::of(&error), Some(&OPEN));
    }

    #[test]
    fn a_refusal_is_found_through_a_request_handed_back() {
        let error: BoxError = Unsent::new(7_u8, OPEN).into();
        assert_eq!(Refusal::of(&error), Some(&OPEN));
    }

    #[test]
    fn an_upstreams_error_is_no_refusal() {
        let error: BoxError = Wrapped("connection reset".into()).into();
        assert_eq!(Refusal::find(&*error), None);
        assert_eq!(Refusal::of(&error), None);
        assert_eq!(Refusal::of(&std::io::Error::other("x")), None);
    }

    #[test]
    fn a_request_of_another_type_is_not_handed_back() {
        let error: BoxError = Unsent::new(7_u8, OPEN).into();
        let error = Unsent::<u16>::recover(error).unwrap_err();
        assert_eq!(Unsent::<u8>::recover(error).unwrap().0, 7);
    }

    #[test]
    fn a_request_that_is_not_sync_makes_a_sync_error() {
        let request = std::cell::Cell::new(3);
        let error: BoxError = Unsent::new(request, OPEN).into();
        assert_eq!(
            Unsent::<std::cell::Cell<i32>>::recover(error)
                .unwrap()
                .0
                .get(),
            3
        );
    }
}
