//! A DNS server that says what a test told it and remembers what it was asked.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use hickory_proto::{
    op::{Message, Metadata, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::lab::Place;

/// What is said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A and AAAA records.
    Addresses(Vec<IpAddr>),
    /// A CNAME, with the records of the other name if the zone has it.
    Alias(String),
    /// Records of any types, of which those of the type asked for are told.
    Records(Vec<RData>),
    /// SERVFAIL.
    ServerFailure,
    /// Nothing at all: the asker waits.
    Silence,
}

/// What all servers of a world know. A name that is not in here does not exist.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    names: Arc<Mutex<BTreeMap<String, (u32, Answer)>>>,
}

impl Zone {
    /// Tells an answer from now on, with a time to live of `ttl` seconds.
    pub fn set_with_ttl(&self, name: &str, answer: Answer, ttl: u32) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), (ttl, answer));
    }

    /// Tells an answer from now on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.set_with_ttl(name, answer, 60);
    }

    /// The addresses that a name has.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        self.known_addresses(name)
            .unwrap_or_else(|| panic!("{name} has no addresses but {:?}", self.get(name)))
    }

    /// The addresses that a name has, if it has nothing else.
    #[must_use]
    pub fn known_addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        match self.get(name) {
            Some((_, Answer::Addresses(addresses))) if !addresses.is_empty() => Some(addresses),
            Some(_) | None => None,
        }
    }

    fn get(&self, name: &str) -> Option<(u32, Answer)> {
        self.names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }
}

/// One question that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without the trailing dot.
    pub name: String,
    /// `A`, `AAAA`, `HTTPS` and so on.
    pub kind: String,
    /// Who asked.
    pub from: SocketAddr,
    /// The whole message.
    pub message: Vec<u8>,
}

/// A server on UDP and TCP.
#[derive(Debug)]
pub struct DnsServer {
    /// Where it listens.
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    zone: Zone,
    questions: Mutex<Vec<Question>>,
}

impl DnsServer {
    /// Serves `zone` at `address` in `place`, which has that address.
    ///
    /// # Panics
    /// The address cannot be bound.
    pub async fn start(place: &Place, address: SocketAddr, zone: Zone) -> Self {
        let inner = Arc::new(Inner {
            zone,
            questions: Mutex::default(),
        });
        let serving = Arc::clone(&inner);
        place
            .run(async move {
                let udp = UdpSocket::bind(address).await.expect("the DNS server's UDP port");
                let tcp = TcpListener::bind(address)
                    .await
                    .expect("the DNS server's TCP port");
                tokio::spawn(serve_udp(udp, Arc::clone(&serving)));
                tokio::spawn(serve_tcp(tcp, serving));
            })
            .await;
        Self { address, inner }
    }

    /// What it was asked so far, in order.
    #[must_use]
    pub fn questions(&self) -> Vec<Question> {
        self.inner
            .questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The names it was asked for so far, each once, sorted.
    #[must_use]
    pub fn names_asked(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .questions()
            .into_iter()
            .map(|question| question.name)
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

impl Inner {
    /// The reply to `request`, if there is to be one. The question is noted before it is answered.
    fn reply(&self, request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let bytes = request;
        let request = Message::from_vec(bytes).ok()?;
        let query = request.queries.first()?;
        let name = query
            .name()
            .to_lowercase()
            .to_ascii()
            .trim_end_matches('.')
            .to_owned();
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Question {
                name: name.clone(),
                kind: query.query_type().to_string(),
                from,
                message: bytes.to_vec(),
            });
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&request.metadata);
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        reply.metadata.response_code = match self.records(&name, query.query_type()) {
            Ok(records) => {
                reply.add_answers(records);
                ResponseCode::NoError
            }
            Err(Some(code)) => code,
            Err(None) => return None,
        };
        reply.to_vec().ok()
    }

    /// The records, the error code, or `Err(None)` for silence.
    fn records(&self, name: &str, kind: RecordType) -> Result<Vec<Record>, Option<ResponseCode>> {
        let (ttl, answer) = self.zone.get(name).ok_or(Some(ResponseCode::NXDomain))?;
        let owner = Name::from_ascii(format!("{name}.")).map_err(|_| Some(ResponseCode::FormErr))?;
        match answer {
            Answer::ServerFailure => Err(Some(ResponseCode::ServFail)),
            Answer::Silence => Err(None),
            Answer::Records(records) => Ok(records
                .into_iter()
                .filter(|data| data.record_type() == kind)
                .map(|data| Record::from_rdata(owner.clone(), ttl, data))
                .collect()),
            Answer::Addresses(addresses) => Ok(addresses
                .into_iter()
                .filter_map(|address| match (kind, address) {
                    (RecordType::A, IpAddr::V4(v4)) => Some(RData::A(A(v4))),
                    (RecordType::AAAA, IpAddr::V6(v6)) => Some(RData::AAAA(AAAA(v6))),
                    _ => None,
                })
                .map(|data| Record::from_rdata(owner.clone(), ttl, data))
                .collect()),
            Answer::Alias(other) => {
                let target =
                    Name::from_ascii(format!("{other}.")).map_err(|_| Some(ResponseCode::FormErr))?;
                let mut records = vec![Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target)))];
                // An alias of a name that does not exist is an answer of the alias alone, with the code of the other.
                records.extend(self.records(&other, kind)?);
                Ok(records)
            }
        }
    }
}

async fn serve_udp(socket: UdpSocket, inner: Arc<Inner>) {
    let mut buffer = [0; 4096];
    // An error of the socket is one peer's ICMP message: it must not end the service for the others.
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(reply) = inner.reply(&buffer[..length], from)
            && let Err(error) = socket.send_to(&cut(reply, &buffer[..length]), from).await
        {
            eprintln!("DNS reply to {from}: {error}");
        }
    }
}

/// A reply that is longer than its asker takes by UDP, cut to its header and question.
fn cut(reply: Vec<u8>, request: &[u8]) -> Vec<u8> {
    let most = Message::from_vec(request).map_or(512, |request| request.max_payload());
    if reply.len() <= usize::from(most) {
        return reply;
    }
    match Message::from_vec(&reply).map(|reply| reply.truncate().to_vec()) {
        Ok(Ok(cut)) => cut,
        Ok(Err(_)) | Err(_) => reply,
    }
}

async fn serve_tcp(listener: TcpListener, inner: Arc<Inner>) {
    while let Ok((stream, from)) = listener.accept().await {
        let inner = Arc::clone(&inner);
        tokio::spawn(async move {
            if let Err(error) = serve_stream(stream, from, &inner).await {
                eprintln!("DNS over TCP from {from}: {error}");
            }
        });
    }
}

async fn serve_stream(mut stream: TcpStream, from: SocketAddr, inner: &Inner) -> io::Result<()> {
    loop {
        let length = match stream.read_u16().await {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut request = vec![0; usize::from(length)];
        stream.read_exact(&mut request).await?;
        if let Some(reply) = inner.reply(&request, from) {
            stream
                .write_u16(u16::try_from(reply.len()).map_err(io::Error::other)?)
                .await?;
            stream.write_all(&reply).await?;
        }
    }
}
