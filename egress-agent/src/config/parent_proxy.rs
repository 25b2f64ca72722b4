//! The part of the configuration that is about the parent proxy.

use std::{fs, path::PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::{
    policy::HostPattern,
    proxy::{dial::ParentProxy, explicit::ExplicitProxy},
};

/// Longer credentials are none.
const MOST_BYTES: u64 = 4096;

/// The proxy that names are handed to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ParentProxyEntries {
    /// HOST:PORT.
    address: String,
    /// A file of one line, USER:PASSWORD.
    credentials_file: Option<PathBuf>,
    /// Names that are dialled without it: host patterns as in policies.
    #[serde(default)]
    direct: Vec<String>,
}

impl ParentProxyEntries {
    /// What types alone cannot say; `explicit` is where workloads find us as a proxy.
    pub(super) fn check(&self, explicit: &ExplicitProxy) -> Result<(), String> {
        self.without_credentials()?;
        let is_our_own = |address: &&std::net::SocketAddr| address.to_string() == self.address;
        match explicit.addresses().iter().find(is_our_own) {
            Some(address) => Err(format!(
                "parentProxy.address: {address} is the explicit proxy's own, and the agent would ask itself; another one is \
                 allowed"
            )),
            None => Ok(()),
        }
    }

    /// The proxy, with its credentials read.
    ///
    /// # Errors
    /// They cannot be read, or are none.
    pub(super) fn proxy(&self) -> anyhow::Result<ParentProxy> {
        let proxy = self.without_credentials().map_err(anyhow::Error::msg)?;
        let Some(path) = &self.credentials_file else {
            return Ok(proxy);
        };
        let read = || -> anyhow::Result<String> {
            let size = fs::metadata(path)?.len();
            anyhow::ensure!(size <= MOST_BYTES, "it is larger than {MOST_BYTES} bytes");
            Ok(fs::read_to_string(path)?)
        };
        let text =
            read().with_context(|| format!("parentProxy.credentialsFile: cannot read {}", path.display()))?;
        proxy
            .with_credentials(text.trim_end_matches(['\r', '\n']))
            .with_context(|| format!("parentProxy.credentialsFile: {}", path.display()))
    }

    fn without_credentials(&self) -> Result<ParentProxy, String> {
        let proxy: ParentProxy = self
            .address
            .parse()
            .map_err(|error| format!("parentProxy.address: {:?}: {error}", self.address))?;
        let patterns: Result<Vec<HostPattern>, _> = self.direct.iter().map(|text| text.parse()).collect();
        let direct = patterns.map_err(|error| format!("parentProxy.direct: {error}"))?;
        Ok(proxy.with_direct(direct))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn entries(credentials: Option<&tempfile::NamedTempFile>) -> ParentProxyEntries {
        ParentProxyEntries {
            address: "proxy.corp.example:3128".to_owned(),
            credentials_file: credentials.map(|file| file.path().to_owned()),
            direct: vec!["**.corp.example".to_owned()],
        }
    }

    #[test]
    fn credentials_are_one_line_of_a_file() {
        assert_eq!(entries(None).proxy().unwrap().credentials(), None);
        for (text, is_good) in [
            ("user:word\n", true),
            ("user:word", true),
            ("user:word\r\n", true),
            ("user:word\nmore:\n", false),
            ("user", false),
            ("", false),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let proxy = entries(Some(&file)).proxy();
            assert_eq!(proxy.is_ok(), is_good, "{text:?}: {proxy:?}");
            if let Err(error) = proxy {
                let error = format!("{error:#}");
                assert!(error.contains("USER:PASSWORD"), "{error}");
                assert!(text.is_empty() || !error.contains(text.trim_end()), "{error}");
            }
        }
        let mut gone = entries(None);
        gone.credentials_file = Some("/nowhere/at/all".into());
        let error = format!("{:#}", gone.proxy().unwrap_err());
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
