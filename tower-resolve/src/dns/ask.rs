use std::{collections::BTreeSet, future::Future, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError as Semantic, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::{Instant, timeout_at};

use super::{
    DnsError,
    answer::{Family, Found, Host, Server, Servers},
    target::Target,
};

/// Queries the servers.
#[derive(Clone)]
pub(super) struct Asker {
    client: TokioResolver,
    search: Search,
    families: &'static [Family],
}

/// The search domains for a relative name.
#[derive(Clone, Debug)]
struct Search {
    domains: Vec<Name>,
    /// A name with at least this number of dots is queried as it is first.
    dots: usize,
}

// === impl Asker ===

impl Asker {
    pub(super) fn system() -> Result<Self, DnsError> {
        let (config, options) = read_system_conf().map_err(DnsError::system)?;
        Self::new(config, options)
    }

    pub(super) fn servers(servers: Vec<SocketAddr>) -> Result<Self, DnsError> {
        if servers.is_empty() {
            return Err(DnsError::no_servers());
        }
        let server = |addr: SocketAddr| {
            let at_port = |mut config: ConnectionConfig| {
                config.port = addr.port();
                config
            };
            let connections = vec![
                at_port(ConnectionConfig::udp()),
                at_port(ConnectionConfig::tcp()),
            ];
            NameServerConfig::new(addr.ip(), true, connections)
        };
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        Self::new(
            ResolverConfig::from_name_servers(servers.into_iter().map(server).collect()),
            options,
        )
    }

    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, DnsError> {
        let domains = config
            .domain()
            .into_iter()
            .chain(config.search())
            .cloned()
            .collect();
        let search = Search {
            domains,
            dots: options.ndots,
        };
        options.timeout = options.timeout.min(TRY_FOR);
        // Answers are cached for each name by `memory`.
        options.cache_size = 0;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let client = builder
            .with_options(options)
            .build()
            .map_err(DnsError::system)?;
        Ok(Self {
            client,
            search,
            families: &[Family::V4, Family::V6],
        })
    }

    pub(super) fn ipv4_only(&self) -> Self {
        Self {
            families: &[Family::V4],
            ..self.clone()
        }
    }

    /// Resolves a target completely, in bounded time: what is unanswered by then has failed.
    pub(super) async fn ask(&self, target: &Target) -> Servers {
        let until = Instant::now() + ASK_FOR;
        match target {
            Target::Fixed(addr) => {
                let server = Server {
                    priority: 0,
                    host: addr.ip().to_string(),
                    port: addr.port(),
                    weight: 1,
                };
                let host = vec![(Family::V4, Found::These([addr.ip()].into(), Duration::MAX))];
                Found::These(vec![(server, host)], Duration::MAX)
            }
            Target::Host(name, port) => {
                let host = self.host(name, until).await;
                let server = Server {
                    priority: 0,
                    host: name.to_ascii(),
                    port: *port,
                    weight: 1,
                };
                Found::These(vec![(server, host)], Duration::MAX)
            }
            Target::Service(name) => self.service(name, until).await,
        }
    }

    async fn service(&self, name: &Name, until: Instant) -> Servers {
        let lookup = |name| self.lookup(name, RecordType::SRV, servers, until);
        let (servers, ttl) = match self.first(name, lookup).await {
            Found::These(servers, ttl) => (servers, ttl),
            Found::None { is_name, ttl } => return Found::None { is_name, ttl },
            Found::Failed(error) => return Found::Failed(error),
        };
        // "A target of `.` means that the service is decidedly not available" (RFC 2782).
        let servers = servers.into_iter().filter(|server| server.host != ".");
        let hosts = stream::iter(servers).map(|server| async move {
            let host = match Name::from_ascii(&server.host) {
                Ok(name) => self.host(&name, until).await,
                Err(error) => vec![(
                    Family::V4,
                    Found::Failed(DnsError::lookup(&server.host, error)),
                )],
            };
            (server, host)
        });
        // In order of their priorities.
        Found::These(hosts.buffered(AT_ONCE).collect().await, ttl)
    }

    async fn host(&self, name: &Name, until: Instant) -> Host {
        let families = self.families.iter().map(|family| async {
            let found = self
                .first(name, |name| {
                    self.lookup(name, family.record(), addresses, until)
                })
                .await;
            (*family, found)
        });
        join_all(families).await
    }

    /// Tries the search domains in order. A failure in one does not hide a result in a later one, and is not taken for "does
    /// not exist".
    async fn first<T, F: Future<Output = Found<T>>>(
        &self,
        name: &Name,
        lookup: impl Fn(Name) -> F,
    ) -> Found<T> {
        let mut last: Option<Found<T>> = None;
        for candidate in self.search.candidates(name) {
            let found = lookup(candidate).await;
            last = match (last, found) {
                (_, found @ Found::These(..)) => return found,
                (Some(failed @ Found::Failed(_)), _) => Some(failed),
                (Some(Found::None { is_name: true, ttl }), found) if found.is_none() => {
                    Some(Found::None { is_name: true, ttl })
                }
                (_, found) => Some(found),
            };
        }
        last.unwrap_or_else(|| Found::Failed(DnsError::name(&name.to_ascii())))
    }

    async fn lookup<T>(
        &self,
        name: Name,
        kind: RecordType,
        read: fn(&Lookup) -> T,
        until: Instant,
    ) -> Found<T> {
        let Ok(answer) = timeout_at(until, self.client.lookup(name.clone(), kind)).await else {
            return Found::Failed(DnsError::timed_out(name));
        };
        match answer {
            Ok(lookup) => {
                let ttl = lookup
                    .answers()
                    .iter()
                    .map(|record| record.ttl)
                    .min()
                    .unwrap_or(0);
                Found::These(read(&lookup), seconds(ttl))
            }
            Err(NetError::Dns(Semantic::NoRecordsFound(none)))
                if matches!(
                    none.response_code,
                    ResponseCode::NoError | ResponseCode::NXDomain
                ) =>
            {
                let is_name = none.response_code == ResponseCode::NoError;
                Found::None {
                    is_name,
                    ttl: none.negative_ttl.map_or(NEGATIVE, seconds),
                }
            }
            Err(error) => Found::Failed(DnsError::lookup(name, error)),
        }
    }
}

fn addresses(lookup: &Lookup) -> BTreeSet<std::net::IpAddr> {
    lookup
        .answers()
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

fn servers(lookup: &Lookup) -> Vec<Server> {
    let srv = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
    let servers = srv.map(|srv| Server {
        priority: srv.priority,
        host: srv.target.to_ascii(),
        port: srv.port,
        weight: srv.weight,
    });
    servers.collect::<BTreeSet<_>>().into_iter().collect()
}

fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}

// === impl Search ===

impl Search {
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let absolute = {
            let mut absolute = name.clone();
            absolute.set_fqdn(true);
            absolute
        };
        if name.is_fqdn() {
            return vec![absolute];
        }
        let in_domain = self
            .domains
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut candidates: Vec<_> = in_domain.collect();
        let is_long = usize::from(name.num_labels()) > self.dots;
        candidates.insert(if is_long { 0 } else { candidates.len() }, absolute);
        candidates
    }
}

// === impl Family ===

impl Family {
    const fn record(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

/// One attempt at one server. The client tries again.
const TRY_FOR: Duration = Duration::from_secs(2);

/// All queries for a target, with all their attempts.
const ASK_FOR: Duration = Duration::from_secs(8);

/// How long "does not exist" is valid if the server sends no time.
const NEGATIVE: Duration = Duration::from_secs(5);

/// How many SRV targets are looked up at a time.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_name_is_looked_for_in_the_search_list_and_as_it_is() {
        let name = |text| Name::from_utf8(text).unwrap();
        let search = Search {
            domains: vec![name("x.example."), name("example.")],
            dots: 2,
        };
        let texts = |text| {
            search
                .candidates(&name(text))
                .iter()
                .map(Name::to_ascii)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts("a."), ["a."]);
        assert_eq!(texts("a.b"), ["a.b.x.example.", "a.b.example.", "a.b."]);
        assert_eq!(
            texts("a.b.c"),
            ["a.b.c.", "a.b.c.x.example.", "a.b.c.example."]
        );
    }
}
