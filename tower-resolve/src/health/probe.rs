use std::{fmt, pin::Pin};

use tower_outcome::BoxError;

use crate::Endpoint;

/// Checks whether one endpoint is healthy.
pub trait Probe: Send + Sync + 'static {
    /// The result. Dropped when it takes too long, which is a failure.
    type Future: Future<Output = Result<(), BoxError>> + Send + 'static;

    /// Starts a check.
    fn probe(&self, endpoint: &Endpoint) -> Self::Future;
}

/// A custom probe. Created by [`from_fn`].
#[derive(Clone)]
pub struct FromFn<F>(F);

/// A probe that is a function.
///
/// ```
/// use tower_outcome::BoxError;
/// use tower_resolve::{Endpoint, health};
///
/// let probe = health::from_fn(|endpoint: &Endpoint| {
///     let is_known = endpoint.metadata().contains_key("version");
///     async move { if is_known { Ok(()) } else { Err(BoxError::from("no version")) } }
/// });
/// # let _ = probe;
/// ```
pub fn from_fn<F, Fut>(probe: F) -> FromFn<F>
where
    F: Fn(&Endpoint) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    FromFn(probe)
}

/// A probe without its type, so that a balance need not carry it around. Boxed once a check.
pub(crate) type BoxProbe = Box<dyn Fn(&Endpoint) -> BoxProbing + Send + Sync>;
pub(crate) type BoxProbing = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

// === impl FromFn ===

impl<F, Fut> Probe for FromFn<F>
where
    F: Fn(&Endpoint) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    type Future = Fut;

    fn probe(&self, endpoint: &Endpoint) -> Fut {
        (self.0)(endpoint)
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FromFn").finish_non_exhaustive()
    }
}
