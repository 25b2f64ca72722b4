//! Names that nobody has asked for: what resolvers make of a name by a search list before they ask for the name itself.
//! Pods have a list of several entries and `ndots:5`, so that each name outside of the cluster is asked for under each of
//! them first; those refusals are no news for anybody.

use std::path::Path;

use super::files::{self, Watched};
use crate::policy::DomainName;

/// The search list of pods. The kubelet gives the agent's pod the same entries as all others: those of the cluster, which
/// are its own names anyway, and those of the node.
#[derive(Debug)]
pub(super) struct SearchList {
    entries: Watched<Vec<DomainName>>,
}

impl SearchList {
    pub(super) fn of_file(path: &Path) -> Self {
        Self {
            entries: Watched::new(path.to_path_buf(), files::search_list),
        }
    }

    /// Whether `name` is another one with an entry of the list behind it: one that `is_wanted`, or one that is whole because
    /// its end is a public suffix, or an entry of the list. What else stands before an entry is taken for a host of that
    /// domain.
    pub(super) fn has_made(&self, name: &DomainName, is_wanted: impl Fn(&DomainName) -> bool) -> bool {
        let entries = self.entries.get();
        let before_an_entry = |name: &DomainName| {
            entries.iter().find_map(|entry| {
                let stem = name.as_str().strip_suffix(entry.as_str())?.strip_suffix('.')?;
                DomainName::parse(stem).ok()
            })
        };
        before_an_entry(name)
            .is_some_and(|stem| is_wanted(&stem) || is_whole(&stem) || before_an_entry(&stem).is_some())
    }
}

fn is_whole(name: &DomainName) -> bool {
    let (unicode, _) = idna::domain_to_unicode(name.as_str());
    psl::suffix(unicode.as_bytes()).is_some_and(|suffix| suffix.is_known() && suffix != unicode.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_entry_behind_it_is_told_from_a_host_of_that_domain() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        std::fs::write(
            &file,
            "nameserver 192.0.2.1\nsearch a.test\nsearch team.svc.cluster.local svc.cluster.local Corp.Example. bad..name\n",
        )
        .unwrap();
        let list = SearchList::of_file(&file);
        let made = |name: &str| {
            list.has_made(&DomainName::parse(name).unwrap(), |stem| {
                stem.as_str() == "vault.internal"
            })
        };
        for name in [
            "ssd.jpl.nasa.gov.corp.example",
            "www.example.co.uk.team.svc.cluster.local",
            "vault.internal.corp.example",
            "intranet.corp.example.corp.example",
            "web.team.svc.cluster.local.corp.example",
        ] {
            assert!(made(name), "{name}");
        }
        for name in [
            "ssd.jpl.nasa.gov",
            "intranet.corp.example",
            "dev.corp.example",
            "web.inside.corp.example",
            "corp.example",
            "example.com.a.test",
            "example.com.notcorp.example",
        ] {
            assert!(!made(name), "{name}");
        }
    }
}
