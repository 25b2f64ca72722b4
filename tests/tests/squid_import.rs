//! `egress-agent import` against a real squid: for each configuration of a corpus both are asked for the same requests.
//! The policies never allow what squid denies; and they allow what it allows, unless it was said that they do not.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use egress_agent::{
    identity::Workload,
    import::{Disk, Import, Options, import},
    policy::{self, Host, PolicySet, PolicyView, RequestFacts, Target},
};
use egress_tests::{
    agent::verb,
    lab::{CLIENT_V4, World},
    promises,
    squid::Squid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

promises![
    imported_policies_say_what_squid_says,
    the_import_verb_writes_policies_that_check_accepts,
];

/// Names at, above, below and beside those of the corpus, and addresses where nothing listens: squid says no by a status of
/// its own, and everything else means yes.
const HOSTS: [&str; 16] = [
    "good.test",
    "www.good.test",
    "a.b.good.test",
    "bad.good.test",
    "deep.bad.good.test",
    "xgood.test",
    "other.test",
    "www.other.test",
    "evil.test",
    "sub.evil.test",
    "nobody.test",
    "198.51.100.7",
    "198.51.100.8",
    "203.0.113.9",
    "10.66.1.2",
    "[2001:db8:1::7]",
];
const PORTS: [u16; 5] = [80, 443, 8080, 2525, 20];
const METHODS: [&str; 5] = ["CONNECT", "GET", "POST", "DELETE", "PUT"];

/// Configurations of which everything must have been translated.
const COMPLETE: [&str; 12] = [
    "addresses.conf",
    "allowlist.conf",
    "doubled.conf",
    "expressions.conf",
    "groups.conf",
    "lines.conf",
    "lists.conf",
    "methods.conf",
    "negation.conf",
    "no_connect.conf",
    "only_connect.conf",
    "order.conf",
];

fn corpus() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("squid");
    let entries = fs::read_dir(directory).expect("the corpus");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    files.sort();
    files
}

async fn imported_policies_say_what_squid_says() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    let mut complete = Vec::new();
    for path in corpus() {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a configuration");
        let directory = world.path("lists");
        for (from, to) in [("more", "more.conf"), ("good", "good.list")] {
            let list = fs::read_to_string(path.with_extension(from)).unwrap_or_default();
            world.file(&format!("lists/{to}"), &list);
        }
        let text = text.replace("@DIR@", &directory.display().to_string());
        let file = world.file("imported.conf", &text);
        let options = Options {
            sources: vec![format!("{CLIENT_V4}/32").parse().expect("a network")],
            ports: vec![8080],
            ..Options::default()
        };
        let imported = import(&file, &Disk::new(&file, None), &options)
            .map_err(|broken| format!("{name}: {broken}"))
            .expect("what is imported is good");
        if imported.is_complete() {
            complete.push(name.clone());
        }
        let view = view(&imported);
        let squid = Squid::start_with(&world, &[], &format!("access_log none\n{text}")).await;
        for host in HOSTS {
            for port in PORTS {
                let tunnels = is_allowed(&world, &squid, host, port, "CONNECT").await;
                for method in METHODS {
                    let theirs = if method == "CONNECT" {
                        tunnels
                    } else {
                        // What a tunnel may carry is no business of squid's.
                        tunnels || is_allowed(&world, &squid, host, port, method).await
                    };
                    let ours = judge(&view, host, port, method);
                    let is_name = !host.starts_with(['[', '1', '2']);
                    let is_told = !imported.is_complete() || !imported.ports.contains(port) || !is_name;
                    let is_right = ours == theirs || (theirs && is_told);
                    if !is_right {
                        wrong.push(format!(
                            "{name}: {method} {host}:{port}: squid {theirs}, policies {ours}"
                        ));
                    }
                }
            }
        }
        squid.stop().await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in COMPLETE {
        assert!(
            complete.iter().any(|other| other == name),
            "{name} was not translated in full"
        );
    }
}

fn view(imported: &Import) -> PolicyView {
    let policies = policy::read_text(Path::new("imported.yaml"), &imported.policies)
        .map_err(|errors| format!("{errors:?}\n{}", imported.policies))
        .expect("what is imported is good");
    let set = PolicySet::build(policies, policy::Settings::default()).expect("no duplicates");
    let workload = Workload {
        namespace: "default".to_owned(),
        ..Workload::default()
    };
    Arc::new(set).view(&workload)
}

fn judge(view: &PolicyView, host: &str, port: u16, method: &str) -> bool {
    let host = Host::parse(host).expect("a host");
    let address = match &host {
        Host::Address(address) => *address,
        Host::Name(_) => "0.0.0.0".parse().expect("an address"),
    };
    let request = (method != "CONNECT").then_some(RequestFacts { method, path: "/" });
    let target = Target {
        host: &host,
        port,
        address,
        request,
    };
    view.judge_undialled(&target).is_allow()
}

/// Whether squid does anything but refuse a request.
async fn is_allowed(world: &World, squid: &Squid<'_>, host: &str, port: u16, method: &str) -> bool {
    let target = if method == "CONNECT" {
        format!("{host}:{port}")
    } else {
        format!("http://{host}:{port}/")
    };
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let address = squid.address();
    let head = world.client.run(async move {
        let mut stream = TcpStream::connect(address).await.expect("squid listens");
        stream.write_all(request.as_bytes()).await.expect("squid reads");
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.expect("squid answers");
            if count == 0 {
                break;
            }
            head.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        String::from_utf8_lossy(&head).into_owned()
    });
    let head = timeout(Duration::from_secs(30), head)
        .await
        .map_err(|_| format!("squid is silent about {method} {target}"))
        .expect("squid answers");
    assert!(head.starts_with("HTTP/1.1 "), "{method} {target}: {head}");
    !head.contains("X-Squid-Error: ERR_ACCESS_DENIED")
}

async fn the_import_verb_writes_policies_that_check_accepts() {
    let world = World::new().await;
    world.file(
        "squid.conf",
        "http_port 3128\nacl good dstdomain .good.test\nacl office src 10.0.0.0/8\nacl SSL_ports port 443\n\
         access_log stdio:/dev/stdout combined\n\
         http_access allow office good SSL_ports\nhttp_access deny all\n",
    );
    fs::create_dir(world.path("imported")).expect("a directory");
    let import = async |words: &[&str]| {
        let file = world.path("squid.conf").display().to_string();
        let output = world.path("imported").display().to_string();
        let mut all = vec!["import", &file, "--namespace", "team", "--output", &output];
        all.extend(words);
        verb(&world, &world.client, &all).start().finish().await
    };

    let output = import(&[]).await;
    assert_eq!(output.code(), 1, "{}", output.story());
    assert!(
        output
            .stderr
            .contains("squid.conf:6: http_access allow office good SSL_ports: not translated: acl office"),
        "{}",
        output.story()
    );

    let output = import(&["--source", "10.1.0.0/16"]).await;
    assert_eq!(output.code(), 0, "{}", output.story());
    assert!(
        output.stderr.contains("explicitProxy: {addresses: "),
        "{}",
        output.story()
    );
    let written = fs::read_to_string(world.path("imported/squid.yaml")).expect("policies");
    assert!(
        written.contains("- domain: \".good.test\"\n    ports: [{port: 443}]"),
        "{written}"
    );
    let directory = world.path("imported").display().to_string();
    verb(&world, &world.client, &["check", &directory])
        .start()
        .finish()
        .await
        .succeeded();

    world.file("squid.conf", "http_access permit all\n");
    let output = import(&[]).await;
    assert_eq!(output.code(), 2, "{}", output.story());
    assert!(output.stderr.contains("squid.conf:1: "), "{}", output.story());
}
