//! What runs under `exec` cannot leave it: E29 of the design.

use egress_tests::{
    agent::Finished,
    clients::{Client, python, shell},
    lab::{World, cgroup::mount_point},
    promises,
};

promises![
    root_without_sudo_loses_what_could_undo_the_enforcement,
    a_command_under_sudo_runs_as_the_user_who_called_it,
    a_command_runs_as_the_user_who_is_told,
    a_set_uid_program_brings_no_privilege_back,
    the_command_cannot_leave_its_cgroup,
    the_command_cannot_remove_pins,
    the_command_cannot_detach_programs_or_change_maps,
    the_command_cannot_trace_the_agent,
    the_command_cannot_enter_another_network_namespace,
    the_command_can_make_no_user_namespace_to_get_out,
    kept_privileges_are_kept,
];

/// Capabilities by number (linux/capability.h): NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_ADMIN, BPF.
const LOST: [(u8, &str); 5] = [
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (39, "BPF"),
];

fn field(output: &Finished, name: &str) -> String {
    let text = output.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_default();
    line.trim().to_owned()
}

#[track_caller]
fn has_lost_them(output: &Finished) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = u64::from_str_radix(&field(output, set), 16).unwrap_or(u64::MAX);
        for (number, name) in LOST {
            assert_eq!(bits >> number & 1, 0, "{name} is in {set}: {}", output.story());
        }
    }
    assert_eq!(field(output, "NoNewPrivs"), "1", "{}", output.story());
}

fn status() -> Client {
    shell("cat /proc/self/status; id -G | sed 's/^/groups: /'")
}

async fn root_without_sudo_loses_what_could_undo_the_enforcement() {
    let world = World::new().await;
    let output = world.exec().run(&status()).await;
    has_lost_them(output.succeeded());
    assert_eq!(field(&output, "Uid"), "0\t0\t0\t0");
}

async fn a_command_under_sudo_runs_as_the_user_who_called_it() {
    let world = World::new().await;
    let output = world
        .exec()
        .env("SUDO_UID", "65534")
        .env("SUDO_GID", "65534")
        .run(&status())
        .await;
    has_lost_them(output.succeeded());
    assert_eq!(field(&output, "Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&output, "Gid"), "65534\t65534\t65534\t65534");
    assert!(
        !field(&output, "groups").split(' ').any(|group| group == "0"),
        "{}",
        output.story()
    );
}

async fn a_command_runs_as_the_user_who_is_told() {
    let world = World::new().await;
    let output = world.exec().arg("--user").arg("nobody").run(&status()).await;
    has_lost_them(output.succeeded());
    assert_eq!(field(&output, "Uid"), "65534\t65534\t65534\t65534");

    let output = world
        .exec()
        .arg("--user")
        .arg("no-such-user")
        .run(&shell("echo ran"))
        .await;
    output.failed().printed("");
    assert!(output.stderr.contains("no-such-user"), "{}", output.story());
}

async fn a_set_uid_program_brings_no_privilege_back() {
    let world = World::new().await;
    let copy = world.path("id");
    std::fs::copy("/usr/bin/id", &copy).expect("a copy");
    std::os::unix::fs::chown(&copy, Some(0), Some(0)).expect("chown");
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("chmod");
    let client = Client {
        program: copy,
        arguments: vec!["-u".into()],
        environment: Vec::new(),
    };
    world
        .exec()
        .arg("--user")
        .arg("nobody")
        .run(&client)
        .await
        .succeeded()
        .printed("65534\n");
}

async fn the_command_cannot_leave_its_cgroup() {
    let world = World::new().await;
    let root = mount_point().join("cgroup.procs");
    let above = world.cgroup.path().join("cgroup.procs");
    let line = format!(
        "cat /proc/self/cgroup | grep ^0:; for file in {} {}; do echo $$ > $file; done; \
         mkdir {root_dir}/egress-escape-$$ && echo made; cat /proc/self/cgroup | grep ^0:",
        root.display(),
        above.display(),
        root_dir = mount_point().display()
    );
    let output = world.exec().run(&shell(&line)).await;
    let text = output.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{}", output.story());
    assert_eq!(lines[0], lines[1], "{}", output.story());
    assert!(lines[0].contains("egress"), "{}", output.story());
}

async fn the_command_cannot_remove_pins() {
    let world = World::new().await;
    let line =
        "rm -rf /sys/fs/bpf/* 2>/dev/null; find /sys/fs/bpf -type f -delete; umount /sys/fs/bpf; echo tried";
    let client = shell(&format!("{line}; {}", refused_request()));
    let output = world.exec().run(&client).await;
    assert!(
        output.text().contains("tried\n") && output.text().contains("403"),
        "{}",
        output.story()
    );
    assert!(!world.path("none").exists());
}

/// A request that an enforced command gets a 403 for.
fn refused_request() -> &'static str {
    "curl --silent --output /dev/null --max-time 10 --write-out '%{http_code}' --resolve evil.test:80:198.51.100.66 \
     http://evil.test/"
}

async fn the_command_cannot_detach_programs_or_change_maps() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let line = format!(
        "bpftool link show && echo listed; \
         bpftool cgroup detach {} connect4 id 1; bpftool map show && echo listed; {}",
        world.cgroup.path().display(),
        refused_request()
    );
    let output = world.exec().run(&shell(&line)).await;
    assert_eq!(output.text().trim(), "403", "{}", output.story());
    origin.was_never_reached().await;
}

async fn the_command_cannot_trace_the_agent() {
    let world = World::new().await;
    let program = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
# PTRACE_ATTACH
result = libc.ptrace(16, parent, 0, 0)
print("ptrace", result, errno.errorcode.get(ctypes.get_errno()))
try:
    os.listdir(f"/proc/{parent}/fd"); os.open(f"/proc/{parent}/mem", os.O_RDWR); print("opened")
except OSError as error:
    print("mem", errno.errorcode[error.errno])
# pidfd_getfd would take the agent's maps.
fd = os.pidfd_open(parent)
print("getfd", max([libc.syscall(438, fd, number, 0) for number in range(64)]))
"#;
    let output = world.exec().run(&python(&world, "trace", program)).await;
    output
        .succeeded()
        .printed("ptrace -1 EPERM\nmem EACCES\ngetfd -1\n");
}

async fn the_command_cannot_enter_another_network_namespace() {
    let world = World::new().await;
    let client = Client::new("nsenter")
        .arg(format!("--net={}", world.origins.net().display()))
        .arg("/bin/true");
    world.exec().run(&client).await.failed();
    let output = world
        .exec()
        .run(&Client::new("unshare").words("--net /bin/true"))
        .await;
    output.failed();
}

/// In a user namespace of one's own one has every capability again, over what belongs to it: new network namespaces, but
/// nothing that was there before.
async fn the_command_can_make_no_user_namespace_to_get_out() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let above = world.cgroup.path().join("cgroup.procs");
    let inner = format!(
        "echo $$ > {}; mount -t cgroup2 none /mnt && echo $$ > /mnt/cgroup.procs; mount -o remount,rw {mount}; \
         umount -l {mount}; rm -rf /sys/fs/bpf/egress; {}",
        above.display(),
        refused_request(),
        mount = mount_point().display()
    );
    let client = Client::new("unshare")
        .words("--user --map-root-user --mount --cgroup /bin/sh -c")
        .arg(inner);
    let output = world.exec().run(&client).await;
    // Either there are no such namespaces on this machine, or they lead nowhere.
    assert!(
        output.stderr.contains("unshare") || output.text() == "403",
        "{}",
        output.story()
    );
    origin.was_never_reached().await;
}

async fn kept_privileges_are_kept() {
    let world = World::new().await;
    let output = world.exec().arg("--keep-privileges").run(&status()).await;
    let bits = u64::from_str_radix(&field(output.succeeded(), "CapEff"), 16).unwrap_or(0);
    assert_eq!(bits >> 21 & 1, 1, "SYS_ADMIN: {}", output.story());
    assert_eq!(field(&output, "NoNewPrivs"), "0");
}
