//! Worlds: what a test needs around the agent, with no way out of it.
//!
//! ```text
//!   client namespace                          origins namespace
//!   192.0.2.2/24, 2001:db8:0:2::2   -- veth --   192.0.2.1
//!   routes to the documentation                  198.51.100.0/24, 203.0.113.0/24, 10.66.0.0/16, 2001:db8:1::/64:
//!   ranges and 10.66.0.0/16 alone                every address is the origins' own
//! ```
//!
//! The agent and the workload run in the client namespace, each world's in a cgroup of its own. Two DNS servers tell
//! the same zone: 198.51.100.53 is the one that the agent is told to ask, 198.51.100.54 is in the workload's
//! resolv.conf. So a test sees who asked what.

mod agents;
pub mod cgroup;
mod place;
pub mod traces;

pub use cgroup::Cgroup;
pub use place::Place;

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tempfile::TempDir;

use self::agents::Agents;
use crate::{
    agent::{Exec, Running, Start},
    certificates::Authority,
    clients::Client,
    dns::{Answer, DnsServer, Zone},
    origins::{Origin, RawConnection},
    patience::seconds,
};

/// The server that the agent is told to ask.
pub const AGENT_DNS: &str = "198.51.100.53:53";
/// The server in the workload's resolv.conf.
const WORKLOAD_DNS: &str = "198.51.100.54:53";
/// The first workload's own addresses.
pub const CLIENT_V4: &str = "192.0.2.2";
/// The first workload's own IPv6 address.
pub const CLIENT_V6: &str = "2001:db8:0:2::2";

/// The names that every world has, with their addresses. No test lets `evil.test` be reached.
const NAMES: [(&str, &[&str]); 5] = [
    ("good.test", &["198.51.100.10", "2001:db8:1::10"]),
    ("other.test", &["198.51.100.20", "2001:db8:1::20"]),
    ("evil.test", &["198.51.100.66", "2001:db8:1::66"]),
    ("v4.test", &["198.51.100.4"]),
    ("v6.test", &["2001:db8:1::6"]),
];

/// A world. Dropping it ends every process in it and removes everything.
#[derive(Debug)]
pub struct World {
    /// Dropped first: it ends the processes that use the rest.
    pub cgroup: Cgroup,
    /// Dropped next: it removes what killed agents have left in the kernel.
    pub(crate) agents: Agents,
    /// Where the first workload and its agent run.
    pub client: Place,
    /// Where the origins and the DNS servers run.
    pub origins: Place,
    /// What the DNS servers tell.
    pub zone: Zone,
    /// The server that the agent asks.
    pub agent_dns: DnsServer,
    /// The server that the workload asks.
    pub workload_dns: DnsServer,
    directory: TempDir,
    /// What was run and what came of it, for when the test fails.
    story: Mutex<String>,
}

impl World {
    /// One client, no origin yet.
    pub async fn new() -> Self {
        mount_bpffs();
        let origins = Place::new("origins");
        origins.ip(ORIGIN_ADDRESSES).await;
        // IPv4 lets a socket be bound to any address that a local route covers, IPv6 only with this.
        origins.sysctl("net/ipv6/ip_nonlocal_bind", "1").await;
        let client = Place::new("client");
        connect(&origins, &client, 2).await;
        let zone = Zone::default();
        for (name, addresses) in NAMES {
            zone.set(
                name,
                Answer::Addresses(addresses.iter().map(|text| ip(text)).collect()),
            );
        }
        let agent_dns = DnsServer::start(&origins, address(AGENT_DNS), zone.clone()).await;
        let workload_dns = DnsServer::start(&origins, address(WORKLOAD_DNS), zone.clone()).await;
        let directory = tempfile::Builder::new()
            .prefix("egress-tests-")
            .tempdir()
            .expect("a directory");
        // Workloads that run as other users look at the files of the test too.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let cgroup = Cgroup::new();
        let world = Self {
            agents: Agents::of(&cgroup),
            cgroup,
            client,
            origins,
            zone,
            agent_dns,
            workload_dns,
            directory,
            story: Mutex::default(),
        };
        world.file("ca.pem", &Authority::get().pem());
        world.name_service(&world.client).await;
        world
    }

    /// One more network namespace for a workload, with the address 198.18.N.2, N being `number` (3 to 9), and no way to
    /// the first one.
    pub async fn another_client(&self, name: &'static str, number: u8) -> Place {
        let place = Place::new(name);
        connect(&self.origins, &place, number).await;
        self.name_service(&place).await;
        place
    }

    /// A web server in TLS on port 443 of all addresses of `name`, HTTP/2 and HTTP/1.1 by ALPN.
    pub async fn https(&self, name: &str) -> Origin {
        let config = Authority::get().server(name, &["h2", "http/1.1"]);
        Origin::web(&self.origins, self.sockets(name, 443), name, Some(config)).await
    }

    /// A web server in clear on port 80 of all addresses of `name`, HTTP/1.1 and HTTP/2 with prior knowledge.
    pub async fn http(&self, name: &str) -> Origin {
        Origin::web(&self.origins, self.sockets(name, 80), name, None).await
    }

    /// A server that does `script`, on `port` of all addresses of `name`.
    pub async fn raw<S, F>(&self, name: &str, port: u16, script: S) -> Origin
    where
        S: Fn(RawConnection) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        Origin::raw(&self.origins, self.sockets(name, port), script).await
    }

    /// The addresses of `name` with `port`.
    #[must_use]
    pub fn sockets(&self, name: &str, port: u16) -> Vec<SocketAddr> {
        self.zone
            .addresses(name)
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()
    }

    /// The agent's `exec`, to be told more.
    #[must_use]
    pub fn exec(&self) -> Exec<'_> {
        Exec::new(self)
    }

    /// Runs `client` in the first workload's namespace without any agent.
    pub async fn directly(&self, client: &Client) -> crate::agent::Finished {
        Start::new(self, &self.client)
            .client(client)
            .start()
            .finish()
            .await
    }

    /// Starts `client` in `place` and in the cgroup `cgroup` without any agent.
    #[must_use]
    pub fn start_in(&self, place: &Place, cgroup: &Path, client: &Client) -> Running<'_> {
        Start::new(self, place).cgroup(cgroup).client(client).start()
    }

    /// The path of a file that does not exist yet, in a directory that goes with the world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file in the world's directory.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a directory");
        }
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Waits until the file `path` contains `text`: for programs that have no pipe to us.
    ///
    /// # Panics
    /// It does not soon.
    pub async fn appears(&self, path: &Path, text: &str) {
        let waited = tokio::time::timeout(seconds(20), async {
            while !fs::read_to_string(path).is_ok_and(|content| content.contains(text)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{} never contained {text:?}: {:?}",
            path.display(),
            fs::read_to_string(path)
        );
    }

    /// Adds to what is printed when the test fails.
    pub fn tell(&self, what: &str) {
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        story.push_str(what);
        story.push('\n');
    }

    /// Gives `place` a name service of its own: the host's must not be asked, nor its hosts file matter.
    async fn name_service(&self, place: &Place) {
        let server = self.workload_dns.address.ip();
        let resolv = self.file(
            "etc/resolv.conf",
            &format!("nameserver {server}\noptions timeout:2 attempts:2\n"),
        );
        // The one name that no policy allows: who is to be refused at the connect has to know its addresses.
        let hosts = self.file(
            "etc/hosts",
            "127.0.0.1 localhost\n::1 localhost\n198.51.100.66 evil.test\n2001:db8:1::66 evil.test\n",
        );
        let switch = self.file("etc/nsswitch.conf", "hosts: files dns\n");
        place.cover(&resolv, "/etc/resolv.conf").await;
        place.cover(&hosts, "/etc/hosts").await;
        place.cover(&switch, "/etc/nsswitch.conf").await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = String::from("\n--- the world of the failed test ---\n");
        // Writing to a String cannot fail.
        let _infallible = writeln!(report, "{story}agent's DNS: {:?}", self.agent_dns.questions());
        eprintln!("{report}--- set EGRESS_TESTS_HOLD=1 to keep it, and to be told how to join it ---");
        if std::env::var_os("EGRESS_TESTS_HOLD").is_some() {
            eprintln!("join the client:  {}", self.client.join_line());
            eprintln!("join the origins: {}", self.origins.join_line());
            eprintln!(
                "files: {}  cgroup: {}",
                self.directory.path().display(),
                self.cgroup.path().display()
            );
            eprintln!("end it with Ctrl-C");
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
    }
}

/// Every address that an origin can have. Whole networks are local by `ip route add local`: a test may use any address.
const ORIGIN_ADDRESSES: &str = "
    route add local 198.51.100.0/24 dev lo
    route add local 203.0.113.0/24 dev lo
    route add local 10.66.0.0/16 dev lo
    -6 route add local 2001:db8:1::/64 dev lo
";

/// A veth pair between the origins and a client, with routes to the origins' networks and nothing else.
async fn connect(origins: &Place, client: &Place, number: u8) {
    let peer = client.net();
    // The others' networks are of the benchmark range (RFC 2544): no test has an origin there.
    let (near, far) = match number {
        2 => ("192.0.2.1".to_owned(), CLIENT_V4.to_owned()),
        _ => (format!("198.18.{number}.1"), format!("198.18.{number}.2")),
    };
    origins
        .ip(&format!(
            "link add to-client{number} type veth peer name eth0 netns {}
             addr add {near}/24 dev to-client{number}
             addr add 2001:db8:0:{number}::1/64 dev to-client{number} nodad
             link set to-client{number} up",
            peer.display()
        ))
        .await;
    client
        .ip(&format!(
            "addr add {far}/24 dev eth0
             addr add 2001:db8:0:{number}::2/64 dev eth0 nodad
             link set eth0 up
             route add 198.51.100.0/24 via {near}
             route add 203.0.113.0/24 via {near}
             route add 10.66.0.0/16 via {near}
             -6 route add 2001:db8:1::/64 via 2001:db8:0:{number}::1"
        ))
        .await;
}

/// The host's BPF file system. A world's mount namespace is a copy: what is mounted after it was made, and in it, would
/// be gone with it. Debian's init mounts this one at boot; a container or a minimal machine may not have.
fn mount_bpffs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        if !mounts.contains(" /sys/fs/bpf ") {
            use nix::mount::{MsFlags, mount};
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), flags, Some("mode=0700"))
                .expect("mount /sys/fs/bpf, as root");
        }
    });
}

/// Parses an address that a test wrote down.
///
/// # Panics
/// It is none.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// Parses an address with a port that a test wrote down.
///
/// # Panics
/// It is none.
#[must_use]
pub fn address(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no address with a port"))
}
