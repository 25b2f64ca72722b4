//! The log as its callers see it: what is recorded arrives, once and whole, or is counted.

use std::{
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use egress_common::outcome::Outcome;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::Mode,
    unistd::mkfifo,
};
use tempfile::TempDir;

use super::*;
use samples::{get, name, nothing, tunnel};

const LIMIT: Duration = Duration::from_secs(30);

fn to_file(format: Format, path: &Path) -> Vec<Output> {
    let target = Target::File(path.to_owned());
    vec![Output {
        format,
        target,
        opened: false,
    }]
}

fn urls(format: &str) -> Format {
    format.parse().unwrap()
}

fn numbered(number: u64) -> Record {
    get(
        format!("http://good.test/{number}").as_bytes(),
        Outcome::AllowedByRule,
    )
}

/// A named pipe whose reader is open, and reads when it is told to.
struct Pipe {
    _directory: TempDir,
    path: PathBuf,
    reader: File,
}

impl Pipe {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        Self {
            _directory: directory,
            path,
            reader,
        }
    }

    /// All that comes until the last writer has closed.
    fn read_to_end(mut self) -> String {
        fcntl(&self.reader, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let mut text = String::new();
        self.reader.read_to_string(&mut text).unwrap();
        text
    }
}

#[test]
fn records_are_appended_in_order_to_a_file_that_others_cannot_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    fs::write(&path, "an older line\n").unwrap();
    let log = AccessLog::start(to_file(urls("%ru"), &path)).unwrap();
    (0..5000).for_each(|number| log.record(numbered(number)));
    assert!(log.flush(LIMIT));
    let expected: String = (0..5000)
        .map(|number| format!("http://good.test/{number}\n"))
        .collect();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("an older line\n{expected}")
    );
    assert_eq!(log.status().outputs[0].written, 5000);

    let fresh = directory.path().join("fresh.log");
    let _log = AccessLog::start(to_file(Format::Json, &fresh)).unwrap();
    assert_eq!(fs::metadata(&fresh).unwrap().permissions().mode() & 0o037, 0);
}

#[test]
fn every_output_gets_every_record() {
    let directory = tempfile::tempdir().unwrap();
    let [squid, json] = ["squid.log", "json.log"].map(|name| directory.path().join(name));
    let outputs = [to_file(Format::Combined, &squid), to_file(Format::Json, &json)].concat();
    let log = AccessLog::start(outputs).unwrap();
    log.record(tunnel(name("good.test"), 443, Outcome::AllowedByRule));
    log.close(LIMIT).unwrap();
    assert!(
        fs::read_to_string(squid)
            .unwrap()
            .contains("\"CONNECT good.test:443 HTTP/1.1\" 200 0")
    );
    assert!(
        fs::read_to_string(json)
            .unwrap()
            .contains("\"host\":\"good.test\"")
    );
}

#[test]
fn an_output_that_asks_for_it_is_told_of_a_tunnel_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let [both, end] = ["both.log", "end.log"].map(|name| directory.path().join(name));
    let mut outputs = [to_file(Format::Json, &both), to_file(Format::Json, &end)].concat();
    outputs[0].opened = true;
    let log = AccessLog::start(outputs).unwrap();
    let record = tunnel(name("good.test"), 443, Outcome::AllowedByRule);
    let mut pending = Pending::new(log.clone(), Instant::now(), record);
    pending.opened();
    assert!(log.flush(LIMIT));
    let endings = |path| -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| line["ending"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(endings(&both), ["open"]);
    pending.finish(Ending::ClientAborted);
    log.close(LIMIT).unwrap();
    assert_eq!(endings(&both), ["open", "client_aborted"]);
    assert_eq!(endings(&end), ["client_aborted"]);
}

#[test]
fn after_a_rotation_the_old_file_has_what_came_before_and_the_new_one_what_came_after() {
    let directory = tempfile::tempdir().unwrap();
    let [path, rotated] = ["access.log", "access.log.1"].map(|name| directory.path().join(name));
    let log = AccessLog::start(to_file(urls("%ru"), &path)).unwrap();
    log.record(numbered(1));
    fs::rename(&path, &rotated).unwrap();
    log.reopen();
    // Recorded after the order, so wherever the writer stands it must not be in the old file alone.
    assert!(log.flush(LIMIT));
    while !path.exists() {
        thread::yield_now();
    }
    log.record(numbered(2));
    log.close(LIMIT).unwrap();
    assert_eq!(fs::read_to_string(rotated).unwrap(), "http://good.test/1\n");
    assert_eq!(fs::read_to_string(path).unwrap(), "http://good.test/2\n");
}

#[test]
fn rotation_under_load_loses_no_record_and_tears_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = AccessLog::start(to_file(urls("%ru"), &path)).unwrap();
    let mut files = Vec::new();
    for number in 0..20_000 {
        log.record(numbered(number));
        if number % 2000 == 999 && path.exists() {
            let rotated = directory.path().join(format!("access.log.{}", files.len()));
            fs::rename(&path, &rotated).unwrap();
            files.push(rotated);
            log.reopen();
        }
    }
    log.close(LIMIT).unwrap();
    assert!(!files.is_empty());
    files.extend(path.exists().then_some(path));
    let text: String = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let expected: String = (0..20_000)
        .map(|number| format!("http://good.test/{number}\n"))
        .collect();
    assert!(
        text == expected,
        "the files one after the other are all that was recorded, in order"
    );
}

#[test]
fn a_file_that_cannot_be_opened_again_is_kept_and_the_trouble_told() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    let moved = directory.path().join("moved");
    fs::create_dir(&inner).unwrap();
    let log = AccessLog::start(to_file(urls("%ru"), &inner.join("access.log"))).unwrap();
    fs::rename(&inner, &moved).unwrap();
    log.reopen();
    while log.status().outputs[0].errors == 0 {
        thread::yield_now();
    }
    log.record(numbered(1));
    log.close(LIMIT).unwrap();
    assert_eq!(
        fs::read_to_string(moved.join("access.log")).unwrap(),
        "http://good.test/1\n"
    );
}

#[test]
fn half_a_line_of_a_killed_writer_is_not_continued() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    fs::write(&path, "whole\nhal").unwrap();
    let log = AccessLog::start(to_file(urls("%ru"), &path)).unwrap();
    log.record(numbered(1));
    log.close(LIMIT).unwrap();
    assert_eq!(
        fs::read_to_string(path).unwrap(),
        "whole\nhal\nhttp://good.test/1\n"
    );
}

#[test]
fn a_reader_that_does_not_read_costs_records_and_not_time_and_the_gap_is_marked() {
    let pipe = Pipe::new();
    let options = Options {
        queue_bytes: 64 << 10,
        backlog_bytes: 16 << 10,
        ..Options::default()
    };
    let log = AccessLog::start_with(to_file(urls("%ru"), &pipe.path), &options).unwrap();
    let began = Instant::now();
    (0..50_000).for_each(|number| log.record(numbered(number)));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "record() waited for the reader"
    );
    assert!(
        !log.flush(Duration::from_millis(10)),
        "nobody reads, so not all can be out"
    );
    let status = log.status();
    assert!(status.dropped + status.outputs[0].lost > 0, "{status:?}");

    let reading = thread::spawn(move || pipe.read_to_end());
    assert!(log.flush(LIMIT));
    log.record(numbered(77_777));
    log.close(LIMIT).unwrap();
    let text = reading.join().unwrap();
    let (mut next, mut marked) = (0, 0);
    for line in text.lines().take_while(|line| !line.ends_with("/77777")) {
        if let Some(number) = line.strip_prefix("http://good.test/") {
            assert_eq!(
                number.parse(),
                Ok(next),
                "a gap that no line marks, or a line twice"
            );
            next += 1;
        } else {
            let count = line
                .strip_prefix("error:")
                .and_then(|rest| rest.strip_suffix("-records-lost"));
            let count: u64 = count.unwrap().parse().unwrap();
            next += count;
            marked += count;
        }
    }
    assert_eq!(next, 50_000, "every record is written or counted");
    assert!(text.ends_with("http://good.test/77777\n"), "the log works again");
    assert_eq!(log.status().outputs[0].lost, marked);
}

#[test]
fn a_full_disk_is_counted_and_told() {
    let log = AccessLog::start(to_file(urls("%ru"), Path::new("/dev/full"))).unwrap();
    log.record(numbered(1));
    while log.status().outputs[0].failing.is_none() {
        thread::yield_now();
    }
    assert_eq!(log.close(Duration::from_millis(50)), Err(Unwritten(1)));
    let output = &log.status().outputs[0];
    assert!(
        output.errors > 0 && output.lost == 1 && output.written == 0,
        "{output:?}"
    );
}

#[test]
fn a_closed_log_counts_what_still_comes() {
    let pipe = Pipe::new();
    let log = AccessLog::start(to_file(urls("%ru"), &pipe.path)).unwrap();
    log.record(numbered(1));
    log.close(LIMIT).unwrap();
    log.record(numbered(2));
    assert_eq!(log.close(LIMIT), Ok(()));
    assert_eq!((log.status().records, log.status().dropped), (1, 1));
    assert_eq!(pipe.read_to_end(), "http://good.test/1\n");
}

#[test]
fn the_last_handle_to_go_lets_the_writer_finish() {
    let pipe = Pipe::new();
    let log = AccessLog::start(to_file(urls("%ru"), &pipe.path)).unwrap();
    (0..100).for_each(|number| log.clone().record(numbered(number)));
    drop(log);
    assert_eq!(pipe.read_to_end().lines().count(), 100);
}

#[test]
fn a_log_that_cannot_be_opened_is_refused_by_name() {
    let path = Path::new("/nonexistent/directory/access.log");
    let error = AccessLog::start(to_file(Format::Squid, path)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "access log /nonexistent/directory/access.log: No such file or directory (os error 2)"
    );
}

#[test]
fn a_disabled_log_takes_everything_and_does_nothing() {
    let log = AccessLog::default();
    log.record(numbered(1));
    log.reopen();
    assert!(!log.is_enabled() && log.flush(LIMIT));
    assert_eq!(log.close(LIMIT), Ok(()));
    assert_eq!(log.status(), Status::default());
}

#[test]
fn a_pending_record_is_logged_once_however_it_ends() {
    let pipe = Pipe::new();
    let log = AccessLog::start(to_file(urls("%ru %{ending}note %Ss %<st"), &pipe.path)).unwrap();
    let open = |record| Pending::new(log.clone(), Instant::now(), record);
    let mut finished = open(nothing(Outcome::ClientGone));
    *finished = numbered(1);
    finished.finish(Ending::Complete);
    let mut cancelled = open(nothing(Outcome::ClientGone));
    *cancelled = numbered(2);
    cancelled.count(Arc::new(Counted(AtomicU64::new(41))));
    cancelled.bytes_to_client = 1;
    drop(cancelled);
    let mut drained = open(numbered(3));
    drained.if_dropped(Ending::Drained);
    drop(drained);
    drop(open(nothing(Outcome::ClientGone)));
    log.close(LIMIT).unwrap();
    let expected = "http://good.test/1 complete TCP_MISS 0\n\
        http://good.test/2 client_aborted TCP_MISS_ABORTED 42\n\
        http://good.test/3 drained TCP_MISS_ABORTED 0\n\
        error:transaction-end-before-headers client_aborted NONE_NONE 0\n";
    assert_eq!(pipe.read_to_end(), expected);
}

#[derive(Debug)]
struct Counted(AtomicU64);

impl ByteCounts for Counted {
    fn to_client(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn to_origin(&self) -> u64 {
        0
    }
}

#[test]
fn a_format_is_a_name_or_a_logformat_string() {
    for name in ["combined", "squid", "common", "json"] {
        assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
    }
    assert_eq!("%>a %ru".parse::<Format>().unwrap().to_string(), "%>a %ru");
    let error = "combine".parse::<Format>().unwrap_err().to_string();
    assert!(
        error.contains("`combine`") && error.contains("combined, squid, common, json"),
        "{error}"
    );
    assert!(
        "%zz"
            .parse::<Format>()
            .unwrap_err()
            .to_string()
            .starts_with("log format: column 1: unknown code")
    );
    let read: Format = serde_json::from_str("\"squid\"").unwrap();
    assert_eq!(read, Format::Squid);
}
