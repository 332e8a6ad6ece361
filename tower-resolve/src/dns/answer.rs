use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use super::DnsError;
use crate::Endpoint;

/// The result of a lookup, applied to the known set. No clock, no socket.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// Records, with their time to live.
    These(T, Duration),
    /// Certainly none; and whether the name exists.
    None { is_name: bool, ttl: Duration },
    /// Unknown, because of an error.
    Failed(DnsError),
}

/// A kind of address of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

/// All results for one host.
pub(super) type Host = Vec<(Family, Found<BTreeSet<IpAddr>>)>;

/// A server, from an SRV record. A plain host has one, without a priority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Server {
    pub(super) priority: u16,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) weight: u16,
}

/// The servers of a name with the results for their hosts, or why there is none.
pub(super) type Servers = Found<Vec<(Server, Host)>>;

/// The resulting set.
#[derive(Debug)]
pub(super) struct Answer {
    /// `None` if the name does not exist.
    pub(super) endpoints: Option<Vec<Arc<Endpoint>>>,
    pub(super) ttl: Duration,
}

/// The last addresses of each host, so that a partial failure removes nothing.
#[derive(Debug, Default)]
pub(super) struct Addresses(BTreeMap<(String, Family), BTreeSet<IpAddr>>);

/// The bounds of the time that an answer is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ttl {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

// === impl Found ===

impl<T> Found<T> {
    pub(super) const fn is_none(&self) -> bool {
        matches!(self, Self::None { .. })
    }
}

// === impl Addresses ===

impl Addresses {
    /// Applies the results of a lookup.
    pub(super) fn learn(&mut self, servers: Servers, is_service: bool) -> Result<Answer, DnsError> {
        let (servers, ttl) = match servers {
            Found::These(servers, ttl) => (servers, ttl),
            Found::None { is_name, ttl } => {
                self.0.clear();
                return Ok(Answer {
                    endpoints: is_name.then(Vec::new),
                    ttl,
                });
            }
            Found::Failed(error) => return Err(error),
        };
        let mut seen = Seen {
            next: BTreeMap::new(),
            ttl,
            is_name: is_service,
            has_answer: false,
            failed: None,
        };
        let mut endpoints = BTreeMap::new();
        for (server, host) in servers {
            for addr in seen.host(&self.0, &server.host, host) {
                let addr = SocketAddr::new(addr, server.port);
                // In order of priority: of two that share an address the more urgent is used.
                endpoints
                    .entry(addr)
                    .or_insert_with(|| Arc::new(server.endpoint(addr, is_service)));
            }
        }
        if let Some(error) = seen
            .failed
            .take_if(|_| !seen.has_answer || endpoints.is_empty())
        {
            return Err(error);
        }
        self.0 = seen.next;
        let is_name = seen.is_name || !endpoints.is_empty();
        Ok(Answer {
            endpoints: is_name.then(|| endpoints.into_values().collect()),
            ttl: seen.ttl,
        })
    }
}

/// Collected over all hosts.
struct Seen {
    next: BTreeMap<(String, Family), BTreeSet<IpAddr>>,
    ttl: Duration,
    is_name: bool,
    has_answer: bool,
    failed: Option<DnsError>,
}

impl Seen {
    fn host(
        &mut self,
        before: &BTreeMap<(String, Family), BTreeSet<IpAddr>>,
        name: &str,
        host: Host,
    ) -> BTreeSet<IpAddr> {
        let mut all = BTreeSet::new();
        for (family, found) in host {
            let key = (name.to_owned(), family);
            self.has_answer |= !matches!(found, Found::Failed(_));
            let addresses = match found {
                Found::These(addresses, ttl) => {
                    self.ttl = self.ttl.min(ttl);
                    addresses
                }
                Found::None { is_name, ttl } => {
                    self.ttl = self.ttl.min(ttl);
                    self.is_name |= is_name;
                    BTreeSet::new()
                }
                Found::Failed(error) => {
                    tracing::debug!(host = name, ?family, %error, "a part of a name failed; what was known of it stays");
                    self.ttl = self.ttl.min(PART_AGAIN);
                    self.failed = Some(error);
                    before.get(&key).cloned().unwrap_or_default()
                }
            };
            all.extend(&addresses);
            self.next.insert(key, addresses);
        }
        all
    }
}

// === impl Server ===

impl Server {
    fn endpoint(&self, addr: SocketAddr, is_service: bool) -> Endpoint {
        let endpoint = Endpoint::new(addr.to_string(), addr);
        if !is_service {
            return endpoint;
        }
        endpoint
            .with_priority(self.priority)
            .with_weight(NonZeroU32::new(u32::from(self.weight)).unwrap_or(NonZeroU32::MIN))
            .with_metadata("target", self.host.trim_end_matches('.'))
    }
}

// === impl Ttl ===

impl Ttl {
    pub(super) const DEFAULT: Self = Self {
        min: Duration::from_secs(1),
        max: Duration::from_secs(60),
    };

    pub(super) fn of(self, ttl: Duration) -> Duration {
        ttl.min(self.max).max(self.min)
    }
}

/// When a part of an answer failed, the whole is queried again after this at the latest.
const PART_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);
    const NONE: Found<BTreeSet<IpAddr>> = Found::None {
        is_name: true,
        ttl: TTL,
    };

    fn failed<T>() -> Found<T> {
        Found::Failed(DnsError::timed_out("test"))
    }

    fn found(addresses: &[&str]) -> Found<BTreeSet<IpAddr>> {
        Found::These(
            addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
            TTL,
        )
    }

    fn server(host: &str, priority: u16, weight: u16) -> Server {
        Server {
            priority,
            host: host.to_owned(),
            port: 80,
            weight,
        }
    }

    fn hosts(v4: Found<BTreeSet<IpAddr>>, v6: Found<BTreeSet<IpAddr>>) -> Servers {
        Found::These(
            vec![(server("a.", 0, 1), vec![(Family::V4, v4), (Family::V6, v6)])],
            Duration::MAX,
        )
    }

    fn ids(answer: Result<Answer, DnsError>) -> Vec<String> {
        let endpoints = answer.unwrap().endpoints.expect("the name exists");
        endpoints
            .iter()
            .map(|endpoint| endpoint.id().to_string())
            .collect()
    }

    #[test]
    fn both_families_count_and_the_shortest_time_to_live() {
        let v6 = Found::These(["::1".parse().unwrap()].into(), Duration::from_secs(7));
        let answer = Addresses::default()
            .learn(hosts(found(&["192.0.2.2", "192.0.2.1"]), v6), false)
            .unwrap();
        assert_eq!(answer.ttl, Duration::from_secs(7));
        assert_eq!(
            ids(Ok(answer)),
            ["192.0.2.1:80", "192.0.2.2:80", "[::1]:80"]
        );
    }

    #[test]
    fn no_such_name_no_addresses_and_no_answer_are_three_things() {
        let none = |is_name| Found::None { is_name, ttl: TTL };
        let mut addresses = Addresses::default();
        assert_eq!(
            addresses
                .learn(hosts(none(false), none(false)), false)
                .unwrap()
                .endpoints,
            None
        );
        assert_eq!(
            addresses
                .learn(hosts(none(true), none(true)), false)
                .unwrap()
                .endpoints,
            Some(vec![])
        );
        assert!(addresses.learn(hosts(failed(), NONE), false).is_err());
        assert!(addresses.learn(hosts(failed(), failed()), false).is_err());
    }

    #[test]
    fn a_family_that_fails_keeps_what_was_known_of_it_and_is_asked_for_again_soon() {
        let mut addresses = Addresses::default();
        let _ = addresses.learn(hosts(found(&["192.0.2.1"]), found(&["::1"])), false);
        let answer = addresses
            .learn(hosts(found(&["192.0.2.2"]), failed()), false)
            .unwrap();
        assert_eq!(answer.ttl, PART_AGAIN);
        assert_eq!(ids(Ok(answer)), ["192.0.2.2:80", "[::1]:80"]);
        assert!(
            addresses.learn(hosts(failed(), failed()), false).is_err(),
            "all of it fails: that is trouble"
        );
        assert_eq!(
            ids(addresses.learn(hosts(failed(), found(&["::2"])), false)),
            ["192.0.2.2:80", "[::2]:80"]
        );
    }

    #[test]
    fn srv_targets_have_their_priority_and_weight_and_the_more_urgent_has_a_shared_address() {
        let host = |v4| vec![(Family::V4, v4)];
        let servers = vec![
            (server("a.", 1, 0), host(found(&["192.0.2.1"]))),
            (server("b.", 2, 9), host(found(&["192.0.2.1", "192.0.2.2"]))),
        ];
        let mut addresses = Addresses::default();
        let endpoints = addresses
            .learn(Found::These(servers, TTL), true)
            .unwrap()
            .endpoints
            .unwrap();
        let seen: Vec<_> = endpoints
            .iter()
            .map(|e| {
                (
                    e.priority(),
                    e.weight().get(),
                    e.metadata()["target"].as_str(),
                )
            })
            .collect();
        assert_eq!(seen, [(1, 1, "a"), (2, 9, "b")]);
        let servers = vec![
            (server("a.", 1, 0), host(failed())),
            (server("b.", 2, 9), host(found(&["192.0.2.2"]))),
        ];
        assert_eq!(
            ids(addresses.learn(Found::These(servers, TTL), true)),
            ["192.0.2.1:80", "192.0.2.2:80"]
        );
        assert!(
            ids(addresses.learn(
                Found::None {
                    is_name: true,
                    ttl: TTL
                },
                true
            ))
            .is_empty()
        );
    }
}
