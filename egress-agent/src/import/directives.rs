//! The directives of a squid.conf: those that allow and deny, those that have a counterpart in the agent's configuration,
//! and the others.

use super::{
    access::{Concern, List, Rule},
    acl::Acls,
    conf::{Broken, Directive, Files, Spot},
    report::{Finding, Weight},
};
use crate::{access_log::Format, policy::Host};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    /// Access control lists.
    pub acls: Acls,
    /// All of these must allow a request.
    pub lists: Vec<List>,
    /// What there is to say, but for what depends on the answer.
    pub findings: Vec<Finding>,
    /// Lines for the agent's configuration.
    pub hints: Vec<String>,
    formats: Vec<(String, String)>,
}

/// The lists, in the places that they have in [`Configuration::lists`].
const LISTS: [&str; 5] = [
    "http_access",
    "http_reply_access",
    "adapted_http_access",
    "miss_access",
    "ssl_bump",
];
const HTTP_ACCESS: usize = 0;
/// Of a tunnel squid sees no answer.
const HTTP_REPLY_ACCESS: usize = 1;
const SSL_BUMP: usize = 4;

/// Programs and services that can refuse what the lists allow.
const REFUSING: [(&str, &str); 4] = [
    (
        "url_rewrite_program",
        "a program that rewrites URLs can refuse them (squidGuard does it so)",
    ),
    (
        "redirect_program",
        "a program that rewrites URLs can refuse them (squidGuard does it so)",
    ),
    ("icap_service", "an ICAP service can refuse requests"),
    ("ecap_service", "an eCAP service can refuse requests"),
];

/// Directives that have a meaning which is lost, and what is to be said of them.
const LOST: [(&str, &str); 13] = [
    (
        "never_direct",
        "with parentProxy every allowed name goes to the parent, and without it none does",
    ),
    (
        "always_direct",
        "parentProxy.direct has the names that are dialled without the parent",
    ),
    ("auth_param", "nobody logs in: a workload is known by its cgroup"),
    ("external_acl_type", "no program is asked"),
    ("request_body_max_size", "requests are not limited in size"),
    ("reply_body_max_size", "answers are not limited in size"),
    (
        "request_header_access",
        "fields of requests are passed on as they are",
    ),
    (
        "reply_header_access",
        "fields of answers are passed on as they are",
    ),
    ("request_header_add", "no field is added"),
    ("tcp_outgoing_address", "the workload's own address is the source"),
    ("follow_x_forwarded_for", "a workload is known by its cgroup"),
    ("delay_pools", "bandwidth is not limited"),
    ("client_ip_max_connections", "see `limits.connectionsPerWorkload`"),
];

impl Configuration {
    /// Reads all directives in their order.
    ///
    /// # Errors
    /// squid would not read a line that decides over access.
    pub(super) fn read(directives: &[Directive], files: &dyn Files) -> Result<Self, Broken> {
        let mut configuration = Self {
            acls: Acls::predefined(),
            lists: LISTS
                .iter()
                .enumerate()
                .map(|(index, _)| List {
                    rules: Vec::new(),
                    empty_allows: index != HTTP_ACCESS,
                    concern: match index {
                        HTTP_REPLY_ACCESS => Concern::Requests,
                        SSL_BUMP => Concern::Tunnels,
                        _ => Concern::All,
                    },
                    end_allows: (index == SSL_BUMP).then_some(true),
                })
                .collect(),
            ..Self::default()
        };
        for directive in directives {
            configuration.directive(directive, files)?;
        }
        Ok(configuration)
    }

    /// Takes an acl, or a program that can refuse, for always or never matching.
    pub(super) fn assume(&mut self, name: &str, matches: bool) {
        if !self.acls.assume(name, matches) {
            self.findings.push(Finding {
                spot: None,
                weight: Weight::Note,
                text: format!("--assume {name}: there is no acl of that name"),
            });
        }
    }

    fn directive(&mut self, line: &Directive, files: &dyn Files) -> Result<(), Broken> {
        let Some(name) = line.words.first() else {
            return Ok(());
        };
        if name == "acl" {
            self.acls.define(line, files);
        } else if let Some(list) = LISTS.iter().position(|list| list == name) {
            self.rule(line, list)?;
        } else if let Some((_, why)) = REFUSING.iter().find(|(refusing, _)| refusing == name) {
            self.refusing(line, name, why);
        } else if let Some((_, why)) = LOST.iter().find(|(lost, _)| lost == name) {
            self.note(&line.spot, format!("{name}: not translated: {why}"));
        } else {
            self.hint(line, name);
        }
        Ok(())
    }

    fn rule(&mut self, line: &Directive, number: usize) -> Result<(), Broken> {
        let (allowing, denying): (&[&str], &[&str]) = if number == SSL_BUMP {
            let action = line.words.get(1).map_or("", String::as_str);
            if action == "peek" && line.doubt.is_none() {
                // Looks, and decides nothing.
                return Ok(());
            }
            (
                &["splice", "none", "allow"],
                &[
                    "terminate",
                    "deny",
                    "bump",
                    "stare",
                    "server-first",
                    "client-first",
                    "peek",
                    "reconnect",
                ],
            )
        } else {
            (&["allow"], &["deny"])
        };
        let mut rule = Rule::read(line, &self.acls, allowing, denying).map_err(|problem| Broken {
            spot: line.spot.clone(),
            problem: format!("squid does not read this line: {problem}"),
        })?;
        if number == SSL_BUMP
            && !rule.allows
            && !matches!(line.words.get(1).map(String::as_str), Some("terminate" | "deny"))
        {
            let why = "it decrypts, and squid judges what is inside; nothing is decrypted here".to_owned();
            rule.doubt.get_or_insert(why);
        }
        if let Some(list) = self.lists.get_mut(number) {
            list.rules.push(rule);
        }
        Ok(())
    }

    /// As a rule that denies, before all others, what nobody knows.
    fn refusing(&mut self, line: &Directive, name: &str, why: &str) {
        let spot = line.spot.clone();
        let acl = Directive {
            spot: spot.clone(),
            words: ["acl", name, name].map(str::to_owned).to_vec(),
            doubt: None,
        };
        self.acls.define(&acl, &NoFiles);
        let rule = Directive {
            spot,
            words: [name, "deny", name].map(str::to_owned).to_vec(),
            doubt: None,
        };
        if let Ok(mut rule) = Rule::read(&rule, &self.acls, &[], &["deny"]) {
            rule.text = format!("{name}: {why} (--assume {name}=never if it does not)");
            let list = List {
                rules: vec![rule],
                empty_allows: true,
                end_allows: Some(true),
                concern: Concern::All,
            };
            self.lists.push(list);
        }
    }

    fn note(&mut self, spot: &Spot, text: impl Into<String>) {
        self.findings.push(Finding {
            spot: Some(spot.clone()),
            weight: Weight::Note,
            text: text.into(),
        });
    }

    /// What the agent's own configuration has for it.
    fn hint(&mut self, line: &Directive, name: &str) {
        let words: Vec<&str> = line.words.iter().skip(1).map(String::as_str).collect();
        match (name, words.as_slice()) {
            ("http_port", [place, modes @ ..]) => self.http_port(&line.spot, place, modes),
            ("https_port", _) => self.note(
                &line.spot,
                "https_port: not translated: TLS to the proxy itself is not offered",
            ),
            ("logformat", [name, definition @ ..]) => {
                self.formats.push(((*name).to_owned(), definition.join(" ")));
            }
            ("access_log" | "cache_access_log", [place, rest @ ..]) => {
                self.access_log(&line.spot, place, rest);
            }
            ("dns_nameservers", servers) if !servers.is_empty() => {
                let servers: Vec<String> = servers
                    .iter()
                    .filter_map(|server| server.parse().ok())
                    .map(|server| format!("\"{}\"", std::net::SocketAddr::new(server, 53)))
                    .collect();
                self.hints.push(format!("nameservers: [{}]", servers.join(", ")));
            }
            ("cache_peer", [host, kind, port, _icp, options @ ..]) => {
                self.cache_peer(&line.spot, host, kind, port, options);
            }
            ("strip_query_terms", ["on"]) => self.hints.push("stripQueryTerms: true".to_owned()),
            ("hosts_file", [file]) if *file != "none" && *file != "/etc/hosts" => self.note(
                &line.spot,
                format!("hosts_file {file}: not translated: /etc/hosts is read"),
            ),
            _ => {}
        }
    }

    /// One parent there is, and no siblings: nothing is cached.
    fn cache_peer(&mut self, spot: &Spot, host: &str, kind: &str, port: &str, options: &[&str]) {
        let has_parent = self.hints.iter().any(|hint| hint.starts_with("parentProxy:"));
        let place = format!("{host}:{port}");
        if kind != "parent" {
            return self.note(
                spot,
                format!("cache_peer {host} {kind}: not translated: nothing is cached"),
            );
        }
        if has_parent {
            let text =
                format!("cache_peer {host}: not translated: names go to one parent, and this is another one");
            return self.note(spot, text);
        }
        if Host::parse(host).is_err() || !port.parse().is_ok_and(|port: u16| port > 0) {
            let text =
                format!("cache_peer {place}: not translated: a host and a port from 1 to 65535 are wanted");
            return self.note(spot, text);
        }
        let starts = |with: &[&str]| {
            options
                .iter()
                .any(|option| with.iter().any(|word| option.starts_with(word)))
        };
        if starts(&["ssl", "tls"]) {
            let text = format!("cache_peer {host}: not translated: a parent is not spoken to in TLS");
            return self.note(spot, text);
        }
        if starts(&["login="]) {
            let text = format!(
                "cache_peer {host}: login is not translated: put it into the file of parentProxy.credentialsFile"
            );
            self.note(spot, text);
        }
        self.hints.push(format!("parentProxy: {{address: \"{place}\"}}"));
    }

    fn http_port(&mut self, spot: &Spot, place: &str, modes: &[&str]) {
        let other = ["intercept", "tproxy", "transparent", "accel", "vhost"];
        if let Some(mode) = modes.iter().find(|mode| other.contains(mode)) {
            let text = format!(
                "http_port {place} {mode}: not needed: connects to the redirected ports are judged without it"
            );
            return self.note(spot, text);
        }
        if modes.contains(&"ssl-bump") {
            self.note(spot, format!("http_port {place} ssl-bump: nothing is decrypted"));
        }
        let port = place.rsplit(':').next().unwrap_or(place);
        if port.parse::<u16>().is_ok_and(|port| port > 0) {
            self.hints.push(format!(
                "explicitProxy: {{addresses: [\"0.0.0.0:{port}\", \"[::]:{port}\"]}}  # or squid's own address alone"
            ));
        } else {
            self.note(
                spot,
                format!("http_port {place}: not translated: it has no port that is understood"),
            );
        }
    }

    fn access_log(&mut self, spot: &Spot, place: &str, rest: &[&str]) {
        if place == "none" {
            return;
        }
        let (module, target) = place.split_once(':').unwrap_or(("", place));
        let target = match module {
            "" | "daemon" | "stdio" if target == "/dev/stdout" => "stdout",
            "" | "daemon" | "stdio" => target,
            _ => {
                return self.note(
                    spot,
                    format!("access_log {place}: not translated: logs go to a file, stdout or stderr"),
                );
            }
        };
        let named = rest.iter().find_map(|word| word.strip_prefix("logformat="));
        let name = named
            .or_else(|| rest.iter().copied().find(|word| !word.contains('=')))
            .unwrap_or("squid");
        let own = self.formats.iter().rev().find(|(own, _)| own == name);
        let format = own.map_or(name, |(_, definition)| definition.as_str());
        match format.parse::<Format>() {
            Ok(_) => {
                let quoted = |text: &str| serde_json::Value::from(text).to_string();
                let entry = format!(
                    "accessLog: [{{format: {}, target: {}}}]",
                    quoted(format),
                    quoted(target)
                );
                self.hints.push(entry);
            }
            Err(error) => self.note(spot, format!("access_log {place}: not translated: {error}")),
        }
        let filters = rest.iter().filter(|word| !word.contains('=')).count();
        if filters > usize::from(named.is_none()) {
            self.note(
                spot,
                format!("access_log {place}: its acls are not translated: everything is logged"),
            );
        }
    }
}

/// For lines that have no values.
struct NoFiles;

impl Files for NoFiles {
    fn read(&self, path: &std::path::Path) -> Result<String, String> {
        Err(format!("{} is not read", path.display()))
    }

    fn matching(&self, pattern: &str) -> Result<Vec<std::path::PathBuf>, String> {
        Err(format!("{pattern} is not looked for"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{super::conf, *};

    /// A file of this text.
    struct Text(&'static str);

    impl Files for Text {
        fn read(&self, _path: &Path) -> Result<String, String> {
            Ok(self.0.to_owned())
        }

        fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
            Err(format!("{pattern} is not looked for"))
        }
    }

    fn read(text: &'static str) -> (Vec<String>, Vec<String>) {
        let files = Text(text);
        let directives = conf::read(Path::new("squid.conf"), &files).unwrap();
        let read = Configuration::read(&directives, &files).unwrap();
        let findings = read.findings.into_iter().map(|finding| finding.text);
        (read.hints, findings.collect())
    }

    #[test]
    fn one_parent_becomes_the_parent_proxy() {
        let (hints, findings) = read(
            "cache_peer proxy.corp.example parent 3128 0 no-query default login=me:word\n\
             cache_peer other.corp.example parent 3128 0\n\
             cache_peer near.corp.example sibling 3128 3130\n",
        );
        assert_eq!(hints, ["parentProxy: {address: \"proxy.corp.example:3128\"}"]);
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(
            findings[0].contains("parentProxy.credentialsFile"),
            "{findings:?}"
        );
        assert!(!findings[0].contains("word"), "{findings:?}");
        assert!(findings[1].contains("one parent"), "{findings:?}");
        assert!(findings[2].contains("nothing is cached"), "{findings:?}");
        for line in [
            "cache_peer proxy.test parent 443 0 ssl\n",
            "cache_peer proxy.test parent 0 0\n",
            "cache_peer pro/xy parent 3128 0\n",
        ] {
            let (hints, findings) = read(line);
            assert!(hints.is_empty(), "{line} {hints:?}");
            assert!(findings[0].contains("not translated"), "{line} {findings:?}");
        }
    }
}
