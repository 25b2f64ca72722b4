//! The name servers that we trust, and how they are asked: in their order, over sockets of our own, with random ids and
//! ports.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library has dozens of record types and codes, of which few concern us"
)]

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time,
};

use super::{
    files::{self, Watched},
    message::is_answer_to,
};
use crate::race::staggered;

/// A lost datagram is sent again after this.
const RESEND: Duration = Duration::from_millis(1500);

/// Who is asked for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameServers {
    /// The `nameserver` lines of a resolv.conf(5), read again when it changes. Its options and search list are not used;
    /// without any such line the server on this machine is asked, as resolv.conf(5) has it.
    File(PathBuf),
    /// These, in this order.
    List(Vec<SocketAddr>),
}

/// Asks name servers.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Servers,
    /// How long one question may take, over all servers.
    timeout: Duration,
    /// A server that has not answered for so long is overtaken by the next one.
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// No server answered in time.
    #[error("no name server answered in time")]
    Timeout,
    /// There is no server, or none can be reached.
    #[error("the name servers cannot be asked: {0}")]
    Network(#[from] io::Error),
}

#[derive(Debug)]
enum Servers {
    File(Watched<Vec<SocketAddr>>),
    List(Arc<Vec<SocketAddr>>),
}

impl Upstream {
    /// Nothing is asked yet.
    #[must_use]
    pub(super) fn new(servers: &NameServers, timeout: Duration, patience: Duration) -> Self {
        Self {
            servers: match servers {
                NameServers::File(path) => Servers::File(Watched::new(path.clone(), files::name_servers)),
                NameServers::List(list) => Servers::List(Arc::new(list.clone())),
            },
            timeout,
            patience,
        }
    }

    /// The first answer to `question`, from the servers in their order; one that fails or is slow is overtaken by the
    /// next. If all fail, what the last one said of it (SERVFAIL, REFUSED) is the answer.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(super) async fn ask(&self, question: &Message) -> Result<Message, AskError> {
        let servers = match &self.servers {
            Servers::File(file) => file.get(),
            Servers::List(list) => Arc::clone(list),
        };
        let asking = staggered(servers.iter().copied(), self.patience, |server| {
            ask(server, question)
        });
        match time::timeout(self.timeout, asking).await {
            Err(_elapsed) => Err(AskError::Timeout),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failures)) => match failures.into_iter().next_back() {
                Some(Failure::Told(answer)) => Ok(*answer),
                Some(Failure::Network(error)) => Err(AskError::Network(error)),
                None => Err(AskError::Network(io::Error::other(
                    "no name server is configured",
                ))),
            },
        }
    }
}

/// Why another server is to be asked.
enum Failure {
    /// This one said that it cannot tell.
    Told(Box<Message>),
    /// It cannot be asked.
    Network(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Network(error)
    }
}

async fn ask(server: SocketAddr, question: &Message) -> Result<Message, Failure> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let mut answer = by_udp(server, question, &bytes).await?;
    if answer.metadata.truncation {
        answer = by_tcp(server, question, &bytes).await?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        _ => Err(Failure::Told(Box::new(answer))),
    }
}

/// A socket for one question: its random port is a secret as the id is, and being connected it takes datagrams of the
/// server alone.
async fn by_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok(received) = time::timeout(RESEND, socket.recv(&mut buffer)).await else {
            socket.send(bytes).await?;
            continue;
        };
        let datagram = buffer.get(..received?).unwrap_or_default();
        match Message::from_vec(datagram) {
            Ok(answer) if is_answer_to(&answer, question) => return Ok(answer),
            // Somebody guesses, or an answer came late: the true one may still come.
            Ok(_) | Err(_) => {}
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], bytes].concat();
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if is_answer_to(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::other("an answer to another question"))
    }
}
