//! What a test needs of the machine. A tool that is missing is a failure of the test that needs it: the set-up installs
//! it. What a kernel may rightly lack makes the test *ignored*, and says so; `required.txt` names those tests that
//! must have run nevertheless where CI runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

/// What a kernel or a machine may rightly lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Need {
    /// Multipath TCP (Linux 5.6, CONFIG_MPTCP) and not switched off.
    Mptcp,
    /// io_uring, not switched off by sysctl.
    IoUring,
    /// TCP Fast Open for clients.
    FastOpen,
    /// IPv6 in the kernel at all.
    Ipv6,
    /// SCTP (CONFIG_IP_SCTP, as a rule a module).
    Sctp,
    /// DCCP (CONFIG_IP_DCCP; removed in Linux 6.16).
    Dccp,
    /// SMC (CONFIG_SMC).
    Smc,
    /// RxRPC (CONFIG_AF_RXRPC).
    Rxrpc,
    /// A Kubernetes whose nodes are this machine's: started by `cargo xtask cluster`, and not named by KUBECONFIG.
    Nodes,
    /// With it, a later Kubernetes' server of custom resources, which knows rules in CEL.
    Rules,
    /// UDP-Lite (removed in Linux 7.1).
    UdpLite,
    /// TUN devices (CONFIG_TUN), and /dev/net/tun.
    Tun,
    /// IP-in-IP tunnels (CONFIG_NET_IPIP).
    IpTunnel,
    /// A machine whose clock may be set: a guest of `cargo xtask vm`.
    OwnClock,
    /// More time than an ordinary run has: `cargo xtask soak`.
    Time,
    /// Packets that are written anew on their way (CONFIG_NET_ACT_PEDIT, CONFIG_NET_ACT_CSUM).
    PacketEditing,
}

impl Need {
    /// What is missing, in words; `None` if the machine has it.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        let (has, what) = match self {
            Self::Mptcp => (sysctl("net/mptcp/enabled") == Some(1), "the kernel has no MPTCP"),
            Self::IoUring => {
                // The switch is there since Linux 6.6; before that, a symbol tells whether the kernel has it.
                let on = sysctl("kernel/io_uring_disabled")
                    .map_or_else(|| has_symbol("io_wq_create"), |value| value != 2);
                (on, "the kernel has no io_uring, or it is switched off")
            }
            Self::FastOpen => {
                let on = sysctl("net/ipv4/tcp_fastopen").is_some_and(|value| value & 1 == 1);
                (on, "TCP Fast Open is switched off for clients")
            }
            Self::Sctp => (
                has_socket(Domain::IPV4, Type::STREAM, 132),
                "the kernel has no SCTP",
            ),
            Self::Dccp => (
                has_socket(Domain::IPV4, Type::from(6), 33),
                "the kernel has no DCCP",
            ),
            Self::Smc => (
                has_socket(Domain::from(43), Type::STREAM, 0),
                "the kernel has no SMC",
            ),
            Self::Rxrpc => (
                has_socket(Domain::from(33), Type::DGRAM, 2),
                "the kernel has no RxRPC",
            ),
            Self::Nodes => (
                crate::cluster::has_nodes(),
                "the nodes of the cluster cannot be entered",
            ),
            Self::Rules => (
                crate::cluster::has_nodes() && crate::cluster::has_rules(),
                "the cluster's programs include no server of rules in CEL (apiextensions-apiserver)",
            ),
            Self::UdpLite => (
                has_socket(Domain::IPV4, Type::DGRAM, 136),
                "the kernel has no UDP-Lite",
            ),
            Self::Tun => (
                fs::File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/net/tun")
                    .is_ok(),
                "the kernel has no TUN devices",
            ),
            Self::OwnClock => (
                std::env::var_os("EGRESS_TESTS_GUEST").is_some(),
                "the clock of this machine is not the tests' to set; `cargo xtask vm` does it",
            ),
            Self::Time => (is_soak(), "it takes long: `cargo xtask soak`"),
            Self::IpTunnel => (has_ip_tunnels(), "the kernel has no IP-in-IP tunnels"),
            Self::PacketEditing => (
                ["tcf_pedit_act", "tcf_csum_act"]
                    .iter()
                    .all(|name| has_symbol(name)),
                "the kernel cannot edit packets",
            ),
            Self::Ipv6 => (Path::new("/proc/sys/net/ipv6").exists(), "the kernel has no IPv6"),
        };
        (!has).then_some(what)
    }
}

/// Whether the running kernel makes such sockets. Where the protocol is a module, asking for one loads it.
fn has_socket(family: Domain, kind: Type, protocol: i32) -> bool {
    Socket::new(family, kind, Some(Protocol::from(protocol))).is_ok()
}

/// Whether this is a run of the tests that take long.
#[must_use]
pub fn is_soak() -> bool {
    std::env::var_os("EGRESS_TESTS_SOAK").is_some()
}

/// Whether such a device can be made, in a network namespace that goes with the attempt.
fn has_ip_tunnels() -> bool {
    let made = Command::new(tool("unshare"))
        .args([
            "--net",
            "ip",
            "link",
            "add",
            "probe",
            "type",
            "ipip",
            "remote",
            "192.0.2.1",
        ])
        .stderr(Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
}

/// Whether the running kernel has a function of that name.
fn has_symbol(name: &str) -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some(name))
}

fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(Path::new("/proc/sys").join(name))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Where the program `name` is.
///
/// # Panics
/// It is nowhere: the message says how to get it.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    // Version managers put slow shell scripts in front of the system's programs: look there last.
    let path = std::env::var("PATH").unwrap_or_default();
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .into_iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `cargo xtask setup`"))
}
