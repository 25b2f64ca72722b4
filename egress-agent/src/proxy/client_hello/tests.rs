mod build;
mod fragments;
mod oracle;
mod outcomes;
mod recorded;

use super::*;

/// The default of `Limits::head_bytes`.
const BOUND: usize = 64 * 1024;

/// The answer for `bytes`, having checked that it is the same when they come one by one, and that every prefix says
/// the same or nothing yet.
#[track_caller]
fn settled(bytes: &[u8]) -> Parsed {
    let answer = parse(bytes, BOUND);
    let mut reader = HelloReader::new(BOUND);
    for end in 0..=bytes.len() {
        let earlier = reader.read(&bytes[..end]);
        if earlier != Parsed::Incomplete {
            assert_eq!(earlier, answer, "after {end} of {} bytes", bytes.len());
            return answer;
        }
    }
    assert_eq!(answer, Parsed::Incomplete, "byte by byte it stays incomplete");
    answer
}

#[track_caller]
fn hello(bytes: &[u8]) -> ClientHello {
    let answer = settled(bytes);
    let Parsed::Hello(hello) = answer else {
        panic!("{answer:?}");
    };
    hello
}

#[track_caller]
fn refusal(bytes: &[u8]) -> HelloRefusal {
    let answer = settled(bytes);
    let Parsed::Refused(refusal) = answer else {
        panic!("{answer:?}");
    };
    refusal
}

/// The server name as text.
#[track_caller]
fn name(bytes: &[u8]) -> Option<String> {
    hello(bytes).server_name.map(|name| name.to_string())
}
