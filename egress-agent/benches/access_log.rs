//! What a record costs: the data path, which hands it over (`record`), and the writer, which renders and writes it
//! (`written`, one per format).
//!
//! `cargo bench -p egress-agent --bench access_log`
#![expect(clippy::unwrap_used, reason = "a benchmark that fails has no result")]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use egress_agent::{
    access_log::{AccessLog, Asked, Carrier, Ending, Format, Options, Output, Protocol, Record, Target},
    identity::{Process, Workload},
    policy::Verdict,
};
use egress_common::outcome::Outcome;
use http::{HeaderValue, Method, Uri, Version};
use jiff::Timestamp;

/// Below what the queue holds, so that nothing is dropped while the clock runs.
const BURST: usize = 10_000;
const LIMIT: Duration = Duration::from_secs(60);

fn request(started: Timestamp) -> Record {
    Record {
        started,
        duration: Duration::from_micros(48_123),
        client: "10.42.0.7:39870".parse().unwrap(),
        original: "198.51.100.10:80".parse().unwrap(),
        workload: Arc::new(Workload {
            namespace: "shop".to_owned(),
            name: "cart-7d4b9c-x2x".to_owned(),
            cgroup: "/kubepods/burstable/pod0b0c".to_owned(),
            ..Workload::default()
        }),
        process: Process {
            pid: 4711,
            uid: 1000,
            command: "curl".to_owned(),
        },
        carrier: Carrier::TCP,
        protocol: Protocol::Http1,
        asked: Asked::Request {
            method: Method::GET,
            url: Uri::from_static("http://ssd.jpl.nasa.gov/api/horizons.api?format=text&COMMAND=499"),
            version: Version::HTTP_11,
        },
        tls: None,
        status: 200,
        bytes_to_client: 35_101,
        bytes_to_origin: 213,
        referer: None,
        user_agent: Some(HeaderValue::from_static("python-requests/2.32.3")),
        content_type: Some(HeaderValue::from_static("text/plain; charset=utf-8")),
        by_parent: false,
        upstream: Some("198.51.100.10:80".parse().unwrap()),
        relation: None,
        verdict: Verdict::without_rule(Outcome::AllowedByRule),
        enforced: true,
        ending: Ending::Complete,
        attempts: 1,
    }
}

/// A burst as a busy node sees it: 20 records share a millisecond, and the second changes now and then.
fn burst() -> Vec<Record> {
    let start = Timestamp::from_second(1_795_413_157).unwrap();
    (0..BURST)
        .map(|number| request(start + Duration::from_micros(number as u64 * 50)))
        .collect()
}

fn log_to_nowhere(format: Format) -> AccessLog {
    let target = Target::File(PathBuf::from("/dev/null"));
    let options = Options {
        queue_bytes: 256 << 20,
        backlog_bytes: 256 << 20,
        ..Options::default()
    };
    AccessLog::start_with(
        vec![Output {
            format,
            target,
            opened: false,
        }],
        &options,
    )
    .unwrap()
}

fn record(criterion: &mut Criterion) {
    let log = log_to_nowhere(Format::Combined);
    criterion.bench_function("record", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = usize::try_from(iterations).unwrap();
            while left > 0 {
                let records = burst();
                let count = left.min(records.len());
                let began = Instant::now();
                records
                    .into_iter()
                    .take(count)
                    .for_each(|record| log.record(record));
                spent += began.elapsed();
                assert!(log.flush(LIMIT));
                left -= count;
            }
            spent
        });
    });
    assert_eq!(log.status().dropped, 0);
}

fn written(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("written");
    group
        .throughput(Throughput::Elements(BURST as u64))
        .sample_size(20);
    for format in [Format::Combined, Format::Squid, Format::Common, Format::Json] {
        let log = log_to_nowhere(format.clone());
        group.bench_function(BenchmarkId::from_parameter(&format), |bencher| {
            bencher.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        let records = burst();
                        let began = Instant::now();
                        records.into_iter().for_each(|record| log.record(record));
                        assert!(log.flush(LIMIT));
                        began.elapsed()
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, record, written);
criterion_main!(benches);
