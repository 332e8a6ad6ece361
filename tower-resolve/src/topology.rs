use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{Endpoint, EndpointId, Generation};

/// The endpoints of a name at one generation.
///
/// Immutable and cheap to clone. Endpoints that did not change are shared between generations, so that comparing two
/// costs a pointer for each of them.
#[derive(Clone, PartialEq)]
pub struct Topology {
    generation: Generation,
    exists: bool,
    endpoints: Arc<Endpoints>,
}

type Endpoints = BTreeMap<EndpointId, Arc<Endpoint>>;

// === impl Topology ===

impl Topology {
    /// All endpoints of a name as of `generation`. Of two with the same id the later one counts.
    pub fn new<E: Into<Arc<Endpoint>>>(generation: Generation, endpoints: impl IntoIterator<Item = E>) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into);
        let endpoints = endpoints.map(|endpoint: Arc<Endpoint>| (endpoint.id().clone(), endpoint)).collect();
        Self { generation, exists: true, endpoints: Arc::new(endpoints) }
    }

    /// What is known of a name that does not exist.
    #[must_use]
    pub fn missing(generation: Generation) -> Self {
        Self { generation, exists: false, endpoints: Arc::default() }
    }

    /// The generation that it is complete to.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether the source knows the name at all.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// How many endpoints there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint of that name.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(id)
    }

    /// The endpoints, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    /// Whether both hold the same endpoints, whatever their generations.
    pub(crate) fn has_same_endpoints(&self, other: &Self) -> bool {
        self.exists == other.exists
            && (Arc::ptr_eq(&self.endpoints, &other.endpoints) || self.endpoints == other.endpoints)
    }

    pub(crate) fn at(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }

    /// Puts what equals an endpoint of `older` in its place, so that both share it.
    pub(crate) fn sharing(mut self, older: &Self) -> Self {
        if Arc::ptr_eq(&self.endpoints, &older.endpoints) {
            return self;
        }
        for (id, endpoint) in Arc::make_mut(&mut self.endpoints) {
            if let Some(known) = older.endpoints.get(id)
                && known == endpoint
            {
                *endpoint = known.clone();
            }
        }
        self
    }

    /// Costs the size of the change, and a copy of the map if somebody else still holds it.
    pub(crate) fn changed(mut self, to: Generation, put: Endpoints, removed: &[EndpointId]) -> Self {
        let endpoints = Arc::make_mut(&mut self.endpoints);
        for id in removed {
            endpoints.remove(id);
        }
        endpoints.extend(put);
        let exists = self.exists || !endpoints.is_empty();
        Self { generation: to, exists, ..self }
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology")
            .field("generation", &self.generation)
            .field("exists", &self.exists)
            .field("endpoints", &self.endpoints.values())
            .finish()
    }
}
