//! The network in which it plays, and how a command is run and shown in it.

use std::{ffi::OsString, path::PathBuf};

use egress_tests::{
    agent::{Exec, Finished, Start, program},
    clients::Client,
    dns::Answer,
    lab::{AGENT_DNS, CLIENT_V4, World, ip},
    origins::{Origin, Seen},
};

use crate::story::Story;

/// The name that the policy allows.
pub(crate) const ALLOWED: &str = "ssd.jpl.nasa.gov";
/// Its address in this network.
pub(crate) const ALLOWED_ADDRESS: &str = "198.51.100.10";
/// A name that it does not.
pub(crate) const DENIED: &str = "example.org";
/// Its address in this network.
pub(crate) const DENIED_ADDRESS: &str = "198.51.100.66";

const POLICY: &str = "\
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: horizons}
spec:
  egress:
    - to: [{domain: ssd.jpl.nasa.gov}]
";

/// The network, its servers, and the files that the commands name.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) world: World,
    allowed: [Origin; 2],
    denied: [Origin; 2],
    policy: PathBuf,
}

/// What the witnesses had seen at some time.
#[derive(Debug)]
pub(crate) struct Witnessed {
    pub(crate) allowed: Vec<Seen>,
    pub(crate) denied: Vec<Seen>,
    /// Names that the enforcer's DNS server was asked for.
    pub(crate) asked: Vec<String>,
}

impl Stage {
    pub(crate) async fn set() -> Self {
        let world = World::new().await;
        for (name, address) in [(ALLOWED, ALLOWED_ADDRESS), (DENIED, DENIED_ADDRESS)] {
            world.zone.set(name, Answer::Addresses(vec![ip(address)]));
        }
        let allowed = [world.https(ALLOWED).await, world.http(ALLOWED).await];
        let denied = [world.https(DENIED).await, world.http(DENIED).await];
        let policy = world.file("policy.yaml", POLICY);
        Self {
            world,
            allowed,
            denied,
            policy,
        }
    }

    pub(crate) fn introduce(&self, story: &Story) {
        story.title("The egress enforcer: curl, which knows nothing of it, and two web servers");
        story.say(&format!(
            "This network was made a moment ago, of two network namespaces. No route leads out of it: the machine\n\
             behind the first name only plays its part, with a certificate of an authority that nobody else trusts.\n\
             \n\
             \x20 curl                          {ALLOWED_ADDRESS}  {ALLOWED}\n\
             \x20 {CLIENT_V4} ---- veth pair ---- {DENIED_ADDRESS}  {DENIED}\n\
             \x20                               {dns}  the DNS server that the enforcer asks\n\n",
            dns = AGENT_DNS.trim_end_matches(":53")
        ));
        story.file("policy.yaml", POLICY);
    }

    /// Runs curl with `words`, without the enforcer.
    pub(crate) async fn curl_directly(&self, story: &Story, words: &str) -> Finished {
        let curl = self.curl(words);
        story.command(&self.line(&curl));
        self.shown(story, self.world.directly(&curl).await)
    }

    /// Runs curl with `words`, under the enforcer.
    pub(crate) async fn curl_enforced(&self, story: &Story, words: &str) -> Finished {
        let curl = self.curl(words);
        story.command(&self.exec_line(&self.line(&curl)));
        // Each run has the log for itself.
        drop(std::fs::remove_file(self.world.path("access.log")));
        let finished = self.shown(story, self.exec().run(&curl).await);
        story.file("access.log", &finished.log);
        finished
    }

    /// Asks the agent for its verdict, and shows it. The exit status is the verdict.
    pub(crate) async fn explain(&self, story: &Story, target: &str) -> i32 {
        story.command(&format!("egress-agent explain --policy policy.yaml {target}"));
        let mut words = vec![program().into_os_string()];
        words.extend(["explain", "--policy"].map(OsString::from));
        words.extend([self.policy.clone().into_os_string(), target.into()]);
        let start = Start::new(&self.world, &self.world.client).command(words);
        self.shown(story, start.start().finish().await).code()
    }

    /// The enforcer as every scene starts it.
    pub(crate) fn exec(&self) -> Exec<'_> {
        self.world
            .exec()
            .arg("--policy")
            .arg(&self.policy)
            .log(egress_tests::agent::Format::Combined)
            .nameserver(AGENT_DNS.trim_end_matches(":53"))
    }

    /// The same as a person would type it.
    pub(crate) fn exec_line(&self, command: &str) -> String {
        let server = AGENT_DNS.trim_end_matches(":53");
        format!(
            "egress-agent exec --policy policy.yaml --access-log access.log --nameserver {server} -- \\\n       {command}"
        )
    }

    /// curl that trusts the authority of this network, and has no other setting.
    pub(crate) fn curl(&self, words: &str) -> Client {
        Client::new("curl")
            .words("-sS --cacert")
            .arg(self.world.path("ca.pem"))
            .words(words)
    }

    /// What the witnesses have seen until now.
    pub(crate) async fn witnessed(&self) -> Witnessed {
        let [tls, clear] = &self.allowed;
        let allowed = [tls.seen().await, clear.seen().await].concat();
        let [tls, clear] = &self.denied;
        let denied = [tls.seen().await, clear.seen().await].concat();
        Witnessed {
            allowed,
            denied,
            asked: self.world.agent_dns.names_asked(),
        }
    }

    /// A command line without the directories of this machine.
    fn line(&self, client: &Client) -> String {
        let program = client.program.file_name().expect("a program has a name");
        let words = client
            .arguments
            .iter()
            .map(|word| self.in_short(&word.to_string_lossy()));
        std::iter::once(program.to_string_lossy().into_owned())
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn shown(&self, story: &Story, finished: Finished) -> Finished {
        story.output(&self.in_short(&finished.text()));
        story.output(&self.in_short(&finished.stderr));
        finished
    }

    /// Paths of the stage's files as if the spectator sat beside them.
    fn in_short(&self, text: &str) -> String {
        let directory = self.world.path("policy.yaml");
        let directory = directory.parent().expect("a file is in a directory");
        text.replace(&format!("{}/", directory.display()), "")
    }
}
