//! ClientHello messages byte by byte, also such as no TLS library would send.

/// Builds a ClientHello (RFC 8446 section 4.1.2) in TLS records.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Entries of the server name extension; no extension if there is none.
    names: Vec<(u8, Vec<u8>)>,
    /// Further extensions by number.
    extensions: Vec<(u16, Vec<u8>)>,
    /// Largest payload of one record.
    record: usize,
}

impl Hello {
    /// A hello with one host name, or without any.
    #[must_use]
    pub fn new(name: Option<&str>) -> Self {
        let hello = Self {
            names: Vec::new(),
            extensions: Vec::new(),
            record: 16 * 1024,
        };
        match name {
            Some(name) => hello.name(name),
            None => hello,
        }
    }

    /// One more host name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.push((0, name.as_bytes().to_vec()));
        self
    }

    /// An ALPN extension (RFC 7301).
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        let list: Vec<u8> = protocols
            .iter()
            .flat_map(|protocol| short_vector(protocol.as_bytes()))
            .collect();
        self.extensions.push((16, long_vector(&list)));
        self
    }

    /// A key share as large as `bytes`: a post-quantum one has 1.2 KiB, others may come.
    #[must_use]
    pub fn key_share(mut self, bytes: usize) -> Self {
        // X25519MLKEM768; the content is noise to everything between the ends.
        let mut entry = vec![0x11, 0xec];
        entry.extend(long_vector(&vec![0xa5; bytes]));
        self.extensions.push((51, long_vector(&entry)));
        self
    }

    /// An extension with an encrypted inner hello (ECH), or its GREASE: nobody between can tell which.
    #[must_use]
    pub fn encrypted_client_hello(mut self) -> Self {
        self.extensions.push((0xfe0d, vec![0; 64]));
        self
    }

    /// Splits the message over records of at most `bytes`.
    #[must_use]
    pub fn records_of(mut self, bytes: usize) -> Self {
        self.record = bytes;
        self
    }

    /// What goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([0x5a; 32]);
        body.extend(short_vector(&[0x77; 32]));
        // GREASE (RFC 8701), then the three suites of TLS 1.3.
        body.extend(long_vector(&[0x1a, 0x1a, 0x13, 0x01, 0x13, 0x02, 0x13, 0x03]));
        body.extend(short_vector(&[0]));
        let mut extensions = extension(0x2a2a, &[]);
        if !self.names.is_empty() {
            let list: Vec<u8> = self
                .names
                .iter()
                .flat_map(|(kind, name)| std::iter::once(*kind).chain(long_vector(name)))
                .collect();
            extensions.extend(extension(0, &long_vector(&list)));
        }
        for (number, data) in &self.extensions {
            extensions.extend(extension(*number, data));
        }
        // supported_versions: TLS 1.3.
        extensions.extend(extension(43, &short_vector(&[3, 4])));
        body.extend(long_vector(&extensions));
        let length = u32::try_from(body.len())
            .expect("a message under 16 MiB")
            .to_be_bytes();
        let mut message = vec![1, length[1], length[2], length[3]];
        message.extend(body);
        message
            .chunks(self.record)
            .flat_map(|part| [vec![22, 3, 1], long_vector(part)].concat())
            .collect()
    }
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [number.to_be_bytes().to_vec(), long_vector(data)].concat()
}

fn short_vector(data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).expect("a vector under 256 bytes");
    [vec![length], data.to_vec()].concat()
}

fn long_vector(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("a vector under 64 KiB");
    [length.to_be_bytes().to_vec(), data.to_vec()].concat()
}
