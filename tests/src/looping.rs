//! A client that connects again and again, and tells what came of each attempt.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;

use crate::{
    agent::Running,
    clients::python,
    daemon::Daemon,
    lab::{Place, World},
};

/// One request a connection, as fast as they come, until the file that it is told appears.
const PROGRAM: &str = r#"
import collections, errno, json, os, socket, sys, time
address, port, name, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
request = f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
outcomes, slowest, attempts = collections.Counter(), 0.0, 0
while not os.path.exists(stop):
    begun = time.monotonic()
    try:
        with socket.create_connection((address, port), timeout=20) as connection:
            connection.sendall(request)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        outcome = answer[9:12].decode() or "nothing"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, type(error).__name__)
    outcomes[outcome] += 1
    slowest = max(slowest, time.monotonic() - begun)
    attempts += 1
    if attempts % 20 == 0:
        print(f"attempt {attempts}", flush=True)
    time.sleep(0.001)
print(json.dumps({"outcomes": outcomes, "slowest": slowest}))
"#;

/// What came of all attempts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Attempts {
    /// How often each status, or error of the system call, was seen.
    pub outcomes: BTreeMap<String, u64>,
    /// Seconds that the slowest took.
    pub slowest: f64,
}

/// The client at work.
#[derive(Debug)]
pub struct Looping<'w> {
    world: &'w World,
    running: Running<'w>,
    stop: String,
}

impl<'w> Looping<'w> {
    /// Starts it as the workload `workload` in `place`, and waits until it has made twenty attempts.
    pub async fn start(
        world: &'w World,
        daemon: &Daemon<'w>,
        workload: &str,
        place: &Place,
        origin: SocketAddr,
        name: &str,
    ) -> Self {
        let stop = format!("enough-of-{name}");
        let client = python(world, &format!("looping-{name}"), PROGRAM)
            .arg(origin.ip().to_string())
            .arg(origin.port().to_string())
            .arg(name)
            .arg(world.path(&stop));
        let running = world.start_in(place, &daemon.tree.join(workload), &client);
        let looping = Self { world, running, stop };
        looping.says(20).await;
        looping
    }

    /// Waits until so many attempts more have been made than now; in twenties.
    pub async fn goes_on(&self, attempts: usize) {
        let made = 20 * self.running.stdout().lines().count();
        self.says((made + attempts).div_ceil(20) * 20).await;
    }

    /// Ends it.
    ///
    /// # Panics
    /// It does not tell what it saw.
    pub async fn end(self) -> Attempts {
        self.world.file(&self.stop, "");
        let finished = self.running.finish().await;
        finished.succeeded();
        let text = finished.text();
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    async fn says(&self, attempts: usize) {
        self.running.says(&format!("attempt {attempts}\n")).await;
    }
}

impl Attempts {
    /// Asserts that nothing was seen but these outcomes.
    ///
    /// # Panics
    /// Another one was.
    #[track_caller]
    pub fn were_only(&self, allowed: &[&str]) {
        let other = self
            .outcomes
            .keys()
            .find(|outcome| !allowed.contains(&outcome.as_str()));
        assert_eq!(other, None, "{self:?}");
    }
}
