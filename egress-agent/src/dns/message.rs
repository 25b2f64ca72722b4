//! What a workload asks, and what it is told: the messages of RFC 1035, with EDNS (RFC 6891) and extended errors (RFC
//! 8914).
//!
//! A question is taken apart and a new one is made of it, so that nothing of a workload's bytes leaves but a name that
//! the policy allows, in lower case, and a type: no header bits, no options, no records.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};

use crate::policy::DomainName;

/// The payload that we can take by UDP, and ask others to keep to: what passes every path unfragmented (DNS flag day
/// 2020).
const OUR_PAYLOAD: u16 = 1232;
/// The least that every client can take by UDP (RFC 1035 section 2.3.4).
const LEAST_PAYLOAD: u16 = 512;
/// A header without anything after it.
const HEADER: usize = 12;
/// EDNS option code of extended errors.
const EXTENDED_ERROR: u16 = 15;

/// One question of a workload.
#[derive(Debug, Clone)]
pub struct Question {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    query: Query,
    host: Option<DomainName>,
    /// The client's payload; `None` without EDNS.
    payload: Option<u16>,
    dnssec_ok: bool,
}

/// What came in.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// A question to be judged.
    Question(Box<Question>),
    /// To be answered with this, at once.
    Error(Vec<u8>, ResponseCode),
    /// No answer: it is none to be had, or answering would make a loop.
    Ignored,
}

/// Extended errors that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extended {
    /// 15, Blocked: by the policy.
    Blocked,
    /// 15, Blocked: the name resolves to addresses that it has no business to have.
    Private,
    /// 21, Not Supported.
    NotSupported,
    /// 22, No Reachable Authority: no name server answered in time.
    NoReachableAuthority,
    /// 23, Network Error.
    NetworkError,
    /// 14, Not Ready: too much is under way.
    NotReady,
}

/// How a question came, and so how large its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream of messages with lengths.
    Tcp,
}

impl Question {
    /// Reads a message. Never panics, whatever the bytes.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Incoming {
        let Some((id, is_response)) = header(bytes) else {
            return Incoming::Ignored;
        };
        if is_response {
            return Incoming::Ignored;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return error(id, OpCode::Query, ResponseCode::FormErr);
        };
        let metadata = message.metadata;
        if metadata.op_code != OpCode::Query {
            return error(id, metadata.op_code, ResponseCode::NotImp);
        }
        let [query] = message.queries.as_slice() else {
            return error(id, OpCode::Query, ResponseCode::FormErr);
        };
        // Questions have no answers in them. A signature (TSIG) is for a server that we are not.
        let has_records = !(message.answers.is_empty() && message.authorities.is_empty());
        if has_records || message.signature.is_some() {
            return error(id, OpCode::Query, ResponseCode::FormErr);
        }
        let question = Self {
            id,
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
            host: host(query.name()),
            query: query.clone(),
            payload: message.edns.as_ref().map(Edns::max_payload),
            dnssec_ok: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        };
        let doubt = if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            Some(ResponseCode::BADVERS)
        } else if query.query_class() != DNSClass::IN || is_meta(query.query_type()) {
            Some(ResponseCode::NotImp)
        } else {
            None
        };
        match doubt {
            Some(code) => {
                let reply = question.refusal(code, Extended::NotSupported);
                Incoming::Error(question.encode(&reply, Transport::Udp), code)
            }
            None => Incoming::Question(Box::new(question)),
        }
    }

    /// The name that is asked for if it is a host name, else `None`.
    #[must_use]
    pub const fn host(&self) -> Option<&DomainName> {
        self.host.as_ref()
    }

    /// The name as it was asked for.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.query.name()
    }

    /// Whether it is about `name` itself and not one of its service labels.
    #[must_use]
    pub fn is_about(&self, name: &DomainName) -> bool {
        let asked = self.query.name().to_ascii();
        asked.trim_end_matches('.').eq_ignore_ascii_case(name.as_str())
    }

    /// The type that is asked for.
    #[must_use]
    pub fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// The question to ask in its place: another id, the name in lower case, no options.
    #[must_use]
    pub fn anew(&self) -> Message {
        let mut message = Message::query();
        // Always: only resolvers are asked.
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.checking_disabled;
        let mut name = self.query.name().to_lowercase();
        name.set_fqdn(true);
        message.add_query(Query::query(name, self.kind()));
        let mut edns = Edns::new();
        edns.set_max_payload(OUR_PAYLOAD);
        edns.set_dnssec_ok(self.dnssec_ok);
        message.set_edns(edns);
        message
    }

    /// A reply without records.
    #[must_use]
    pub(super) fn refusal(&self, code: ResponseCode, why: Extended) -> Message {
        let mut reply = self.reply(code);
        if let Some(edns) = &mut reply.edns {
            edns.options_mut().insert(why.option());
        }
        reply
    }

    /// The reply that passes on what a name server said: its records and extended errors, with our own header.
    #[must_use]
    pub fn pass_on(&self, answer: Message) -> Message {
        let mut reply = self.reply(answer.metadata.response_code);
        reply.metadata.authentic_data = answer.metadata.authentic_data;
        reply.answers = answer.answers;
        reply.authorities = answer.authorities;
        reply.additionals = answer.additionals;
        if let (Some(ours), Some(theirs)) = (&mut reply.edns, &answer.edns)
            && let Some(error) = theirs.option(EdnsCode::from(EXTENDED_ERROR))
        {
            ours.options_mut().insert(error.clone());
        }
        reply
    }

    /// The bytes of a reply; one that is too large for the client is cut to the bit that says so.
    #[must_use]
    pub fn encode(&self, reply: &Message, transport: Transport) -> Vec<u8> {
        let most = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => usize::from(self.payload.unwrap_or(LEAST_PAYLOAD).max(LEAST_PAYLOAD)),
        };
        match reply.to_vec() {
            Ok(bytes) if bytes.len() <= most => bytes,
            Ok(_long) => reply.truncate().to_vec().unwrap_or_default(),
            Err(failure) => {
                tracing::debug!(%failure, "an answer that cannot be written down");
                let failed = self.refusal(ResponseCode::ServFail, Extended::NetworkError);
                failed.to_vec().unwrap_or_default()
            }
        }
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = Message::response(self.id, OpCode::Query);
        reply.metadata.recursion_desired = self.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.checking_disabled = self.checking_disabled;
        reply.metadata.response_code = code;
        reply.add_query(self.query.clone());
        if self.payload.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_PAYLOAD);
            edns.set_dnssec_ok(self.dnssec_ok);
            edns.set_rcode_high(code.high());
            reply.set_edns(edns);
        }
        reply
    }
}

impl Extended {
    fn option(self) -> EdnsOption {
        let (code, text): (u16, &str) = match self {
            Self::NotReady => (14, "too many queries are under way"),
            Self::Blocked => (15, "no egress policy could allow this name"),
            Self::Private => (15, "a public name with private addresses only"),
            Self::NotSupported => (21, "the egress enforcer does not forward this kind of query"),
            Self::NoReachableAuthority => (22, "no name server answered in time"),
            Self::NetworkError => (23, "the name servers cannot be asked"),
        };
        let mut bytes = code.to_be_bytes().to_vec();
        bytes.extend(text.bytes());
        EdnsOption::Unknown(EXTENDED_ERROR, bytes)
    }
}

/// Whether `answer` answers `question`: its id, and the very question.
#[must_use]
pub(super) fn is_answer_to(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && match (answer.queries.as_slice(), question.queries.as_slice()) {
            ([told], [asked]) => {
                // Names are equal whatever their case.
                told.name() == asked.name()
                    && told.query_type() == asked.query_type()
                    && told.query_class() == asked.query_class()
            }
            _ => false,
        }
}

/// The id, and whether the message is a response; `None` for what is shorter than a header.
fn header(bytes: &[u8]) -> Option<(u16, bool)> {
    match bytes {
        [a, b, flags, ..] if bytes.len() >= HEADER => Some((u16::from_be_bytes([*a, *b]), flags & 0x80 != 0)),
        _ => None,
    }
}

fn error(id: u16, op_code: OpCode, code: ResponseCode) -> Incoming {
    let message = Message::error_msg(id, op_code, code);
    match message.to_vec() {
        Ok(bytes) => Incoming::Error(bytes, code),
        Err(_impossible) => Incoming::Ignored,
    }
}

/// Types that ask for no record of one kind (RFC 6895 section 3.1): ANY, zone transfers, keys, and EDNS itself.
fn is_meta(kind: RecordType) -> bool {
    matches!(u16::from(kind), 0 | 41 | 128..=255)
}

/// The host that a name is about. Service labels (`_443._tcp.`, `_dmarc.`, RFC 8552) belong to the host below them: their
/// records are that host's, and tell how it is to be reached.
fn host(name: &Name) -> Option<DomainName> {
    let text = name.to_ascii();
    let mut rest = text.as_str();
    for _ in 0..2 {
        match rest.split_once('.') {
            Some((label, below)) if label.starts_with('_') && !below.is_empty() => rest = below,
            Some(_) | None => break,
        }
    }
    DomainName::parse(rest).ok()
}

#[cfg(test)]
mod tests;
