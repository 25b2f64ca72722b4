//! The part of the configuration that is about the explicit proxy.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::proxy::explicit::ExplicitProxy;

/// Where workloads that know of a proxy find it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExplicitProxyEntries {
    /// IP:PORT; 0.0.0.0 and [::] stand for every address of their family.
    addresses: Vec<SocketAddr>,
}

impl ExplicitProxyEntries {
    /// The proxy; `ports` are the redirected ones.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub(super) fn proxy(&self, ports: &[u16]) -> Result<ExplicitProxy, String> {
        ExplicitProxy::new(&self.addresses, ports)
            .map_err(|problem| format!("explicitProxy.addresses: {problem}"))
    }
}
