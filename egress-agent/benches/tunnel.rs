//! What a tunnel costs beside a direct connection over the same loopback: throughput, CPU time and round trips.
//!
//! `cargo bench -p egress-agent --bench tunnel`. Direct and tunnelled transfers take turns, and ratios of medians are
//! printed, because absolute numbers of a shared machine mean little. CPU time is the worker's alone (the tunnel) and the
//! whole process's (peers and tunnel).
#![expect(clippy::unwrap_used, reason = "a benchmark that fails has no result")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use egress_agent::proxy::{
    leg::LegSettings,
    limits::Limits,
    tunnel::{Counters, tunnel},
};
use nix::sys::resource::{UsageWho, getrusage};
use socket2::{Domain, Socket, Type};

const ROUNDS: usize = 5;

/// What a transfer moves.
#[derive(Clone, Copy)]
struct Size {
    bulk: u64,
    round_trips: u32,
}

/// What is measured.
struct Lane {
    name: &'static str,
    /// None: no tunnel.
    limits: Option<Limits>,
    size: Size,
}

/// One transfer.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    worker: f64,
    process: f64,
}

fn main() {
    // The test runner starts it too, to see that it works.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let size = if measures {
        Size {
            bulk: 1 << 30,
            round_trips: 5_000,
        }
    } else {
        Size {
            bulk: 1 << 22,
            round_trips: 10,
        }
    };
    let lanes = [
        Lane {
            name: "direct",
            limits: None,
            size,
        },
        Lane {
            name: "splice",
            limits: Some(Limits::default()),
            size,
        },
        Lane {
            name: "copy",
            limits: Some(Limits {
                splice_after: u64::MAX,
                ..Limits::default()
            }),
            size,
        },
    ];
    println!("medians of {ROUNDS} rounds; ratios to direct in brackets");
    println!(
        "{:<10}{:<10}{:>18}{:>22}{:>22}",
        "", "lane", "GB/s", "worker CPU s/GB", "process CPU s/GB"
    );
    table("download", &lanes, |lane| bulk(lane, false), true);
    table("upload", &lanes, |lane| bulk(lane, true), true);
    println!(
        "\n{:<10}{:<10}{:>18}{:>22}{:>22}",
        "", "lane", "round trips/s", "worker CPU us", "process CPU us"
    );
    table("1 byte", &lanes, ping_pong, false);
}

fn table(title: &str, lanes: &[Lane], measure: impl Fn(&Lane) -> Sample, is_bulk: bool) {
    let mut samples = vec![Vec::new(); lanes.len()];
    for _ in 0..ROUNDS {
        for (lane, samples) in lanes.iter().zip(&mut samples) {
            samples.push(measure(lane));
        }
    }
    let median = |samples: &[Sample], value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let direct = &samples[0];
    for (lane, samples) in lanes.iter().zip(&samples) {
        let wall = median(samples, |sample| sample.wall);
        let process = median(samples, |sample| sample.process);
        let worker = median(samples, |sample| sample.worker);
        let (unit, cpu) = if is_bulk {
            (lane.size.bulk as f64 / 1e9, 1e9 / lane.size.bulk as f64)
        } else {
            (
                f64::from(lane.size.round_trips),
                1e6 / f64::from(lane.size.round_trips),
            )
        };
        println!(
            "{title:<10}{:<10}{:>11.2} ({:>4.2}){:>22.3}{:>15.3} ({:>4.2})",
            lane.name,
            unit / wall,
            median(direct, |sample| sample.wall) / wall,
            worker * cpu,
            process * cpu,
            process / median(direct, |sample| sample.process),
        );
    }
}

fn bulk(lane: &Lane, upload: bool) -> Sample {
    through(lane, |client, origin| {
        let (mut from, mut to) = if upload {
            (client, origin)
        } else {
            (origin, client)
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                let block = vec![7; 256 * 1024];
                for _ in 0..lane.size.bulk / block.len() as u64 {
                    from.write_all(&block).unwrap();
                }
                from.shutdown(Shutdown::Write).unwrap();
            });
            let mut buffer = vec![0; 256 * 1024];
            let mut total = 0;
            while let Ok(read @ 1..) = to.read(&mut buffer) {
                total += read as u64;
            }
            assert_eq!(total, lane.size.bulk);
        });
    })
}

fn ping_pong(lane: &Lane) -> Sample {
    through(lane, |mut client, mut origin| {
        client.set_nodelay(true).unwrap();
        origin.set_nodelay(true).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut byte = [0];
                while let Ok(1) = origin.read(&mut byte) {
                    origin.write_all(&byte).unwrap();
                }
            });
            let mut byte = [0];
            for _ in 0..lane.size.round_trips {
                client.write_all(&byte).unwrap();
                client.read_exact(&mut byte).unwrap();
            }
            drop(client);
        });
    })
}

/// Runs `work` on a thread of its own at both ends of a connection, direct or through a tunnel on this thread.
fn through(lane: &Lane, work: impl FnOnce(TcpStream, TcpStream) + Send) -> Sample {
    let cpu = |who| {
        let usage = getrusage(who).unwrap();
        Duration::from_micros(
            u64::try_from(
                (usage.user_time().tv_sec() + usage.system_time().tv_sec()) * 1_000_000
                    + usage.user_time().tv_usec()
                    + usage.system_time().tv_usec(),
            )
            .unwrap(),
        )
    };
    let (worker, process, start) = (
        cpu(UsageWho::RUSAGE_THREAD),
        cpu(UsageWho::RUSAGE_SELF),
        Instant::now(),
    );
    let legs = LegSettings::default();
    match &lane.limits {
        None => {
            let (client, origin) = connected(|_| {}, |_| {});
            thread::scope(|scope| scope.spawn(|| work(client, origin)).join().unwrap());
        }
        Some(limits) => {
            let (client, client_leg) = connected(|listener| legs.prepare_listener(listener).unwrap(), |_| {});
            let (origin_leg, origin) = connected(|_| {}, |leg| legs.prepare_origin(leg).unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            thread::scope(|scope| {
                scope.spawn(|| work(client, origin));
                runtime.block_on(async {
                    let [client_leg, origin_leg] = [client_leg, origin_leg].map(|leg| {
                        leg.set_nonblocking(true).unwrap();
                        tokio::net::TcpStream::from_std(leg).unwrap()
                    });
                    tunnel(client_leg, origin_leg, Bytes::new(), limits, &Counters::default()).await
                });
            });
        }
    }
    Sample {
        wall: start.elapsed().as_secs_f64(),
        worker: (cpu(UsageWho::RUSAGE_THREAD) - worker).as_secs_f64(),
        process: (cpu(UsageWho::RUSAGE_SELF) - process).as_secs_f64(),
    }
}

fn connected(accepting: impl Fn(&TcpListener), dialling: impl Fn(&Socket)) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    accepting(&listener);
    let near = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    dialling(&near);
    near.connect(&listener.local_addr().unwrap().into()).unwrap();
    (near.into(), listener.accept().unwrap().0)
}
