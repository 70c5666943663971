//! Where a domain's node is: SRV records (RFC 2782) or the domain's own addresses, remembered as long as DNS
//! allows and, while DNS fails, longer. What DNS denies is out of reach; it never means that a user is gone.

mod answers;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{RData, RecordType},
    },
};
use tokio::{net::TcpStream, time::Instant};

use super::race::{Loser, Pace, race};
use crate::{address::Domain, clock::Clock, config::Config, limits};
use answers::{Answers, Fresh};

/// The port of the peer door where no SRV record names one.
pub const PEER_PORT: u16 = 7444;
/// The name of the service below a domain.
pub const SERVICE: &str = "_skiserver-s2s._tcp";

/// One address at which a domain's node may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host as DNS or the configuration names it.
    pub host: String,
    /// Its address and the port of the service.
    pub address: SocketAddr,
    /// As in RFC 2782: lower ones first.
    pub priority: u16,
}

/// Why there is no connection to a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// Its SRV record says that it takes no part.
    #[error("DNS says that {0} offers no such service")]
    NoService(Domain),
    /// Neither the domain nor any of its targets has an address.
    #[error("DNS knows no address of {0}")]
    NoAddress(String),
    /// The name servers do not answer, or answer with a failure, and nothing is remembered.
    #[error("DNS does not answer about {name}: {reason}")]
    Dns {
        /// What was asked for.
        name: String,
        /// The resolver's words.
        reason: String,
    },
    /// Every address was tried.
    #[error("no connection: {0}")]
    Refused(String),
    /// It took too long.
    #[error("no connection in time: {0}")]
    TimedOut(String),
}

/// Why nothing can be looked up at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A `[[peer]]` names an address that is none.
    #[error("peer.address: {0:?} is not host:port")]
    Address(String),
    /// The resolver does not take its configuration.
    #[error("dns: {0}")]
    Resolver(#[from] NetError),
}

/// Finds the nodes of domains. Opens connections, knows nothing of what is said on them.
pub struct Discovery {
    resolver: TokioResolver,
    clock: Clock,
    fixed: ArcSwap<HashMap<Domain, Target>>,
    services: Answers<Service>,
    hosts: Answers<Vec<IpAddr>>,
}

/// What a domain's SRV records say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Service {
    /// Its nodes are these.
    At(Vec<Target>),
    /// It has none: the domain is the host.
    Unsaid,
    /// It says that it offers nothing.
    Declined,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    priority: u16,
    weight: u16,
}

impl Discovery {
    /// Asks the name servers of the configuration, or the system's if it names none.
    pub fn new(config: &Config, clock: &Clock) -> Result<Self, Unusable> {
        Ok(Self {
            resolver: resolver(&config.dns.servers)?,
            clock: clock.clone(),
            fixed: ArcSwap::from_pointee(fixed(config)?),
            services: Answers::new(),
            hosts: Answers::new(),
        })
    }

    /// Takes over the `[[peer]]` addresses of a configuration that was read anew. Name servers stay.
    pub fn configure(&self, config: &Config) -> Result<(), Unusable> {
        self.fixed.store(fixed(config)?.into());
        Ok(())
    }

    /// All places to try for `domain`, best first; never empty. Weights are drawn anew each time.
    pub async fn endpoints(&self, domain: &Domain) -> Result<Vec<Endpoint>, Unreachable> {
        let targets = self.targets(domain).await?;
        let found = join_all(targets.iter().map(|t| self.addresses(&t.host))).await;
        let mut endpoints = Vec::new();
        let mut failure = None;
        for (target, addresses) in targets.into_iter().zip(found) {
            match addresses {
                Ok(addresses) => endpoints.extend(addresses.into_iter().map(|ip| Endpoint {
                    host: target.host.clone(),
                    address: (ip, target.port).into(),
                    priority: target.priority,
                })),
                Err(error) => failure = Some(error),
            }
        }
        if endpoints.is_empty() {
            return Err(failure.unwrap_or_else(|| Unreachable::NoAddress(domain.to_string())));
        }
        Ok(endpoints)
    }

    /// A TCP connection to a node of `domain`, and where it leads. Addresses in `passed_over` are left out.
    /// Who does not answer before `deadline` is looked up anew the next time.
    pub async fn connect(
        &self,
        domain: &Domain,
        passed_over: &[SocketAddr],
        deadline: Instant,
    ) -> Result<(TcpStream, Endpoint), Unreachable> {
        let endpoints = tokio::time::timeout_at(deadline, self.endpoints(domain)).await;
        let mut endpoints = endpoints.map_err(|_| Unreachable::TimedOut("DNS".to_owned()))??;
        endpoints.retain(|e| !passed_over.contains(&e.address));
        let pace = Pace {
            stagger: Duration::from_millis(limits::CONNECT_STAGGER_MS),
            fall_back: Duration::from_millis(limits::CONNECT_FALL_BACK_MS),
        };
        let mut losers = Vec::new();
        let racing = race(&endpoints, pace, &mut losers, connect);
        let winner = tokio::time::timeout_at(deadline, racing).await;
        if winner.is_err() {
            let silent = |e: &&Endpoint| !losers.iter().any(|(loser, _)| loser == *e);
            let silent: Vec<Loser> = endpoints
                .iter()
                .filter(silent)
                .map(|e| (e.clone(), io::ErrorKind::TimedOut.into()))
                .collect();
            losers.extend(silent);
        }
        for (loser, _) in &losers {
            self.failed(domain, loser).await;
        }
        match winner {
            Ok(Some(winner)) => Ok(winner),
            Ok(None) => Err(Unreachable::Refused(report(&losers))),
            Err(_) => Err(Unreachable::TimedOut(report(&losers))),
        }
    }

    /// Forgets what is remembered of an endpoint that could not be used. It is asked for again the next time,
    /// and used again if DNS fails then.
    pub async fn failed(&self, domain: &Domain, endpoint: &Endpoint) {
        self.services.expire(domain.as_str()).await;
        self.hosts.expire(&endpoint.host).await;
    }

    async fn targets(&self, domain: &Domain) -> Result<Vec<Target>, Unreachable> {
        if let Some(target) = self.fixed.load().get(domain) {
            return Ok(vec![target.clone()]);
        }
        let name = domain.as_str();
        let now_ms = self.clock.now_ms();
        let asked = self.services.recall(name, now_ms, self.ask_service(name));
        match asked.await? {
            Service::At(targets) => Ok(in_order(targets)),
            Service::Unsaid => Ok(vec![Target {
                host: name.to_owned(),
                port: PEER_PORT,
                priority: 0,
                weight: 0,
            }]),
            Service::Declined => Err(Unreachable::NoService(domain.clone())),
        }
    }

    async fn ask_service(&self, domain: &str) -> Result<Fresh<Service>, Unreachable> {
        let name = format!("{SERVICE}.{domain}.");
        let Some(lookup) = self.ask(&name, RecordType::SRV).await? else {
            return Ok(Fresh::negative(Service::Unsaid, true));
        };
        let records = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv),
                _ => None,
            });
        let mut targets: Vec<Target> = records
            .filter(|srv| !srv.target.is_root())
            .map(|srv| Target {
                host: srv
                    .target
                    .to_ascii()
                    .trim_end_matches('.')
                    .to_ascii_lowercase(),
                port: srv.port,
                priority: srv.priority,
                weight: srv.weight,
            })
            .collect();
        targets.sort_by_key(|t| t.priority);
        targets.truncate(limits::SRV_TARGETS_MAX);
        let service = if targets.is_empty() {
            Service::Declined
        } else {
            Service::At(targets)
        };
        Ok(Fresh::until_ttl(service, &lookup))
    }

    /// IPv6 and IPv4 by turns, IPv6 first.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unreachable> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        let now_ms = self.clock.now_ms();
        self.hosts
            .recall(host, now_ms, self.ask_addresses(host))
            .await
    }

    async fn ask_addresses(&self, host: &str) -> Result<Fresh<Vec<IpAddr>>, Unreachable> {
        let name = format!("{host}.");
        let (v6, v4) = tokio::join!(
            self.ask(&name, RecordType::AAAA),
            self.ask(&name, RecordType::A)
        );
        let lists = match (v6, v4) {
            (Ok(None), Ok(None)) => return Ok(Fresh::negative(Vec::new(), false)),
            (Ok(v6), Ok(v4)) => [v6, v4],
            // One kind of address is enough to go on with.
            (Ok(Some(one)), Err(_)) | (Err(_), Ok(Some(one))) => [Some(one), None],
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let lookups: Vec<&Lookup> = lists.iter().flatten().collect();
        let addresses = by_turns(lookups.iter().map(|lookup| ips(lookup)).collect());
        let ttls = lookups.iter().flat_map(|lookup| lookup.answers());
        Ok(Fresh::until(addresses, ttls.map(|record| record.ttl).min()))
    }

    /// The records, or nothing if DNS says that there are none.
    async fn ask(&self, name: &str, kind: RecordType) -> Result<Option<Lookup>, Unreachable> {
        let limit = Duration::from_millis(limits::DNS_QUESTION_MS);
        let failed = |reason: String| Unreachable::Dns {
            name: name.trim_end_matches('.').to_owned(),
            reason,
        };
        match tokio::time::timeout(limit, self.resolver.lookup(name, kind)).await {
            Ok(Ok(lookup)) => Ok(Some(lookup)),
            Ok(Err(error)) if is_denial(&error) => Ok(None),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }
}

impl<V> Fresh<V> {
    fn until_ttl(value: V, lookup: &Lookup) -> Self {
        Self::until(
            value,
            lookup.answers().iter().map(|record| record.ttl).min(),
        )
    }
}

async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(endpoint.address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Only these two say that something does not exist; everything else is a server in trouble.
fn is_denial(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}

fn ips(lookup: &Lookup) -> Vec<IpAddr> {
    let ip = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    lookup
        .answers()
        .iter()
        .filter_map(|r| ip(&r.data))
        .collect()
}

fn by_turns(lists: Vec<Vec<IpAddr>>) -> Vec<IpAddr> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(lists.iter_mut().filter_map(Iterator::next));
        if all.len() == before || all.len() >= limits::HOST_ADDRESSES_MAX {
            all.truncate(limits::HOST_ADDRESSES_MAX);
            return all;
        }
    }
}

/// The order of RFC 2782: by priority, and within one priority drawn by weight.
fn in_order(mut targets: Vec<Target>) -> Vec<Target> {
    // Those of weight 0 stand first, where they are drawn rarely but not never.
    targets.sort_by_key(|t| (t.priority, t.weight > 0));
    let mut ordered = Vec::with_capacity(targets.len());
    while let Some(priority) = targets.first().map(|t| t.priority) {
        let group = || targets.iter().take_while(|t| t.priority == priority);
        let sum: u32 = group().map(|t| u32::from(t.weight)).sum();
        let drawn = fastrand::u32(0..=sum);
        let mut running = 0;
        let place = group().position(|t| {
            running += u32::from(t.weight);
            running >= drawn
        });
        ordered.push(targets.remove(place.unwrap_or(0)));
    }
    ordered
}

fn report(losers: &[Loser]) -> String {
    let shown: Vec<String> = losers
        .iter()
        .take(3)
        .map(|(e, error)| format!("{} ({}): {error}", e.host, e.address))
        .collect();
    match losers.len().saturating_sub(shown.len()) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

fn fixed(config: &Config) -> Result<HashMap<Domain, Target>, Unusable> {
    let mut fixed = HashMap::new();
    for peer in &config.peer {
        let Some(address) = &peer.address else {
            continue;
        };
        let bad = || Unusable::Address(address.clone());
        let (host, port) = if let Ok(socket) = address.parse::<SocketAddr>() {
            (socket.ip().to_string(), socket.port())
        } else {
            let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
            let host = Domain::parse(host).map_err(|_| bad())?;
            (host.to_string(), port.parse().map_err(|_| bad())?)
        };
        let target = Target {
            host,
            port,
            priority: 0,
            weight: 0,
        };
        let domain = Domain::parse(&peer.domain).map_err(|_| bad())?;
        fixed.insert(domain, target);
    }
    Ok(fixed)
}

/// Remembers nothing itself: [`Answers`] do, by the node's clock.
fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let system = if servers.is_empty() {
        hickory_resolver::system_conf::read_system_conf()
    } else {
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        Ok((
            ResolverConfig::from_parts(None, Vec::new(), name_servers(servers)),
            options,
        ))
    };
    let (config, mut options) = system.unwrap_or_else(|error| {
        tracing::error!(%error, "the system names no name servers; asking one on this host");
        let own = name_servers(&[SocketAddr::from(([127, 0, 0, 1], 53))]);
        (
            ResolverConfig::from_parts(None, Vec::new(), own),
            ResolverOpts::default(),
        )
    });
    options.cache_size = 0;
    options.timeout = Duration::from_millis(limits::DNS_RETRY_MS);
    options.attempts = 1;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

fn name_servers(servers: &[SocketAddr]) -> Vec<NameServerConfig> {
    let on_port = |mut connection: ConnectionConfig, port| {
        connection.port = port;
        connection
    };
    servers
        .iter()
        .map(|server| {
            let connections = vec![
                on_port(ConnectionConfig::udp(), server.port()),
                on_port(ConnectionConfig::tcp(), server.port()),
            ];
            NameServerConfig::new(server.ip(), true, connections)
        })
        .collect()
}
