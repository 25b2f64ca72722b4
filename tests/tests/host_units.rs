//! What deploy/host puts on a node, so that its pods are held at boot: on a machine of the test's own, whose /etc, /run and
//! /usr/local/sbin are empty, and whose init says what it was told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use egress_tests::{
    clients::{Client, shell},
    daemon::Daemon,
    lab::{World, cgroup::mount_point},
    promises,
    require::tool,
};

promises![
    install_puts_the_unit_on_a_node_and_takes_it_away,
    install_says_what_is_missing,
    the_units_are_well_formed,
];

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/host")
}

/// A shell that runs `line` on such a machine, with `init` (`systemd`, `openrc` or none) and, if there is one, an agent's
/// notes. `$calls` is where its init writes what it is told.
fn machine(world: &World, init: &str, traces: Option<&Path>, line: &str) -> Client {
    let calls = world.path(&format!("calls-{init}"));
    let tools = world.path(&format!("tools-{init}"));
    let has = match init {
        "systemd" => "mkdir -p /run/systemd/system\nfake systemctl",
        "openrc" => "fake rc-update",
        _ => "",
    };
    // Where every user can read it: a checkout may be root's alone.
    for file in [
        "install.sh",
        "make-cgroup",
        "hold.yaml",
        "egress-hold.service",
        "egress-hold.openrc",
    ] {
        let text = fs::read_to_string(host().join(file)).expect("deploy/host");
        world.file(&format!("host/{file}"), &text);
    }
    let notes = traces.map_or_else(String::new, |traces| {
        format!(
            "mkdir -p /run/egress-agent/run; cat {} > /run/egress-agent/run/traces.json",
            traces.display()
        )
    });
    let script = format!(
        "set -eu
         calls={calls}; tools={tools}; install='sh {install}'
         : > $calls; rm -rf $tools; mkdir $tools
         fake() {{ printf '#!/bin/sh\\necho \"%s $*\" >> %s\\n' $1 $calls > $tools/$1; chmod 755 $tools/$1; }}
         for directory in /etc /run /usr/local/sbin; do mount -t tmpfs tmpfs $directory; done
         mkdir -p /etc/init.d /etc/systemd/system
         PATH=$tools:/usr/sbin:/usr/bin:/sbin:/bin
         {has}
         {notes}
         {line}",
        calls = calls.display(),
        tools = tools.display(),
        install = world.path("host/install.sh").display(),
    );
    let file = world.file(&format!("machine-{init}.sh"), &script);
    Client::new("unshare").words("--mount sh").arg(file)
}

const STORY: &str = "
    $install; $install
    cat /etc/egress-agent/hold.yaml
    ls -l /usr/local/sbin/egress-agent /etc/egress-agent/make-cgroup | cut -c 1-10
    find /etc/init.d /etc/systemd -type f
    cmp /usr/local/sbin/egress-agent /proc/$agent/exe
    /etc/egress-agent/make-cgroup
    sed -i 's/^internal: .*/internal: [10.1.0.0\\/16]/' /etc/egress-agent/hold.yaml
    $install; grep internal: /etc/egress-agent/hold.yaml
    echo told:; cat $calls; : > $calls
    $install --remove; $install --remove
    echo left:; find /etc /usr/local/sbin -type f
    echo told:; cat $calls";

async fn install_puts_the_unit_on_a_node_and_takes_it_away() {
    let world = World::new().await;
    let daemon = Daemon::start(&world, "").await;
    // What is below /run is hidden from the machine.
    let traces = world.file(
        "traces.json",
        &fs::read_to_string(daemon.state().join("traces.json")).expect("the agent's notes"),
    );
    let below = daemon.tree.strip_prefix(mount_point()).expect("below the mount");
    let story = format!("agent={}\n{STORY}", daemon.running.pid());
    for (init, unit, enabled, disabled) in [
        (
            "systemd",
            "/etc/systemd/system/egress-hold.service",
            "systemctl daemon-reload\nsystemctl enable egress-hold.service\n",
            "systemctl disable egress-hold.service\nsystemctl daemon-reload\nsystemctl daemon-reload\n",
        ),
        (
            "openrc",
            "/etc/init.d/egress-hold",
            "rc-update add egress-hold default\n",
            "rc-update del egress-hold default\n",
        ),
    ] {
        let done = world
            .directly(&machine(&world, init, Some(&traces), &story))
            .await;

        let said = "installed; check `internal` in /etc/egress-agent/hold.yaml\n";
        let config = fs::read_to_string(host().join("hold.yaml")).expect("hold.yaml");
        let config = config.replace("cgroup: /kubepods\n", &format!("cgroup: /{}\n", below.display()));
        assert_eq!(
            done.succeeded().text(),
            format!(
                "{said}{said}{config}-rwxr-xr-x\n-rwxr-xr-x\n{unit}\n\
                 {said}internal: [10.1.0.0/16]\ntold:\n{}left:\ntold:\n{disabled}",
                enabled.repeat(3)
            ),
            "{init}"
        );
    }
    daemon.stop().await.succeeded();
}

async fn install_says_what_is_missing() {
    let world = World::new().await;
    let gone = "{\n  \"pid\": 4194304,\n  \"cgroup\": \"/sys/fs/cgroup/kubepods\"\n}";
    let gone = world.file("gone.json", gone);
    for (init, traces, line, told) in [
        ("systemd", None, "$install", "no agent runs on this node"),
        (
            "systemd",
            Some(&*gone),
            "$install",
            "does not run (process 4194304)",
        ),
        ("none", Some(&*gone), "$install", "neither systemd nor OpenRC"),
        ("openrc", None, "$install --purge", "unknown argument --purge"),
        (
            "openrc",
            None,
            "setpriv --reuid=65534 --regid=65534 --clear-groups $install",
            "must be run as root",
        ),
    ] {
        let line = format!("{line} && exit 0\nfind /etc /usr/local/sbin -type f; exit 1");
        let done = world.directly(&machine(&world, init, traces, &line)).await;

        assert_eq!((done.code(), done.text().as_str()), (1, ""), "{}", done.story());
        let sentence = done.stderr.trim_end();
        assert!(
            sentence.starts_with("install.sh: ") && sentence.contains(told) && sentence.lines().count() == 1,
            "{told}: {sentence}"
        );
    }
}

async fn the_units_are_well_formed() {
    let world = World::new().await;
    for script in ["install.sh", "make-cgroup", "egress-hold.openrc"] {
        let checked = world
            .directly(&shell(&format!("sh -n {}", host().join(script).display())))
            .await;
        checked.succeeded();
    }
    // Where systemd is, it says itself; what the unit runs has to be there.
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        return;
    }
    let unit = fs::read_to_string(host().join("egress-hold.service")).expect("the unit");
    let unit = unit
        .replace("/etc/egress-agent/make-cgroup", "/bin/true")
        .replace("/usr/local/sbin/egress-agent", "/bin/true");
    let file = world.file("egress-hold.service", &unit);
    let verified = Command::new(tool("systemd-analyze"))
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(file)
        .output()
        .expect("systemd-analyze runs");
    assert!(
        verified.status.success() && verified.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
}
