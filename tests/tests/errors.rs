//! What cannot work is said in one clear sentence, with an exit status other than 0, and nothing has been changed.

use egress_tests::{
    agent::{Finished, program, verb},
    clients::{Client, shell},
    lab::{World, traces::listeners},
    promises,
};

promises![
    an_ordinary_user_is_told_to_be_root,
    a_root_without_its_privileges_is_told_which,
    a_machine_without_cgroup2_is_told,
    a_kernel_that_is_too_old_is_told,
    a_policy_file_that_is_wrong_is_told_with_its_place,
    a_policy_file_that_is_missing_is_told,
    a_pattern_that_is_wrong_is_told,
    unknown_options_are_told,
    exec_without_a_command_is_told,
    a_log_that_cannot_be_opened_is_told_before_anything_runs,
    check_and_explain_need_no_privileges,
    explain_says_what_exec_does,
];

/// Asserts a failure in one sentence that contains one of `words`, and that the command did not run.
#[track_caller]
fn is_told(world: &World, output: &Finished, words: &[&str]) {
    output.failed();
    assert_eq!(output.text(), "", "{}", output.story());
    assert!(
        output.stderr.lines().filter(|line| !line.is_empty()).count() <= 2,
        "one sentence: {}",
        output.story()
    );
    let lower = output.stderr.to_lowercase();
    assert!(
        words.iter().any(|word| lower.contains(word)),
        "none of {words:?}: {}",
        output.story()
    );
    assert!(!lower.contains("panicked"), "{}", output.story());
    assert!(world.cgroup.children().is_empty());
}

async fn an_ordinary_user_is_told_to_be_root() {
    let world = World::new().await;
    // The program must be reachable for that user: it is run through a descriptor that root has opened.
    let client = Client::new("setpriv")
        .words("--reuid=65534 --regid=65534 --clear-groups")
        .arg(readable_copy(&world))
        .words("exec --allow good.test -- /bin/echo ran");
    let output = world.directly(&client).await;
    is_told(&world, &output, &["root", "sudo"]);
}

async fn a_root_without_its_privileges_is_told_which() {
    let world = World::new().await;
    let client = Client::new("setpriv")
        .words("--bounding-set -sys_admin,-bpf --inh-caps -sys_admin,-bpf")
        .arg(readable_copy(&world))
        .words("exec --allow good.test -- /bin/echo ran");
    let output = world.directly(&client).await;
    is_told(&world, &output, &["root lacks cap_bpf, cap_sys_admin here"]);
}

/// A copy of the agent's program that every user can run: the build's directory may be root's alone.
fn readable_copy(world: &World) -> std::path::PathBuf {
    let path = world.path("egress-agent");
    std::fs::copy(program(), &path).expect("a copy");
    path
}

async fn a_kernel_that_is_too_old_is_told() {
    let world = World::new().await;
    let release = world.file("osrelease", "5.14.0-427.el9.x86_64\n");
    world.client.cover(&release, "/proc/sys/kernel/osrelease").await;
    let output = world.exec().allow("good.test").run(&shell("echo ran")).await;
    is_told(
        &world,
        &output,
        &["5.14.0-427.el9.x86_64 is too old: at least 5.15"],
    );
}

async fn a_machine_without_cgroup2_is_told() {
    let world = World::new().await;
    // In a mount namespace of its own in which no cgroup file system is left.
    let line = format!(
        "grep -E ' - cgroup2? ' /proc/self/mountinfo | cut -d' ' -f5 | tac | xargs -n1 umount -l && exec {} exec -- /bin/echo ran",
        program().display()
    );
    let client = Client::new("unshare")
        .words("--mount --propagation private /bin/sh -c")
        .arg(line);
    let output = world.directly(&client).await;
    is_told(&world, &output, &["cgroup2", "cgroup v2"]);
}

async fn a_policy_file_that_is_wrong_is_told_with_its_place() {
    let world = World::new().await;
    let wrong = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: a, namespace: default}\n\
                 spec:\n  egress:\n  - to: [{domian: good.test}]\n";
    let output = world.exec().policy(wrong).run(&shell("echo ran")).await;
    is_told(&world, &output, &["domian"]);
    assert!(output.stderr.contains(".yaml:6:"), "file:line: {}", output.stderr);
    assert!(
        output.stderr.contains("domain"),
        "what is allowed: {}",
        output.stderr
    );
    assert!(listeners(&world.client).await.is_empty());
}

async fn a_policy_file_that_is_missing_is_told() {
    let world = World::new().await;
    let output = world
        .exec()
        .arg("--policy")
        .arg("/does/not/exist.yaml")
        .run(&shell("echo ran"))
        .await;
    is_told(&world, &output, &["/does/not/exist.yaml"]);
}

async fn a_pattern_that_is_wrong_is_told() {
    let world = World::new().await;
    for pattern in [
        "*",
        "a.*.test",
        "good..test",
        "198.51.100.10",
        "https://good.test/",
        "*.com",
    ] {
        let output = world.exec().allow(pattern).run(&shell("echo ran")).await;
        is_told(&world, &output, &[pattern]);
    }
}

async fn unknown_options_are_told() {
    let world = World::new().await;
    for (option, value) in [
        ("--alow", "x"),
        ("--log-format", "apache"),
        ("--nameserver", "nine"),
        ("--internal", "10/8/8"),
    ] {
        let output = world.exec().arg(option).arg(value).run(&shell("echo ran")).await;
        assert_eq!(
            output.code(),
            2,
            "clap's status for wrong usage: {}",
            output.story()
        );
        assert!(output.stderr.contains(option), "{}", output.story());
        assert_eq!(output.text(), "");
    }
}

async fn exec_without_a_command_is_told() {
    let world = World::new().await;
    let output = verb(&world, &world.client, &["exec", "--allow", "good.test"])
        .start()
        .finish()
        .await;
    assert_eq!(output.code(), 2, "{}", output.story());
    assert!(output.stderr.contains("COMMAND"), "{}", output.story());
}

async fn a_log_that_cannot_be_opened_is_told_before_anything_runs() {
    let world = World::new().await;
    let output = world
        .exec()
        .arg("--access-log")
        .arg("/does/not/exist/log")
        .run(&shell("echo ran"))
        .await;
    is_told(&world, &output, &["/does/not/exist/log"]);
}

async fn check_and_explain_need_no_privileges() {
    let world = World::new().await;
    let policy = world.file("policy.yaml", POLICY);
    let copy = readable_copy(&world);
    let as_nobody = |words: &str| {
        Client::new("setpriv")
            .words("--reuid=65534 --regid=65534 --clear-groups")
            .arg(&copy)
            .words(words)
    };
    world
        .directly(&as_nobody(&format!("check {}", policy.display())))
        .await
        .succeeded();
    let explain = format!("explain --policy {} --namespace default", policy.display());
    let allowed = world
        .directly(&as_nobody(&format!("{explain} https://good.test/")))
        .await;
    assert!(
        allowed.text().contains("allow") && allowed.text().contains("named"),
        "{}",
        allowed.story()
    );
    let denied = world
        .directly(&as_nobody(&format!("{explain} evil.test:443")))
        .await;
    assert!(denied.text().contains("den"), "{}", denied.story());
}

const POLICY: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\n\
    metadata: {name: named, namespace: default}\nspec:\n  egress:\n  - to: [{domain: good.test}]\n  \
    - to: [{domain: read.test}]\n    http: [{methods: [GET], path: /v1/**}]\n";

async fn explain_says_what_exec_does() {
    let world = World::new().await;
    for name in ["good.test", "read.test", "evil.test"] {
        world.zone.set(
            name,
            egress_tests::dns::Answer::Addresses(vec![egress_tests::lab::ip("198.51.100.10")]),
        );
    }
    let _origin = world.http("good.test").await;
    let policy = world.file("policy.yaml", POLICY).display().to_string();
    for (url, allowed) in [
        ("http://good.test/", true),
        ("http://read.test/v1/a", true),
        ("http://read.test/v2/a", false),
        ("http://evil.test/", false),
    ] {
        let words = ["explain", "--policy", &policy, "--namespace", "default", url];
        let explained = verb(&world, &world.client, &words).start().finish().await;
        let client = egress_tests::clients::curl(&world)
            .words("--output /dev/null --write-out %{http_code}")
            .arg(url);
        let done = world.exec().policy(POLICY).run(&client).await;
        assert_eq!(done.text() != "403", allowed, "{url}: {}", done.story());
        let first = explained.text().lines().next().unwrap_or_default().to_lowercase();
        assert_eq!(first.contains("allow"), allowed, "{url}: {}", explained.story());
    }
}
