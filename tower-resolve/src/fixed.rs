use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{Endpoint, Generation, Resolve, SourceId, Topology, Update};

/// Names whose endpoints never change.
///
/// Answers each name with one snapshot, or with [`Update::DoesNotExist`], and sends nothing after that.
///
/// ```
/// use tower_resolve::{Endpoint, StaticResolver};
///
/// let resolver = StaticResolver::new().with("echo", [
///     Endpoint::new("echo-1", "127.0.0.1:8081".parse().unwrap()),
///     Endpoint::new("echo-2", "127.0.0.1:8082".parse().unwrap()),
/// ]);
/// # let _ = resolver;
/// ```
#[derive(Clone, Debug)]
pub struct StaticResolver {
    generation: Generation,
    names: HashMap<String, Topology>,
}

/// The updates of a [`StaticResolver`]: a single one, then pending.
#[derive(Debug)]
pub struct StaticUpdates(Option<Update>);

// === impl StaticResolver ===

impl StaticResolver {
    /// Without names.
    #[must_use]
    pub fn new() -> Self {
        Self {
            generation: Generation::new(SourceId::unique(), 1),
            names: HashMap::new(),
        }
    }

    /// Adds a name, or replaces its endpoints.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<String>,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Self {
        self.names
            .insert(name.into(), Topology::new(self.generation, endpoints));
        self
    }
}

impl Default for StaticResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolve for StaticResolver {
    type Updates = StaticUpdates;

    fn resolve(&self, name: &str) -> StaticUpdates {
        let known = self.names.get(name).cloned();
        StaticUpdates(Some(
            known.map_or(Update::DoesNotExist(self.generation), Update::Snapshot),
        ))
    }
}

// === impl StaticUpdates ===

impl Stream for StaticUpdates {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Update>> {
        // Pending without a waker: there will never be more.
        self.0
            .take()
            .map_or(Poll::Pending, |update| Poll::Ready(Some(update)))
    }
}
