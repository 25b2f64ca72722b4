//! The access log on a disk that fills up.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use egress_agent::{
    access_log::{AccessLog, Asked, Carrier, Ending, Options, Output, Protocol, Record, Target},
    identity::{Process, Workload},
    policy::Verdict,
};
use egress_common::outcome::Outcome;
use egress_tests::{lab::Place, promises};
use http::{Method, Uri, Version};
use nix::mount::{MsFlags, mount};

promises![a_disk_that_fills_up_tears_no_line_and_the_gap_is_marked];

const RECORDS: u64 = 5000;
const PATIENCE: Duration = Duration::from_secs(30);

async fn a_disk_that_fills_up_tears_no_line_and_the_gap_is_marked() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().to_owned();
    // A mount namespace of its own: the disk goes with it.
    let place = Place::new("disk");
    let log = place.run(async move { fill_and_empty(&disk) }).await;
    let (mut next, mut lost) = (0, 0);
    for line in log.lines() {
        if let Some(number) = line.strip_prefix("http://good.test/") {
            assert_eq!(
                number.parse(),
                Ok(next),
                "torn, twice, or missing without a word: {line}"
            );
            next += 1;
        } else {
            let count = line
                .strip_prefix("error:")
                .and_then(|rest| rest.strip_suffix("-records-lost"));
            let count: u64 = count.expect("a whole line").parse().expect("a number");
            (next, lost) = (next + count, lost + count);
        }
    }
    assert_eq!(next, RECORDS + 1, "every record is there or counted");
    assert!(lost > 0, "the disk was never full");
    assert!(
        log.ends_with(&format!("http://good.test/{RECORDS}\n")),
        "the log works again"
    );
}

/// Logs more than the disk takes, makes room, logs one more record, and returns what the log says.
fn fill_and_empty(disk: &Path) -> String {
    let size = Some("size=128k");
    mount(Some("tmpfs"), disk, Some("tmpfs"), MsFlags::empty(), size).expect("a disk of 128 KiB");
    let filler = disk.join("filler");
    fs::write(&filler, vec![0; 96 * 1024]).expect("the disk takes 96 KiB");
    let path = disk.join("access.log");
    let log = start(path.clone());
    (0..RECORDS).for_each(|number| log.record(record(number)));
    assert!(!log.flush(Duration::from_millis(500)), "the disk took everything");
    let output = log.status().outputs.remove(0);
    assert!(
        output.failing.is_some_and(|why| why.contains("No space left")),
        "the trouble is not told"
    );
    fs::remove_file(filler).expect("room");
    assert!(log.flush(PATIENCE), "the log does not recover");
    log.record(record(RECORDS));
    log.close(PATIENCE).expect("written");
    assert_eq!(log.status().outputs[0].failing, None);
    fs::read_to_string(path).expect("the log")
}

fn start(path: PathBuf) -> AccessLog {
    let output = Output {
        format: "%ru".parse().expect("a format"),
        target: Target::File(path),
        opened: false,
    };
    let options = Options {
        backlog_bytes: 8 << 10,
        ..Options::default()
    };
    AccessLog::start_with(vec![output], &options).expect("a log")
}

fn record(number: u64) -> Record {
    let address = SocketAddr::from(([192, 0, 2, 7], 80));
    Record {
        started: jiff::Timestamp::now(),
        duration: Duration::ZERO,
        client: address,
        original: address,
        workload: Arc::new(Workload::default()),
        process: Process::default(),
        carrier: Carrier::TCP,
        protocol: Protocol::Http1,
        asked: Asked::Request {
            method: Method::GET,
            url: Uri::try_from(format!("http://good.test/{number}")).expect("a URL"),
            version: Version::HTTP_11,
        },
        tls: None,
        status: 200,
        bytes_to_client: 0,
        bytes_to_origin: 0,
        referer: None,
        user_agent: None,
        content_type: None,
        by_parent: false,
        upstream: Some(address),
        relation: None,
        verdict: Verdict::without_rule(Outcome::AllowedByRule),
        enforced: true,
        ending: Ending::Complete,
        attempts: 1,
    }
}
