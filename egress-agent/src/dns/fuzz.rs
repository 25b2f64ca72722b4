//! Entry for the fuzzer and the replay of its corpus.
#![expect(clippy::panic, reason = "a broken promise is a finding")]

use hickory_proto::op::{Message, ResponseCode};

use super::message::{Extended, Incoming, Question, Transport};

/// [`Question::read`]: of whatever comes in, nothing leaves but a name and a type, and every answer can be read.
pub fn query(bytes: &[u8]) {
    let question = match Question::read(bytes) {
        Incoming::Ignored => return,
        Incoming::Error(reply, _) => return readable(&reply),
        Incoming::Question(question) => question,
    };
    let Ok(sent) = question.anew().to_vec() else {
        panic!("a question that was read can be asked");
    };
    // Header, name, type and class, and an OPT record without options.
    if sent.len() > 12 + 255 + 4 + 11 {
        panic!("{} bytes leave", sent.len());
    }
    if sent.iter().any(u8::is_ascii_uppercase) && question.name().to_ascii().is_ascii() {
        // Ids, types and lengths may look like letters; the name may not.
        let name = Message::from_vec(&sent)
            .ok()
            .and_then(|message| Some(message.queries.first()?.name().to_ascii()));
        if name.is_none_or(|name| name.bytes().any(|byte| byte.is_ascii_uppercase())) {
            panic!("the spelling of a name leaves");
        }
    }
    let refusal = question.refusal(ResponseCode::NXDomain, Extended::Blocked);
    let reply = question.encode(&refusal, Transport::Udp);
    if reply.len() > 512 {
        panic!("a refusal of {} bytes", reply.len());
    }
    readable(&reply);
}

fn readable(reply: &[u8]) {
    if let Err(error) = Message::from_vec(reply) {
        panic!("an answer that nobody can read: {error}");
    }
}
