//! A name server for tests: on UDP and TCP of one loopback port, says what a closure tells it, and counts.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_proto::{
    op::{Message, Metadata, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What is said to one question.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// These, of which only the family asked for is sent; none: the name exists without it.
    Addresses(&'static [&'static str]),
    /// As `Addresses`, with this time to live in seconds.
    Lasting(u32, &'static [&'static str]),
    /// A CNAME alone.
    Alias(&'static str),
    /// A CNAME with the addresses of its target.
    Chain(&'static str, &'static [&'static str]),
    /// NXDOMAIN, to be kept for so many seconds.
    NoName(u32),
    Failure(ResponseCode),
    /// Addresses over TCP; over UDP a truncated message.
    Truncated(&'static [&'static str]),
    /// These records, whatever was asked.
    Records(Vec<Record>),
    Silence,
}

/// A question as it came: name without the last dot, type, how often it came before.
pub(crate) type Question<'a> = (&'a str, RecordType, usize);

pub(crate) struct FakeDns {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
}

struct Server {
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    answer: Box<dyn Fn(Question<'_>) -> Reply + Send + Sync>,
}

impl FakeDns {
    pub(crate) async fn start(answer: impl Fn(Question<'_>) -> Reply + Send + Sync + 'static) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::default();
        let server = Arc::new(Server {
            asked: Arc::clone(&asked),
            answer: Box::new(answer),
        });
        tokio::spawn(serve_udp(udp, Arc::clone(&server)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(serve_tcp(stream, Arc::clone(&server)));
            }
        });
        Self { address, asked }
    }

    /// How often a name was asked for, both families together.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.count_of(name, RecordType::A) + self.count_of(name, RecordType::AAAA)
    }

    /// How often one family of a name was asked for.
    pub(crate) fn count_of(&self, name: &str, kind: RecordType) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(other, of)| other == name && *of == kind)
            .count()
    }

    /// Every name asked for, once each.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .asked
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

impl Server {
    fn reply(&self, request: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).unwrap();
        let query = request.queries.first().unwrap();
        let (name, kind) = (
            query.name().to_ascii().trim_end_matches('.').to_owned(),
            query.query_type(),
        );
        let before = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((name.clone(), kind));
            asked
                .iter()
                .filter(|(other, of)| *other == name && *of == kind)
                .count()
                - 1
        };
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&request.metadata);
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        let owner = query.name();
        match (self.answer)((&name, kind, before)) {
            Reply::Silence => return None,
            Reply::Records(records) => {
                reply.add_answers(records);
            }
            Reply::Failure(code) => reply.metadata.response_code = code,
            Reply::NoName(ttl) => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, ttl);
                reply.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
            }
            Reply::Alias(target) => {
                reply.add_answer(alias(owner, target));
            }
            Reply::Chain(target, addresses) => {
                reply.add_answer(alias(owner, target));
                reply.add_answers(records(&absolute(target), kind, 60, addresses));
            }
            Reply::Truncated(_) if !over_tcp => reply.metadata.truncation = true,
            Reply::Addresses(addresses) | Reply::Truncated(addresses) => {
                reply.add_answers(records(owner, kind, 60, addresses));
            }
            Reply::Lasting(ttl, addresses) => {
                reply.add_answers(records(owner, kind, ttl, addresses));
            }
        }
        Some(reply.to_vec().unwrap())
    }
}

fn absolute(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).unwrap()
}

fn alias(owner: &Name, target: &str) -> Record {
    Record::from_rdata(owner.clone(), 60, RData::CNAME(CNAME(absolute(target))))
}

fn records(owner: &Name, kind: RecordType, ttl: u32, addresses: &[&str]) -> Vec<Record> {
    let addresses = addresses.iter().map(|address| address.parse::<IpAddr>().unwrap());
    addresses
        .filter(|address| address.is_ipv4() == (kind == RecordType::A))
        .map(|address| Record::from_rdata(owner.clone(), ttl, RData::from(address)))
        .collect()
}

async fn serve_udp(socket: UdpSocket, server: Arc<Server>) {
    let mut buffer = [0; 4096];
    loop {
        // An error is a peer's that has gone: the next one is served all the same.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await
            && let Some(reply) = server.reply(&buffer[..length], false)
        {
            socket.send_to(&reply, from).await.unwrap();
        }
    }
}

async fn serve_tcp(mut stream: TcpStream, server: Arc<Server>) -> io::Result<()> {
    loop {
        let mut request = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut request).await?;
        if let Some(reply) = server.reply(&request, true) {
            stream.write_u16(u16::try_from(reply.len()).unwrap()).await?;
            stream.write_all(&reply).await?;
        }
    }
}
