use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use crate::chunks::Named;

/// The name of an endpoint, unique in its set and stable over restarts: an instance id, the name of a pod, or the address if
/// there is nothing better.
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(Arc<str>);

/// An address that serves a name.
///
/// [`id`](Self::id), [`addr`](Self::addr) and [`epoch`](Self::epoch) together identify the *instance*; when one of them
/// changes it is another instance, with new connections and no load. The remaining fields describe the instance.
///
/// ```
/// use std::num::NonZeroU64;
/// use tower_resolve::{Endpoint, Phase};
///
/// let endpoint = Endpoint::new("echo-1", "127.0.0.1:8081".parse().unwrap())
///     .with_epoch(NonZeroU64::new(42))
///     .with_zone("eu-1")
///     .with_metadata("version", "1.4.0");
/// assert_eq!(endpoint.phase(), Phase::Ready);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    id: EndpointId,
    addr: SocketAddr,
    epoch: Option<NonZeroU64>,
    zone: Option<Arc<str>>,
    /// Most have none.
    metadata: Option<Arc<BTreeMap<String, String>>>,
    weight: NonZeroU32,
    priority: u16,
    phase: Phase,
}

/// The phase of an endpoint, as reported by its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Known, but not to be used yet.
    Starting,
    /// To be used.
    #[default]
    Ready,
    /// Still serves, but is leaving: used only when no other endpoint is eligible.
    Draining,
    /// Must not be used: it lost the right to serve.
    Fenced,
}

// === impl EndpointId ===

impl EndpointId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for EndpointId {
    fn from(id: T) -> Self {
        Self(id.into())
    }
}

impl Borrow<str> for EndpointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Named for Arc<Endpoint> {
    fn name(&self) -> &EndpointId {
        &self.id
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// An endpoint in phase [`Ready`](Phase::Ready), with weight 1 and no further properties.
    pub fn new(id: impl Into<EndpointId>, addr: SocketAddr) -> Self {
        Self {
            id: id.into(),
            addr,
            epoch: None,
            zone: None,
            metadata: None,
            weight: NonZeroU32::MIN,
            priority: 0,
            phase: Phase::default(),
        }
    }

    /// The lease epoch (fencing token) under which it serves. Default: none, the endpoint is not leased.
    #[must_use]
    pub fn with_epoch(self, epoch: impl Into<Option<NonZeroU64>>) -> Self {
        Self {
            epoch: epoch.into(),
            ..self
        }
    }

    /// Its share of the traffic relative to other endpoints. Default: 1. See [`policy`](crate::policy).
    #[must_use]
    pub fn with_weight(self, weight: NonZeroU32) -> Self {
        Self { weight, ..self }
    }

    /// The priority: endpoints of the lowest number serve as long as enough of them are healthy, as in DNS SRV records.
    /// Default: 0.
    #[must_use]
    pub fn with_priority(self, priority: u16) -> Self {
        Self { priority, ..self }
    }

    /// The zone in which it runs. Default: unknown. One `Arc<str>` for all endpoints of a zone saves memory.
    #[must_use]
    pub fn with_zone(self, zone: impl Into<Arc<str>>) -> Self {
        Self {
            zone: Some(zone.into()),
            ..self
        }
    }

    /// The phase. Default: [`Phase::Ready`].
    #[must_use]
    pub fn with_phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// Adds a pair of metadata.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(self.metadata.get_or_insert_default()).insert(key.into(), value.into());
        self
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &EndpointId {
        &self.id
    }

    /// The address to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The lease epoch under which it serves.
    #[must_use]
    pub fn epoch(&self) -> Option<NonZeroU64> {
        self.epoch
    }

    /// The weight: its share of the traffic.
    #[must_use]
    pub fn weight(&self) -> NonZeroU32 {
        self.weight
    }

    /// The priority; lower ones come first.
    #[must_use]
    pub fn priority(&self) -> u16 {
        self.priority
    }

    /// The zone in which it runs.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.metadata.as_deref().unwrap_or(&NONE)
    }

    /// Whether `other` is the same instance: same id, address and epoch. Connections and load history may be kept.
    #[must_use]
    pub fn is_same_instance(&self, other: &Self) -> bool {
        self.id == other.id && self.addr == other.addr && self.epoch == other.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_kept_and_compared_and_costs_nothing_when_there_is_none() {
        let bare = Endpoint::new("a", ([127, 0, 0, 1], 80).into());
        assert!(bare.metadata().is_empty());
        let tagged = bare
            .clone()
            .with_metadata("version", "1")
            .with_metadata("rack", "7");
        assert_eq!(tagged.metadata()["version"], "1");
        assert_eq!(
            (tagged == bare, tagged.is_same_instance(&bare)),
            (false, true)
        );
        assert!(
            size_of::<Endpoint>() <= 96,
            "{} bytes, and there may be ten thousand",
            size_of::<Endpoint>()
        );
    }
}
