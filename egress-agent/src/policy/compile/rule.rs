//! One rule: what its peers, ports and requests mean together.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;

use super::{Compiler, List};
use crate::policy::{
    address::{Block, canonical_net},
    document::{HttpRequest, Peer, Port, Protocol, Rule as RuleDocument},
    host_pattern::HostPattern,
    ports::PortSet,
    problem::quoted,
    request::{PathGlob, RequestPattern},
    rule::Rule,
};

enum CompiledPeer {
    Host(HostPattern),
    Block(Block),
}

impl Compiler<'_> {
    /// Compiles the rule at the compiler's path.
    pub(super) fn rule(&mut self, list: List, index: usize, rule: &RuleDocument) -> Rule {
        let peers = self.list("to", Some(&rule.to), Self::peer);
        let named_ports = self.named_ports(rule);
        let requests = self.requests(rule, named_ports.as_ref().map(|(tcp, _)| tcp));
        let (host_ports, block_ports, datagram_ports) = match named_ports {
            Some((tcp, udp)) => (tcp.clone(), tcp, udp),
            None => (list.default_host_ports(), PortSet::all(), PortSet::all()),
        };
        let mut compiled = Rule {
            id: Arc::new(self.rule_id(list, Some(index))),
            place: (self.place)(&self.path),
            hosts: Vec::new(),
            blocks: Vec::new(),
            host_ports,
            block_ports,
            // What has `http` is about TCP.
            datagram_ports: if requests.is_empty() {
                datagram_ports
            } else {
                PortSet::default()
            },
            requests,
        };
        for peer in peers {
            match peer {
                CompiledPeer::Host(pattern) => compiled.hosts.push(pattern),
                CompiledPeer::Block(block) => compiled.blocks.push(block),
            }
        }
        compiled
    }

    /// The TCP and the UDP ports that the rule names; `None` if it has no `ports`.
    fn named_ports(&mut self, rule: &RuleDocument) -> Option<(PortSet, PortSet)> {
        let has_names = rule.to.iter().any(|peer| peer.domain.is_some());
        let ranges = self.list("ports", rule.ports.as_deref(), |this, port| {
            if port.protocol == Protocol::Udp && has_names {
                this.problem_at(&["protocol"], |_| {
                    "names are told apart on TCP only; UDP is allowed by rules whose `to` has only `cidr`"
                        .into()
                });
            }
            Some((port.protocol, this.port_range(port)))
        });
        let of = |wanted: Protocol| -> PortSet {
            let named = ranges.iter().filter(|(protocol, _)| *protocol == wanted);
            named.map(|(_, range)| range.clone()).collect()
        };
        rule.ports
            .is_some()
            .then(|| (of(Protocol::Tcp), of(Protocol::Udp)))
    }

    fn port_range(&mut self, port: &Port) -> RangeInclusive<u16> {
        let end = port.end_port.unwrap_or(port.port);
        if end < port.port {
            self.problem_at(&["endPort"], |_| {
                format!(
                    "`endPort` {end} is below `port` {}; it must be the same or higher",
                    port.port
                )
            });
        }
        port.port..=end
    }

    fn requests(&mut self, rule: &RuleDocument, named_ports: Option<&PortSet>) -> Vec<RequestPattern> {
        let only_tls = named_ports.is_some_and(|ports| *ports == PortSet::from_iter([443..=443]));
        if rule.http.is_some() && only_tls {
            self.problem_at(&["http"], |_| {
                "the rule's only port is 443, where requests are encrypted; `http` needs a port with plain HTTP, such \
                 as 80"
                    .into()
            });
        }
        self.list("http", rule.http.as_deref(), Self::request)
    }

    fn peer(&mut self, peer: &Peer) -> Option<CompiledPeer> {
        match (&peer.domain, &peer.cidr) {
            (Some(domain), None) => {
                if peer.except.is_some() {
                    self.problem_at(&["except"], |_| {
                        "`except` belongs to `cidr`; leave names out by not allowing them".into()
                    });
                }
                self.within("domain", |this| this.host_pattern(domain))
                    .map(CompiledPeer::Host)
            }
            (None, Some(cidr)) => self.block(cidr, peer.except.as_deref()).map(CompiledPeer::Block),
            (Some(_), Some(_)) => {
                self.problem(
                    "`domain` and `cidr` exclude each other; write them as two entries of `to`".into(),
                );
                None
            }
            (None, None) => {
                self.problem(
                    "the entry names nothing; allowed are `domain`, or `cidr` with or without `except`"
                        .into(),
                );
                None
            }
        }
    }

    fn block(&mut self, cidr: &str, except: Option<&[String]>) -> Option<Block> {
        let net = self.within("cidr", |this| this.net(cidr));
        let except = self.each("", "except", except, |this, _, text| {
            let inner = this.net(text)?;
            if net.is_some_and(|net| !net.contains(&inner)) {
                this.problem(format!(
                    "`{}` is not within `{}`, so there is nothing to leave out",
                    quoted(text),
                    quoted(cidr)
                ));
            }
            Some(canonical_net(inner))
        });
        net.map(|net| Block::new(canonical_net(net), except))
    }

    fn net(&mut self, text: &str) -> Option<IpNet> {
        let Ok(net) = text.parse::<IpNet>() else {
            let hint = match text.parse::<IpAddr>() {
                Ok(address) => format!("for the one address write `{}`", IpNet::from(address)),
                Err(_) => "allowed is ADDRESS/PREFIX, such as `203.0.113.0/24` or `2001:db8::/32`".into(),
            };
            self.problem(format!("`{}` is not an address block; {hint}", quoted(text)));
            return None;
        };
        if net.trunc() != net {
            self.problem(format!(
                "`{}` has address bits beyond its prefix; write `{}`, or a longer prefix",
                quoted(text),
                net.trunc()
            ));
            return None;
        }
        Some(net)
    }

    fn request(&mut self, request: &HttpRequest) -> Option<RequestPattern> {
        let methods = request
            .methods
            .as_deref()
            .map(|methods| self.list("methods", Some(methods), |this, method| this.method(method)));
        let path = request.path.as_ref().map(|text| {
            self.within("path", |this| {
                PathGlob::parse(text)
                    .map_err(|message| this.problem(message))
                    .ok()
            })
        });
        Some(RequestPattern {
            methods,
            // A path that is wrong fails the document; it must not turn into one that matches everything.
            path: match path {
                Some(glob) => Some(glob?),
                None => None,
            },
        })
    }

    fn method(&mut self, method: &str) -> Option<String> {
        let is_token = !method.is_empty()
            && method
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte));
        if !is_token {
            self.problem(format!(
                "`{}` is not a method; methods are case-sensitive and upper case, such as GET or POST",
                quoted(method)
            ));
        }
        is_token.then(|| method.to_owned())
    }
}
