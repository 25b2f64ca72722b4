//! The writer's thread: takes what waits in the queue, renders it for each output, writes it.

use std::{
    mem, thread,
    time::{Duration, Instant},
};

use super::{facts::Facts, queue::Queue, sink::Sink};

/// Between two batches. Long enough that a busy log does one write for many records, short enough that nobody who
/// watches the log notices.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two tries at an output that does not take what it is given.
const RETRY: Duration = Duration::from_millis(200);

pub(super) fn run(queue: &Queue, mut sinks: Vec<Sink>) {
    // Records that are rendered, and not yet out of every sink.
    let mut unsettled = 0;
    loop {
        let is_behind = sinks.iter().any(Sink::is_behind);
        let wake = if is_behind {
            Some(Instant::now() + RETRY)
        } else {
            sinks.iter().filter_map(Sink::speaks_at).min()
        };
        let work = queue.next(wake);
        unsettled += work.records.len() as u64;
        for sink in &mut sinks {
            sink.write();
        }
        for record in &work.records {
            let facts = Facts::of(record);
            for sink in sinks.iter_mut().filter(|sink| sink.takes(record)) {
                sink.append(&facts);
            }
        }
        for sink in &mut sinks {
            sink.lose(work.dropped);
            sink.write();
            // What was recorded before the order to reopen belongs to the old file.
            if work.reopen {
                sink.reopen();
            }
            sink.speak();
        }
        let is_behind = sinks.iter().any(Sink::is_behind);
        if !is_behind {
            queue.settle(mem::take(&mut unsettled));
        }
        match work.closing {
            None => queue.pause(PAUSE),
            Some(deadline) if is_behind && Instant::now() < deadline => thread::sleep(RETRY / 10),
            Some(_) => {
                let unwritten = sinks.iter_mut().map(Sink::give_up).max().unwrap_or(0);
                return queue.end(unwritten);
            }
        }
    }
}
