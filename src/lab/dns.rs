//! An authoritative DNS server on loopback. Its zones change while it runs, and it fails on demand, one
//! domain at a time, so that tests see what a node does then.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hickory_server::{
    net::runtime::Time,
    proto::{
        op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode},
        rr::{
            LowerName, Name, RData, Record, RecordType,
            rdata::{A, AAAA, SOA, SRV},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use tokio::net::{TcpListener, UdpSocket};

use super::LabError;
use crate::address::Domain;

/// Resolvers keep "there is no such thing" for this long.
const NEGATIVE_TTL_SECONDS: u32 = 1;
/// The largest answer over UDP; longer ones are asked for again over TCP.
const UDP_BYTES_MAX: u16 = 1_232;
/// A TCP connection without a question is closed after this time.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Answers waiting on one TCP connection.
const TCP_ANSWERS_MAX: usize = 32;

/// One record of a zone. Names are complete, with or without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose record.
    pub name: String,
    /// How long a resolver may keep it.
    pub ttl_seconds: u32,
    /// What it says.
    pub data: Data,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A service (RFC 2782).
    Srv {
        /// Lower ones are tried first.
        priority: u16,
        /// Higher ones are chosen more often.
        weight: u16,
        /// Where the service listens.
        port: u16,
        /// The host; `.` says that there is no such service.
        target: String,
    },
}

/// The entries of a zone file whose names are complete and whose lines have all their fields. SOA and NS are
/// skipped: the server makes up its own, and nobody delegates to it.
pub fn parse_zone(text: &str) -> Result<Vec<Entry>, LabError> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(';'))
        .filter_map(|line| {
            let wrong = || LabError::Unusable(format!("{line:?} is not a record"));
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, _, "IN", "SOA" | "NS", ..] => None,
                [name, ttl, "IN", kind, value @ ..] => {
                    Some(parse_entry(name, ttl, kind, value).ok_or_else(wrong))
                }
                _ => Some(Err(wrong())),
            }
        })
        .collect()
}

fn parse_entry(name: &str, ttl: &str, kind: &str, value: &[&str]) -> Option<Entry> {
    let data = match (kind, value) {
        ("A", [address]) => Data::A(address.parse().ok()?),
        ("AAAA", [address]) => Data::Aaaa(address.parse().ok()?),
        ("SRV", [priority, weight, port, target]) => Data::Srv {
            priority: priority.parse().ok()?,
            weight: weight.parse().ok()?,
            port: port.parse().ok()?,
            target: (*target).to_owned(),
        },
        _ => return None,
    };
    Some(Entry {
        name: name.to_owned(),
        ttl_seconds: ttl.parse().ok()?,
        data,
    })
}

impl Entry {
    fn to_record(&self) -> Result<Record, LabError> {
        let data = match &self.data {
            Data::A(address) => RData::A(A(*address)),
            Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
            Data::Srv {
                priority,
                weight,
                port,
                target,
            } => RData::SRV(SRV::new(*priority, *weight, *port, complete(target)?)),
        };
        Ok(Record::from_rdata(
            complete(&self.name)?,
            self.ttl_seconds,
            data,
        ))
    }
}

fn complete(name: &str) -> Result<Name, LabError> {
    let mut parsed =
        Name::from_str(name).map_err(|error| LabError::Unusable(format!("{name:?}: {error}")))?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

/// How a domain's name server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It says that the name does not exist.
    NxDomain,
    /// It says that it can't tell.
    ServFail,
    /// It does not answer.
    Silence,
}

#[derive(Debug, Default)]
struct Zone {
    records: Vec<Record>,
    fault: Option<Fault>,
    asked: u64,
}

type Zones = Mutex<HashMap<LowerName, Zone>>;

/// A running server. It ends when it is dropped.
pub struct DnsServer {
    zones: Arc<Zones>,
    address: SocketAddr,
    _server: Server<Handler>,
}

impl DnsServer {
    /// Listens at `address` on UDP and TCP. With port 0 the system chooses one for both.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        let (udp, tcp) = bind(address).await?;
        let address = tcp.local_addr()?;
        let zones = Arc::<Zones>::default();
        let mut server = Server::new(Handler {
            zones: Arc::clone(&zones),
        });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS_MAX);
        Ok(Self {
            zones,
            address,
            _server: server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces all records of a domain. What resolvers know already lives on until its time is over.
    pub fn set(&self, domain: &Domain, entries: &[Entry]) -> Result<(), LabError> {
        let records = entries
            .iter()
            .map(Entry::to_record)
            .collect::<Result<_, _>>()?;
        self.zone(domain, |zone| zone.records = records)
    }

    /// Forgets a domain: it does not exist.
    pub fn remove(&self, domain: &Domain) -> Result<(), LabError> {
        let name = complete(domain.as_str())?;
        lock(&self.zones).remove(&LowerName::from(name));
        Ok(())
    }

    /// Makes everything about a domain fail, or work again.
    pub fn fail(&self, domain: &Domain, fault: Option<Fault>) -> Result<(), LabError> {
        self.zone(domain, |zone| zone.fault = fault)
    }

    /// How many questions about a domain have come in.
    pub fn asked(&self, domain: &Domain) -> Result<u64, LabError> {
        let name = complete(domain.as_str())?;
        Ok(lock(&self.zones)
            .get(&name.into())
            .map_or(0, |zone| zone.asked))
    }

    fn zone(&self, domain: &Domain, change: impl FnOnce(&mut Zone)) -> Result<(), LabError> {
        let name = complete(domain.as_str())?;
        change(lock(&self.zones).entry(name.into()).or_default());
        Ok(())
    }
}

fn lock(zones: &Zones) -> MutexGuard<'_, HashMap<LowerName, Zone>> {
    zones.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut taken = None;
    // A port that is free for one protocol may be taken for the other.
    for _ in 0..8 {
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() == 0 => taken = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(taken.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

struct Handler {
    zones: Arc<Zones>,
}

/// What is sent back.
struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    /// Goes with an answer that says no, because it says for how long.
    authority: Option<Record>,
}

impl Handler {
    /// The answer, or nothing if the domain is silent.
    fn answer(&self, name: &LowerName, kind: RecordType) -> Option<Answer> {
        let mut zones = lock(&self.zones);
        let origin = enclosing(&zones, name);
        let Some((origin, zone)) = origin.and_then(|o| zones.get_mut(&o).map(|zone| (o, zone)))
        else {
            return Some(no(ResponseCode::NXDomain, &LowerName::from(Name::root())));
        };
        zone.asked += 1;
        match zone.fault {
            Some(Fault::Silence) => return None,
            Some(Fault::ServFail) => {
                return Some(Answer {
                    code: ResponseCode::ServFail,
                    records: Vec::new(),
                    authority: None,
                });
            }
            Some(Fault::NxDomain) => return Some(no(ResponseCode::NXDomain, &origin)),
            None => {}
        }
        let owner = |record: &Record| LowerName::from(&record.name);
        let records: Vec<Record> = zone
            .records
            .iter()
            .filter(|record| owner(record) == *name && record.record_type() == kind)
            .cloned()
            .collect();
        if !records.is_empty() {
            return Some(Answer {
                code: ResponseCode::NoError,
                records,
                authority: None,
            });
        }
        // A name exists if it has records of another type, or if names below it do.
        let exists = *name == origin || zone.records.iter().any(|r| name.zone_of(&owner(r)));
        let code = if exists {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        Some(no(code, &origin))
    }
}

/// The zone with the longest name that `name` is in.
fn enclosing(zones: &HashMap<LowerName, Zone>, name: &LowerName) -> Option<LowerName> {
    let mut candidate = name.clone();
    while !zones.contains_key(&candidate) {
        if candidate.is_root() {
            return None;
        }
        candidate = candidate.base_name();
    }
    Some(candidate)
}

fn no(code: ResponseCode, origin: &LowerName) -> Answer {
    let origin = Name::from(origin);
    let soa = SOA::new(
        origin.clone(),
        origin.clone(),
        1,
        3_600,
        600,
        86_400,
        NEGATIVE_TTL_SECONDS,
    );
    Answer {
        code,
        records: Vec::new(),
        authority: Some(Record::from_rdata(
            origin,
            NEGATIVE_TTL_SECONDS,
            RData::SOA(soa),
        )),
    }
}

#[tonic::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut responder: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let unsent = |metadata| {
            ResponseInfo::from(Header {
                metadata,
                counts: HeaderCounts::default(),
            })
        };
        let answer = match (request.metadata.op_code, request.queries.queries()) {
            (OpCode::Query, [query]) => self.answer(query.name(), query.query_type()),
            _ => Some(no(ResponseCode::NotImp, &LowerName::from(Name::root()))),
        };
        let Some(answer) = answer else {
            return unsent(metadata);
        };
        metadata.response_code = answer.code;
        metadata.authoritative = true;
        // Nodes ask it as their resolver, and it knows everything there is to know.
        metadata.recursion_available = true;
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &answer.records, [], &answer.authority, []);
        match responder.send_response(response).await {
            Ok(info) => info,
            Err(_) => unsent(metadata),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use hickory_resolver::{
        TokioResolver,
        config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
        net::{NetError, runtime::TokioRuntimeProvider},
    };

    use super::*;

    const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

    fn domain(name: &str) -> Domain {
        Domain::parse(name).must()
    }

    fn resolver(server: &DnsServer, connection: ConnectionConfig) -> TokioResolver {
        let mut connection = connection;
        connection.port = server.address().port();
        let name_server = NameServerConfig::new(server.address().ip(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_millis(300);
        options.attempts = 0;
        options.cache_size = 0;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .must()
    }

    async fn address(resolver: &TokioResolver, name: &str) -> Result<Vec<String>, NetError> {
        let found = resolver.lookup(name, RecordType::A).await?;
        Ok(found
            .answers()
            .iter()
            .map(|record| record.data.to_string())
            .collect())
    }

    fn zone_of(name: &str, ip: &str) -> Vec<Entry> {
        let text = include_str!("../../federation/zone.template")
            .replace("{{domain}}", name)
            .replace("{{ttl}}", "60")
            .replace("{{peer_port}}", "7444")
            .replace("{{peer_ip}}", ip);
        parse_zone(&text).must()
    }

    #[tokio::test]
    async fn a_zone_answers_over_udp_and_tcp() {
        let server = DnsServer::start(ANY_PORT.into()).await.must();
        server
            .set(&domain("a.test"), &zone_of("a.test", "127.0.0.9"))
            .must();

        for connection in [ConnectionConfig::udp(), ConnectionConfig::tcp()] {
            let resolver = resolver(&server, connection);

            let srv = resolver
                .srv_lookup("_skiserver-s2s._tcp.A.TEST.")
                .await
                .must();
            let host = address(&resolver, "node.a.test.").await.must();

            let RData::SRV(record) = &srv.answers()[0].data else {
                panic!("not SRV: {srv:?}");
            };
            assert_eq!(
                (record.port, record.target.to_string()),
                (7444, "node.a.test.".to_owned())
            );
            assert_eq!(srv.answers()[0].ttl, 60);
            assert_eq!(host, ["127.0.0.9"]);
        }
    }

    #[tokio::test]
    async fn absence_is_told_from_another_type() {
        let server = DnsServer::start(ANY_PORT.into()).await.must();
        server
            .set(&domain("a.test"), &zone_of("a.test", "127.0.0.9"))
            .must();
        let resolver = resolver(&server, ConnectionConfig::udp());

        let no_such_name = address(&resolver, "other.a.test.").await.unwrap_err();
        let no_such_zone = address(&resolver, "b.test.").await.unwrap_err();
        let other_type = address(&resolver, "a.test.").await.unwrap_err();
        let between = address(&resolver, "_tcp.a.test.").await.unwrap_err();

        assert!(no_such_name.is_nx_domain(), "{no_such_name}");
        assert!(no_such_zone.is_nx_domain(), "{no_such_zone}");
        for error in [other_type, between] {
            assert!(
                error.is_no_records_found() && !error.is_nx_domain(),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn records_change_while_it_runs() {
        let server = DnsServer::start(ANY_PORT.into()).await.must();
        let resolver = resolver(&server, ConnectionConfig::udp());
        server
            .set(&domain("a.test"), &zone_of("a.test", "127.0.0.9"))
            .must();
        assert_eq!(
            address(&resolver, "node.a.test.").await.must(),
            ["127.0.0.9"]
        );

        server
            .set(&domain("a.test"), &zone_of("a.test", "127.0.0.8"))
            .must();
        assert_eq!(
            address(&resolver, "node.a.test.").await.must(),
            ["127.0.0.8"]
        );

        server.remove(&domain("a.test")).must();
        assert!(
            address(&resolver, "node.a.test.")
                .await
                .unwrap_err()
                .is_nx_domain()
        );
    }

    #[tokio::test]
    async fn it_fails_as_told_and_only_for_that_domain() {
        let server = DnsServer::start(ANY_PORT.into()).await.must();
        let resolver = resolver(&server, ConnectionConfig::udp());
        for name in ["a.test", "b.test"] {
            server
                .set(&domain(name), &zone_of(name, "127.0.0.9"))
                .must();
        }

        server.fail(&domain("a.test"), Some(Fault::ServFail)).must();
        let failed = address(&resolver, "node.a.test.").await.unwrap_err();
        server.fail(&domain("a.test"), Some(Fault::Silence)).must();
        let silent = address(&resolver, "node.a.test.").await.unwrap_err();
        server.fail(&domain("a.test"), Some(Fault::NxDomain)).must();
        let absent = address(&resolver, "node.a.test.").await.unwrap_err();
        let other = address(&resolver, "node.b.test.").await.must();
        server.fail(&domain("a.test"), None).must();
        let again = address(&resolver, "node.a.test.").await.must();

        assert!(!failed.is_no_records_found(), "{failed}");
        assert!(matches!(silent, NetError::Timeout), "{silent}");
        assert!(absent.is_nx_domain(), "{absent}");
        assert_eq!(other, ["127.0.0.9"]);
        assert_eq!(again, ["127.0.0.9"]);
        assert!(server.asked(&domain("a.test")).must() >= 4);
        assert_eq!(server.asked(&domain("b.test")).must(), 1);
    }

    #[tokio::test]
    async fn many_records_come_whole() {
        let server = DnsServer::start(ANY_PORT.into()).await.must();
        let entries: Vec<Entry> = (1..=200)
            .map(|n| Entry {
                name: "node.a.test".to_owned(),
                ttl_seconds: 60,
                data: Data::A(Ipv4Addr::new(127, 0, 0, n)),
            })
            .collect();
        server.set(&domain("a.test"), &entries).must();

        let found = address(&resolver(&server, ConnectionConfig::tcp()), "node.a.test.").await;

        assert_eq!(found.must().len(), 200);
    }

    #[test]
    fn a_zone_line_that_is_not_understood_is_an_error() {
        for line in [
            "node.a.test. 60 IN TXT hello",
            "node.a.test. IN A 127.0.0.1",
            "x 60 IN A localhost",
        ] {
            assert!(parse_zone(line).is_err(), "{line}");
        }
    }
}
