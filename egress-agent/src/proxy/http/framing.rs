//! How long the body of an answer is, said once. Pure.

use http::{HeaderMap, HeaderValue, header};

/// Leaves an answer with one length, or none beside a transfer coding, which wins over it (RFC 9112 sections 6.1 and
/// 6.3). False if its lengths disagree or are no numbers: two readers could see two bodies.
///
/// What decides how much is read from the origin is hyper's own reading of the same fields. This is for the client, who
/// gets the fields, and for answers that have a length and no body (HEAD, 304), whose length hyper does not look at.
pub(super) fn settle(fields: &mut HeaderMap) -> bool {
    if fields.contains_key(header::TRANSFER_ENCODING) {
        fields.remove(header::CONTENT_LENGTH);
        return true;
    }
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return true;
    };
    if lengths.next().is_none() && is_number(first.as_bytes()) {
        return true;
    }
    let Some(length) = common_length(fields) else {
        return false;
    };
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    true
}

fn common_length(fields: &HeaderMap) -> Option<u64> {
    let mut common = None;
    for item in fields
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let item = item.trim_ascii();
        if !is_number(item) {
            return None;
        }
        let length: u64 = std::str::from_utf8(item).ok()?.parse().ok()?;
        if *common.get_or_insert(length) != length {
            return None;
        }
    }
    common
}

/// At most 19 digits: no number of so many overflows.
fn is_number(text: &[u8]) -> bool {
    (1..=19).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(fields: &[(&'static str, &'static str)]) -> Option<Vec<(String, String)>> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        settle(&mut map).then(|| {
            map.iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect()
        })
    }

    #[test]
    fn one_length_is_left_or_none() {
        const LENGTH: &str = "content-length";
        const CODING: &str = "transfer-encoding";
        for (fields, expected) in [
            (&[][..], Some(&[][..])),
            (&[(LENGTH, "5")], Some(&[(LENGTH, "5")])),
            (&[(LENGTH, "05")], Some(&[(LENGTH, "05")])),
            (&[(LENGTH, "5"), (LENGTH, "5")], Some(&[(LENGTH, "5")])),
            (&[(LENGTH, "5, 5")], Some(&[(LENGTH, "5")])),
            (
                &[(LENGTH, "5"), (CODING, "chunked")],
                Some(&[(CODING, "chunked")]),
            ),
            (
                &[(CODING, "chunked"), (LENGTH, "x")],
                Some(&[(CODING, "chunked")]),
            ),
            (&[(LENGTH, "5"), (LENGTH, "6")], None),
            (&[(LENGTH, "5, 6")], None),
            (&[(LENGTH, "")], None),
            (&[(LENGTH, "5,")], None),
            (&[(LENGTH, "+5")], None),
            (&[(LENGTH, "0x5")], None),
            (&[(LENGTH, "99999999999999999999")], None),
        ] {
            let expected = expected.map(|fields| {
                fields
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect::<Vec<_>>()
            });
            assert_eq!(settled(fields), expected, "{fields:?}");
        }
    }
}
