//! Protocols that carry no name, on any port: real servers, and clients that know nothing of the agent. What names the
//! destination is then what the workload itself was told by DNS.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use egress_tests::{
    agent::{Finished, Format},
    clients::{Client, curl, python},
    dns::Answer,
    hello::Hello,
    lab::{World, address, ip},
    origins::RawConnection,
    promises,
    raw_client::{Outcome, Script},
    require::tool,
};
use nix::{sys::signal, unistd::Pid};

promises![
    psql_reaches_an_allowed_postgres_and_no_other,
    ssh_reaches_an_allowed_server_and_no_other,
    mail_is_taken_by_an_allowed_server_and_no_other,
    tls_on_any_port_is_judged_by_its_name,
    http_on_any_port_is_judged_by_its_host,
    a_name_that_another_workload_was_told_opens_nothing,
];

/// Where the allowed server of a test is, besides good.test.
const SERVER: &str = "198.51.100.40";

/// A policy for every workload of `exec`, which is in the namespace `default`.
fn policy(domain: &str, ports: &str) -> String {
    format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {{name: named}}\nspec:\n  egress:\n  \
         - to: [{{domain: {domain}}}]\n    ports: [{ports}]\n"
    )
}

/// The outcome and the name of each record.
fn gist(output: &Finished) -> Vec<(String, String)> {
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    output
        .json_log()
        .iter()
        .map(|record| (word(&record["outcome"]), word(&record["host"])))
        .collect()
}

#[track_caller]
fn is_refused(output: &Finished) {
    output.failed();
    let gist = gist(output);
    assert!(
        !gist.is_empty() && gist.iter().all(|(outcome, _)| outcome == "no_known_name"),
        "{}",
        output.story()
    );
}

/// A server of the distribution's in the origins' namespace; it ends with the test.
struct Server(Child);

impl Server {
    async fn start(world: &World, mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(
            world
                .origins
                .run(async move { command.spawn().expect("it starts") })
                .await,
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // PostgreSQL's own processes end with it only if it is asked to end.
        let pid = i32::try_from(self.0.id()).map(Pid::from_raw);
        if pid.is_ok_and(|pid| signal::kill(pid, signal::Signal::SIGQUIT).is_err()) {
            eprintln!("a server had ended before its test");
        }
        drop(self.0.wait());
    }
}

/// Waits until `port` of the server answers.
async fn listens(world: &World, port: u16) {
    let to = format!("{SERVER}:{port}");
    let waited = world.origins.run(async move {
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(&to).await.is_ok() {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        false
    });
    assert!(waited.await, "nothing listens on port {port}");
}

/// The directory with PostgreSQL's server programs; Debian keeps those of several versions side by side.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    versions
        .map(|version| version.path().join("bin"))
        .find(|programs| programs.join("initdb").is_file() && programs.join("postgres").is_file())
        .expect("PostgreSQL's server is not installed: run `cargo xtask setup`")
}

/// The server will not run as root.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(tool("setpriv"));
    command
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
        .arg(program)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C");
    command
}

async fn psql_reaches_an_allowed_postgres_and_no_other() {
    let world = World::new().await;
    world.zone.set("db.test", Answer::Addresses(vec![ip(SERVER)]));
    let programs = postgres_programs();
    let data = world.path("postgres");
    fs::create_dir(&data).expect("a directory");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("chmod");
    let data = data.join("data");
    let made = as_nobody(&programs.join("initdb"))
        .args([
            "--no-sync",
            "--auth=trust",
            "--username=lab",
            "--encoding=UTF8",
            "--pgdata",
        ])
        .arg(&data)
        .output()
        .expect("initdb runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n").expect("a file");
    let mut command = as_nobody(&programs.join("postgres"));
    command.arg("-D").arg(&data).args([
        "-c",
        &format!("listen_addresses={SERVER}"),
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
    ]);
    let _server = Server::start(&world, command).await;
    listens(&world, 5432).await;
    let evil = world.raw("evil.test", 5432, RawConnection::stall).await;
    let psql = |host: &str, tls: &str| {
        Client::new("psql")
            .arg(format!(
                "host={host} user=lab dbname=postgres sslmode={tls} connect_timeout=20"
            ))
            .words("--no-psqlrc --tuples-only --no-align --command")
            .arg("select 6 * 7")
    };

    // With and without the request for TLS that the client begins with by default, which the server declines here.
    for tls in ["prefer", "disable"] {
        let exec = world.exec().policy(&policy("db.test", "{port: 5432}"));
        let output = exec.log(Format::Json).run(&psql("db.test", tls)).await;
        output.succeeded().printed("42\n");
        let expected = ("allowed_by_rule".to_owned(), "db.test".to_owned());
        assert!(gist(&output).contains(&expected), "{}", output.story());
        fs::remove_file(world.path("access.log")).expect("the log is there");
    }
    // Its addresses are in the hosts file: no answer of DNS has named them.
    let exec = world.exec().policy(&policy("db.test", "{port: 5432}"));
    let output = exec.log(Format::Json).run(&psql("evil.test", "disable")).await;
    is_refused(&output);
    evil.was_never_reached().await;
}

async fn ssh_reaches_an_allowed_server_and_no_other() {
    let world = World::new().await;
    world.zone.set("git.test", Answer::Addresses(vec![ip(SERVER)]));
    for name in ["host", "user"] {
        let made = Command::new(tool("ssh-keygen"))
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(world.path(name))
            .status()
            .expect("ssh-keygen runs");
        assert!(made.success());
    }
    // The server insists on it, and the package makes it at boot only.
    fs::create_dir_all("/run/sshd").expect("a directory");
    let config = world.file(
        "sshd_config",
        &format!(
            "ListenAddress {SERVER}:22\nHostKey {host}\nAuthorizedKeysFile {user}.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\n",
            host = world.path("host").display(),
            user = world.path("user").display()
        ),
    );
    let mut command = Command::new(tool("sshd"));
    command.args(["-D", "-e", "-f"]).arg(config);
    let _server = Server::start(&world, command).await;
    listens(&world, 22).await;
    let evil = world.raw("evil.test", 22, RawConnection::stall).await;
    let ssh = |host: &str| {
        Client::new("ssh")
            .words("-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -o ConnectTimeout=20 -i")
            .arg(world.path("user"))
            .words(&format!("root@{host} echo hello"))
    };

    let exec = world.exec().policy(&policy("git.test", "{port: 22}"));
    let output = exec.log(Format::Json).run(&ssh("git.test")).await;
    output.succeeded().printed("hello\n");
    assert_eq!(
        gist(&output),
        [("allowed_by_rule".to_owned(), "git.test".to_owned())]
    );

    let exec = world.exec().policy(&policy("git.test", "{port: 22}"));
    fs::remove_file(world.path("access.log")).expect("the log is there");
    is_refused(&exec.log(Format::Json).run(&ssh("evil.test")).await);
    evil.was_never_reached().await;
}

/// The server says the first word, and the client waits for it.
async fn mail(mut connection: RawConnection) -> std::io::Result<()> {
    connection.send(b"220 mail.test ESMTP\r\n").await?;
    loop {
        let line = connection.read_some().await?;
        if line.is_empty() {
            return Ok(());
        }
        let answer: &[u8] = if line.starts_with(b"QUIT") {
            b"221 bye\r\n"
        } else {
            b"250 mail.test\r\n"
        };
        connection.send(answer).await?;
    }
}

async fn mail_is_taken_by_an_allowed_server_and_no_other() {
    let world = World::new().await;
    let good = world.raw("good.test", 25, mail).await;
    let evil = world.raw("evil.test", 25, mail).await;
    let client = |host: &str| {
        python(
            &world,
            "mail",
            "import smtplib, sys\nwith smtplib.SMTP(sys.argv[1], 25, timeout=20) as server: print(server.ehlo()[0])\n",
        )
        .arg(host)
    };

    let exec = world.exec().policy(&policy("good.test", "{port: 25}"));
    let output = exec.log(Format::Json).run(&client("good.test")).await;
    output.succeeded().printed("250\n");
    assert_eq!(
        gist(&output),
        [("allowed_by_rule".to_owned(), "good.test".to_owned())]
    );
    assert_eq!(good.seen().await.len(), 1);

    let exec = world.exec().policy(&policy("good.test", "{port: 25}"));
    fs::remove_file(world.path("access.log")).expect("the log is there");
    is_refused(&exec.log(Format::Json).run(&client("evil.test")).await);
    evil.was_never_reached().await;
}

async fn tls_on_any_port_is_judged_by_its_name() {
    let world = World::new().await;
    let good = world.raw("good.test", 8443, greeting).await;
    let evil = world.raw("evil.test", 8443, greeting).await;
    // To the evil's address throughout: it is the name that counts.
    let say = |name: Option<&str>| {
        let script = Script::to(address("198.51.100.66:8443"))
            .send(&Hello::new(name).bytes())
            .read_to_end();
        egress_tests::clients::raw(&world, &script)
    };
    for (name, text, alert) in [
        (Some("good.test"), "hello", None),
        (Some("evil.test"), "", Some(49)),
        // As a protocol without names: no answer of DNS has named the address.
        (None, "", Some(49)),
    ] {
        let exec = world.exec().policy(&policy("good.test", "{port: 8443}"));
        let output = exec.run(&say(name)).await;
        let outcome = Outcome::single(&output.succeeded().text());
        match alert {
            Some(alert) => assert_eq!(outcome.alert(), Some(alert), "{name:?}: {outcome:?}"),
            None => assert_eq!(outcome.text(), text, "{name:?}: {outcome:?}"),
        }
    }
    assert_eq!(good.seen().await.len(), 1);
    evil.was_never_reached().await;
}

async fn greeting(mut connection: RawConnection) -> std::io::Result<()> {
    connection.read_record().await?;
    connection.send(b"hello").await
}

async fn http_on_any_port_is_judged_by_its_host() {
    let world = World::new().await;
    let good = world
        .raw("good.test", 8080, async |mut connection: RawConnection| {
            connection.read_some().await?;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            connection.send(answer).await
        })
        .await;
    let evil = world.raw("evil.test", 8080, RawConnection::stall).await;
    let exec = || world.exec().policy(&policy("good.test", "{port: 8080}"));

    let page = |url: &str| curl(&world).words("--ipv4 --write-out %{http_code}").arg(url);
    exec()
        .run(&page("http://good.test:8080/"))
        .await
        .succeeded()
        .printed("hello200");
    let refused = exec().run(&page("http://evil.test:8080/")).await;
    assert!(refused.text().ends_with("403"), "{}", refused.story());
    assert_eq!(good.seen().await.len(), 1);
    evil.was_never_reached().await;
}

/// Two instances, so two workloads, in one network namespace: the one has looked the name up, the other only dials what it was
/// told.
async fn a_name_that_another_workload_was_told_opens_nothing() {
    let world = World::new().await;
    let good = world.raw("good.test", 25, mail).await;
    let dial = python(
        &world,
        "dial",
        "import socket, sys\nif sys.argv[1:]: socket.getaddrinfo(sys.argv[1], 25)\n\
         s = socket.create_connection(('198.51.100.10', 25), 20)\nprint(s.recv(3).decode())\n",
    );
    let exec = || world.exec().policy(&policy("good.test", "{port: 25}"));

    exec()
        .run(&dial.clone().arg("good.test"))
        .await
        .succeeded()
        .printed("220\n");
    exec().log(Format::Json).run(&dial).await.failed();
    assert_eq!(good.seen().await.len(), 1);
}
