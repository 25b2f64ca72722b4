//! A real squid in explicit mode: the oracle of what its log formats say.
//!
//! It sends each log line as a datagram, so that a test waits for the line itself and not for a file to grow.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use crate::{
    agent::{Running, Start},
    clients::Client,
    lab::{AGENT_DNS, CLIENT_V4, World, traces::listeners},
};

/// Where squid listens: on the workload's own address, so that it logs the same client as the agent does.
const PORT: u16 = 3128;

/// A running squid.
#[derive(Debug)]
pub struct Squid<'w> {
    running: Running<'w>,
    logs: Vec<(&'static str, UdpSocket)>,
}

/// A log that squid is told to write.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// What the test calls it.
    pub name: &'static str,
    /// A `logformat` definition, or none for squid's own format of that name.
    pub definition: Option<&'static str>,
}

impl Log {
    /// squid's own format of this name.
    #[must_use]
    pub const fn built_in(name: &'static str) -> Self {
        Self {
            name,
            definition: None,
        }
    }

    /// A format of the test's own.
    #[must_use]
    pub const fn defined(name: &'static str, definition: &'static str) -> Self {
        Self {
            name,
            definition: Some(definition),
        }
    }
}

impl<'w> Squid<'w> {
    /// Starts squid in the world's client namespace, and waits until it listens. It refuses `evil.test` and allows
    /// everything else.
    ///
    /// # Panics
    /// squid is not installed, or does not start.
    pub async fn start(world: &'w World, logs: &[Log]) -> Self {
        let access = "acl denied dstdomain evil.test\nhttp_access deny denied\nhttp_access allow all\n";
        Self::start_with(world, logs, access).await
    }

    /// The same with these acls and access lists.
    ///
    /// # Panics
    /// squid is not installed, or does not start.
    pub async fn start_with(world: &'w World, logs: &[Log], access: &str) -> Self {
        let mut sockets = Vec::new();
        let mut lines = String::new();
        for log in logs {
            let socket = world
                .client
                .run(async { UdpSocket::bind("127.0.0.1:0").await.expect("a UDP port") })
                .await;
            let address = socket.local_addr().expect("an address");
            if let Some(definition) = log.definition {
                lines += &format!("logformat own_{} {definition}\n", log.name);
            }
            let own = if log.definition.is_some() { "own_" } else { "" };
            lines += &format!(
                "access_log udp://{address} buffer-size=1bytes logformat={own}{}\n",
                log.name
            );
            sockets.push((log.name, socket));
        }
        let directory = world.path("squid");
        fs::create_dir_all(&directory).expect("a directory");
        // squid drops its privileges.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("chmod");
        let nameserver = AGENT_DNS.trim_end_matches(":53");
        let config = world.file(
            "squid/squid.conf",
            &format!(
                "http_port {CLIENT_V4}:{PORT}\n\
                 visible_hostname oracle.test\n\
                 pid_filename none\n\
                 cache_log /dev/null\n\
                 coredump_dir {directory}\n\
                 cache deny all\n\
                 cache_mem 0\n\
                 netdb_filename none\n\
                 pinger_enable off\n\
                 hosts_file none\n\
                 dns_nameservers {nameserver}\n\
                 buffered_logs off\n\
                 strip_query_terms off\n\
                 shutdown_lifetime 0 seconds\n\
                 http_upgrade_request_protocols websocket allow all\n\
                 {lines}\
                 {access}",
                directory = directory.display()
            ),
        );
        let client = Client::new("squid").words("-N -d 1 -f").arg(config);
        let running = Start::new(world, &world.client).client(&client).start();
        running.complains("Accepting HTTP Socket connections").await;
        // It says so before it calls listen(2); and a connection of ours, to try it, would be one more line in its log.
        let listens = timeout(Duration::from_secs(20), async {
            while listeners(&world.client).await.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(
            listens.await.is_ok(),
            "squid does not listen: {}",
            running.stderr()
        );
        Self {
            running,
            logs: sockets,
        }
    }

    /// Where clients connect.
    ///
    /// # Panics
    /// Never: the address is a constant.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(CLIENT_V4.parse().expect("an address"), PORT)
    }

    /// The next line of the log `name`, without its line break.
    ///
    /// # Panics
    /// squid writes none within 30 s.
    pub async fn line(&self, name: &str) -> Vec<u8> {
        let (_, socket) = self
            .logs
            .iter()
            .find(|(known, _)| *known == name)
            .expect("a log that squid was told to write");
        let mut line = vec![0; 64 * 1024];
        let received = timeout(Duration::from_secs(30), socket.recv(&mut line)).await;
        let length = received
            .unwrap_or_else(|_| panic!("squid logs nothing: {}", self.running.stderr()))
            .expect("a datagram");
        line.truncate(length);
        assert_eq!(line.pop(), Some(b'\n'), "a datagram is a line");
        line
    }

    /// Ends squid.
    pub async fn stop(self) {
        self.running.signal(Signal::SIGTERM);
        self.running.finish().await.succeeded();
    }
}
