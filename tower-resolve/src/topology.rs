use std::{fmt, sync::Arc};

use crate::{
    Endpoint, EndpointId, Generation,
    chunks::{Chunks, Difference},
    diff::Change,
};

/// The endpoints of a name at one generation.
///
/// Immutable and cheap to clone. Generations share unchanged endpoints, in chunks of up to 64, so that a small change costs
/// little more than its size, to apply and to compare.
#[derive(Clone)]
pub struct Topology {
    generation: Generation,
    exists: bool,
    endpoints: Chunks<Arc<Endpoint>>,
}

// === impl Topology ===

impl Topology {
    /// All endpoints of a name as of `generation`. Of two with the same id the later one is used.
    pub fn new<E: Into<Arc<Endpoint>>>(
        generation: Generation,
        endpoints: impl IntoIterator<Item = E>,
    ) -> Self {
        Self {
            generation,
            exists: true,
            endpoints: Chunks::new(endpoints.into_iter().map(Into::into)),
        }
    }

    /// The topology of a name that does not exist.
    #[must_use]
    pub fn missing(generation: Generation) -> Self {
        Self {
            generation,
            exists: false,
            endpoints: Chunks::default(),
        }
    }

    /// The generation of the set.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether the source knows the name.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// The number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there are no endpoints.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.len() == 0
    }

    /// The endpoint with that id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(id)
    }

    /// The endpoints, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter()
    }

    /// Whether both have the same endpoints, regardless of their generations.
    pub(crate) fn has_same_endpoints(&self, other: &Self) -> bool {
        self.exists == other.exists
            && self.len() == other.len()
            && Change::between(self, other).is_empty()
    }

    pub(crate) fn at(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }

    /// Reports the difference of each endpoint, except in chunks that both share.
    pub(crate) fn differences<'a>(
        &'a self,
        after: &'a Self,
        tell: impl FnMut(Difference<'a, Arc<Endpoint>>),
    ) {
        self.endpoints.differences(&after.endpoints, tell);
    }

    /// The same endpoints, sharing with `older` all that did not change; `change` is the difference.
    pub(crate) fn sharing(self, older: &Self, change: &Change) -> Self {
        if self.endpoints.is_same(&older.endpoints) {
            return self;
        }
        let put = change
            .added
            .iter()
            .chain(change.changed.iter().map(|(_, after)| after))
            .cloned();
        let removed = change.removed.iter().map(|endpoint| endpoint.id());
        Self {
            endpoints: edited(older.endpoints.clone(), put, removed),
            ..self
        }
    }

    /// Costs the size of the change, and if another reference exists, a copy of the chunks that change.
    pub(crate) fn changed<'a>(
        self,
        to: Generation,
        put: impl IntoIterator<Item = Arc<Endpoint>>,
        removed: impl IntoIterator<Item = &'a EndpointId>,
    ) -> Self {
        let endpoints = edited(self.endpoints, put, removed);
        Self {
            generation: to,
            exists: self.exists || endpoints.len() > 0,
            endpoints,
        }
    }
}

fn edited<'a>(
    mut endpoints: Chunks<Arc<Endpoint>>,
    put: impl IntoIterator<Item = Arc<Endpoint>>,
    removed: impl IntoIterator<Item = &'a EndpointId>,
) -> Chunks<Arc<Endpoint>> {
    for id in removed {
        endpoints.remove(id.as_str());
    }
    for endpoint in put {
        endpoints.insert(endpoint);
    }
    endpoints
}

impl PartialEq for Topology {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation && self.has_same_endpoints(other)
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology")
            .field("generation", &self.generation)
            .field("exists", &self.exists)
            .field("endpoints", &self.endpoints.iter().collect::<Vec<_>>())
            .finish()
    }
}
