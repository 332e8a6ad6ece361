use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    answer::{Addresses, Servers, Ttl},
    target::Target,
};
use crate::{Cause, Endpoint, Generation, SourceId, backoff::Backoff};

/// The last answers, shared by all followers of a name.
#[derive(Debug)]
pub(super) struct Memories {
    source: SourceId,
    count: AtomicU64,
    names: Mutex<HashMap<Arc<str>, Named>>,
}

/// The last answer for one name. Locked during a query.
pub(super) type Place = Arc<tokio::sync::Mutex<Memory>>;

#[derive(Debug)]
struct Named {
    place: Place,
    used_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    addresses: Addresses,
    last: Option<(Known, Instant)>,
    /// The last answer that was one, over trouble.
    good: Option<(Generation, Option<Vec<Arc<Endpoint>>>)>,
    failures: u32,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// DNS has answered. `None`: there is no such name.
    Answer {
        generation: Generation,
        endpoints: Option<Vec<Arc<Endpoint>>>,
    },
    Trouble(Cause),
}

// === impl Memories ===

impl Memories {
    /// The entry of `name`. The least recently used ones without followers are evicted.
    pub(super) fn place(&self, name: &str, now: Instant) -> Place {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = names.get_mut(name) {
            named.used_at = now;
            return named.place.clone();
        }
        if names.len() >= MAX_NAMES {
            let idle = names
                .iter()
                .filter(|(_, named)| Arc::strong_count(&named.place) == 1);
            let oldest = idle
                .min_by_key(|(_, named)| named.used_at)
                .map(|(name, _)| name.clone());
            let Some(oldest) = oldest else {
                return Place::default();
            };
            names.remove(&oldest);
        }
        let place = Place::default();
        names.insert(
            name.into(),
            Named {
                place: place.clone(),
                used_at: now,
            },
        );
        place
    }

    /// One count for all names, so that a name that was evicted does not go back.
    pub(super) fn next(&self) -> Generation {
        Generation::new(self.source, self.count.fetch_add(1, Relaxed) + 1)
    }
}

impl Default for Memories {
    fn default() -> Self {
        Self {
            source: SourceId::unique(),
            count: AtomicU64::new(0),
            names: Mutex::default(),
        }
    }
}

// === impl Memory ===

impl Memory {
    /// Whether the entry is still valid.
    pub(super) fn counts_at(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|(_, until)| now < *until)
    }

    /// What is known, once something was learned.
    pub(super) fn known(&self) -> &Known {
        &self
            .last
            .as_ref()
            .expect("asked for before it is looked at")
            .0
    }

    pub(super) fn again_at(&self) -> Instant {
        self.last
            .as_ref()
            .expect("asked for before it is looked at")
            .1
    }

    pub(super) fn learn(
        &mut self,
        target: &Target,
        found: Servers,
        ttl: Ttl,
        next: impl FnOnce() -> Generation,
        now: Instant,
    ) {
        let known = match self
            .addresses
            .learn(found, matches!(target, Target::Service(_)))
        {
            Ok(answer) => {
                self.failures = 0;
                let generation = match &self.good {
                    Some((generation, endpoints)) if *endpoints == answer.endpoints => *generation,
                    _ => next(),
                };
                self.good = Some((generation, answer.endpoints.clone()));
                (
                    Known::Answer {
                        generation,
                        endpoints: answer.endpoints,
                    },
                    now + ttl.of(answer.ttl),
                )
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                (
                    Known::Trouble(Arc::new(error)),
                    now + RETRY.after(self.failures),
                )
            }
        };
        self.last = Some(known);
    }
}

/// The number of cached names. Further ones are queried by each follower.
const MAX_NAMES: usize = 1024;

/// The delay after a failed query: 1 s, doubling to 30 s.
const RETRY: Backoff = Backoff {
    first: Duration::from_secs(1),
    cap: Duration::from_secs(30),
};
