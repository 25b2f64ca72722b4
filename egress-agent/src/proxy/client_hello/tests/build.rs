//! Hellos built by hand, also such as no client would send.

/// The parts of a ClientHello.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) version: u16,
    pub(super) session: Vec<u8>,
    pub(super) suites: Vec<u8>,
    pub(super) compression: Vec<u8>,
    /// `None`: the block is not there at all.
    pub(super) extensions: Option<Vec<(u16, Vec<u8>)>>,
    /// Put after the extensions.
    pub(super) trailer: Vec<u8>,
}

impl Build {
    /// A hello that a server would answer, with these extensions besides the needed ones.
    pub(super) fn with(extensions: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Self {
        let mut all = vec![
            // supported_versions: 1.3 and 1.2; signature_algorithms; supported_groups.
            (43, vec![4, 3, 4, 3, 3]),
            (13, vec![0, 4, 8, 4, 4, 3]),
            (10, vec![0, 2, 0, 29]),
        ];
        all.extend(extensions);
        Self {
            version: 0x0303,
            session: vec![7; 32],
            suites: vec![0x13, 1, 0xc0, 0x2f],
            compression: vec![0],
            extensions: Some(all),
            trailer: Vec::new(),
        }
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend_from_slice(&[0x5a; 32]);
        body.extend(vector8(&self.session));
        body.extend(vector16(&self.suites));
        body.extend(vector8(&self.compression));
        if let Some(extensions) = &self.extensions {
            let block: Vec<u8> = extensions
                .iter()
                .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector16(data)].concat())
                .collect();
            body.extend(vector16(&block));
        }
        body.extend_from_slice(&self.trailer);
        body
    }

    pub(super) fn message(&self) -> Vec<u8> {
        message(1, &self.body())
    }

    /// The message in as few records as it fits into.
    pub(super) fn wire(&self) -> Vec<u8> {
        records(&self.message(), &[1 << 14])
    }
}

pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// A record with version 3.1, as initial hellos have.
pub(super) fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], &vector16(fragment)[..]].concat()
}

/// Handshake records with fragments of these sizes, the last size for all further ones.
pub(super) fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut rest = message;
    let mut sizes = sizes.iter().copied();
    let mut size = 1;
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size);
        let (fragment, after) = rest.split_at(size.min(rest.len()));
        wire.extend(record(22, fragment));
        rest = after;
    }
    wire
}

/// A `server_name` extension with entries of (type, name).
pub(super) fn names(entries: &[(u8, &[u8])]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = entries
        .iter()
        .flat_map(|(kind, name)| [vec![*kind], vector16(name)].concat())
        .collect();
    (0, vector16(&list))
}

/// A `server_name` extension as clients send it.
pub(super) fn sni(name: impl AsRef<[u8]>) -> (u16, Vec<u8>) {
    names(&[(0, name.as_ref())])
}

pub(super) fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = protocols.iter().flat_map(|protocol| vector8(protocol)).collect();
    (16, vector16(&list))
}

pub(super) fn vector8(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap()], content].concat()
}

pub(super) fn vector16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}
