use std::{fmt, sync::Arc};

use http::Extensions;

use crate::{
    drain::{Drain, Shared},
    phase::Phase,
    wait::Reached,
};

/// The cancellation that reaches every handler: it fires when the drain is forced.
///
/// [`Http`](crate::Http) and [`DrainLayer`](crate::DrainLayer) put one into the extensions of each request, and
/// [`Drain::cancellation`] makes one for tasks. A
/// handler that listens has the force time to say something sensible; one that does not is dropped at its next
/// `await` when that time is over, and counted as leaked.
///
/// ```
/// use axum::Extension;
/// use tower_drain::Cancellation;
///
/// async fn slow(Extension(cancellation): Extension<Cancellation>) -> &'static str {
///     tokio::select! {
///         () = cancellation.cancelled() => "not today",
///         () = tokio::time::sleep(std::time::Duration::from_secs(60)) => "done",
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Cancellation(Arc<Shared>);

// === impl Cancellation ===

impl Cancellation {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Not a second time where a server of this drain or another layer has done so.
    pub(crate) fn insert_into(self, extensions: &mut Extensions) {
        let is_ours = |there: &Self| Arc::ptr_eq(&there.0, &self.0);
        if !extensions.get().is_some_and(is_ours) {
            extensions.insert(self);
        }
    }

    /// Ready once it has fired. Dropping the future changes nothing.
    pub fn cancelled(&self) -> Reached {
        Reached::new(self.0.clone(), Phase::Forced)
    }

    /// Whether it has fired.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.look().0 >= Phase::Forced
    }
}

impl Drain {
    /// The cancellation of this drain, for a task or a handler of your own.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        Cancellation::new(self.shared.clone())
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation")
            .field("phase", &self.0.told())
            .finish()
    }
}
