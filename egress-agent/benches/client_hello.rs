//! What reading a ClientHello costs a connection: `cargo bench -p egress-agent --bench client_hello`.
#![expect(clippy::expect_used, reason = "a benchmark that fails has no result")]

use std::{hint::black_box, path::Path};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use egress_agent::proxy::{
    client_hello::{HelloReader, Parsed, parse},
    detect::detect,
};

const BOUND: usize = 64 * 1024;

const RECORDED: &[&str] = &[
    "openssl-3.0",
    "curl-7.88-h2",
    "java-17-httpclient",
    "boringssl-as-chrome150",
];

fn recorded(file: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/client_hello");
    std::fs::read(directory.join(format!("{file}.bin"))).expect("a recorded hello")
}

/// The same handshake message in records of `size` bytes.
fn in_records(wire: &[u8], size: usize) -> Vec<u8> {
    wire[5..]
        .chunks(size)
        .flat_map(|fragment| {
            let length = u16::try_from(fragment.len()).expect("a record").to_be_bytes();
            [&[22, 3, 1], &length[..], fragment].concat()
        })
        .collect()
}

fn at_once(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client_hello");
    for file in RECORDED {
        let wire = recorded(file);
        assert!(matches!(parse(&wire, BOUND), Parsed::Hello(_)), "{file}");
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function(*file, |bencher| bencher.iter(|| parse(black_box(&wire), BOUND)));
    }
    let wire = recorded("boringssl-as-chrome150");
    group.bench_function("detect", |bencher| bencher.iter(|| detect(black_box(&wire))));
    group.finish();
}

/// Every byte its own segment, and besides every byte its own record: the worst that a client can do.
fn byte_by_byte(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client_hello_byte_by_byte");
    let one_record = recorded("boringssl-as-chrome150");
    let many_records = in_records(&one_record, 1);
    for (name, wire) in [("one_record", &one_record), ("one_byte_records", &many_records)] {
        group.throughput(Throughput::Elements(wire.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || HelloReader::new(BOUND),
                |reader| {
                    let found = (0..=wire.len()).find_map(|end| match reader.read(&wire[..end]) {
                        Parsed::Incomplete => None,
                        answer @ (Parsed::Hello(_) | Parsed::Refused(_)) => Some(answer),
                    });
                    assert!(matches!(found, Some(Parsed::Hello(_))));
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, at_once, byte_by_byte);
criterion_main!(benches);
