//! The part of the configuration that is about name service.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use serde::Deserialize;

use crate::{
    dns::{DnsLog, Ech, Level, names::NameLimits},
    policy::HostPattern,
};

/// How queries of workloads are answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DnsEntries {
    /// Everybody may look up the names below it; empty for none.
    cluster_domain: String,
    /// So with the names that these patterns match.
    internal_names: Vec<String>,
    /// What becomes of Encrypted ClientHello keys in answers.
    pub ech: Ech,
    /// How long what an answer said of an address is remembered at least.
    name_seconds: u64,
    /// Where queries are logged.
    log: Option<DnsLogEntry>,
}

/// The `dns` log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsLogEntry {
    target: PathBuf,
    #[serde(default)]
    level: Level,
}

impl Default for DnsEntries {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            internal_names: Vec::new(),
            ech: Ech::default(),
            name_seconds: NameLimits::default().floor.as_secs(),
            log: None,
        }
    }
}

impl DnsEntries {
    /// What types alone cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        self.patterns()?;
        if self.name_seconds > NameLimits::default().ceiling.as_secs() {
            return Err("dns.nameSeconds: 0 to 86400 are allowed".to_owned());
        }
        Ok(())
    }

    /// The names that everybody may look up. Those that [`Self::check`] would refuse are left out.
    #[must_use]
    pub fn internal_names(&self) -> Vec<HostPattern> {
        self.patterns().unwrap_or_default()
    }

    /// Bounds of the name table.
    #[must_use]
    pub fn name_limits(&self) -> NameLimits {
        NameLimits {
            floor: Duration::from_secs(self.name_seconds),
            ..NameLimits::default()
        }
    }

    /// Opens the log.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_log(&self) -> anyhow::Result<DnsLog> {
        match &self.log {
            None => Ok(DnsLog::default()),
            Some(entry) => DnsLog::start(&entry.target, entry.level)
                .with_context(|| format!("cannot open the dns log {}", entry.target.display())),
        }
    }

    fn patterns(&self) -> Result<Vec<HostPattern>, String> {
        let domain = self.cluster_domain.trim_end_matches('.');
        let cluster = (!domain.is_empty()).then(|| ("dns.clusterDomain", format!("**.{domain}")));
        let names = self.internal_names.iter();
        let names = names.map(|text| ("dns.internalNames", text.clone()));
        cluster
            .into_iter()
            .chain(names)
            .map(|(key, text)| text.parse().map_err(|error| format!("{key}: {error}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_names_are_internal_unless_told_otherwise() {
        let patterns = |entries: &DnsEntries| -> Vec<String> {
            let names = entries.internal_names().into_iter();
            names.map(|pattern| pattern.to_string()).collect()
        };
        assert_eq!(patterns(&DnsEntries::default()), ["**.cluster.local"]);
        let none = DnsEntries {
            cluster_domain: String::new(),
            internal_names: vec!["**.corp.example".to_owned()],
            ..DnsEntries::default()
        };
        assert_eq!(patterns(&none), ["**.corp.example"]);
        let bad = DnsEntries {
            internal_names: vec!["*".to_owned()],
            ..DnsEntries::default()
        };
        assert!(bad.check().unwrap_err().starts_with("dns.internalNames: "));
    }
}
