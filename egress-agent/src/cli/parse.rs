//! Values that several verbs take.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// `k=v,...`, as `kubectl get --selector` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(pub BTreeMap<String, String>);

impl FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut labels = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(format!(
                    "`{pair}` is not KEY=VALUE; write labels as app=web,tier=front"
                ));
            };
            if key.is_empty() {
                return Err(format!("`{pair}` has no key before the `=`"));
            }
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("the label `{key}` is given twice"));
            }
        }
        Ok(Self(labels))
    }
}

/// `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The pod.
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Both become parts of a URL's path.
        let is_plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_plain(namespace) && is_plain(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            Some(_) | None => Err(format!(
                "`{text}` is not a pod; write NAMESPACE/NAME, as in horizons/web-0"
            )),
        }
    }
}

/// `IP`, `IP:PORT` or `[IPV6]:PORT`; port 53 if none is given.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<IpAddr>()
        .map(|address| SocketAddr::new(address, 53))
        .or_else(|_not_an_address| text.parse::<SocketAddr>())
        .map_err(|_neither| {
            format!("`{text}` is not IP or IP:PORT, such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53")
        })
}

/// `ACL=always` or `ACL=never`.
pub(super) fn assumption(text: &str) -> Result<(String, bool), String> {
    let wrong = || format!("`{text}` is not ACL=always or ACL=never");
    let (name, matches) = text.split_once('=').ok_or_else(wrong)?;
    match matches {
        "always" => Ok((name.to_owned(), true)),
        "never" => Ok((name.to_owned(), false)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_namespace() {
        let pod: PodName = "horizons/web-0".parse().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("horizons", "web-0"));
        for bad in ["web-0", "/web-0", "horizons/", "a/b/c", "A/b", "a/b?watch=1"] {
            bad.parse::<PodName>().unwrap_err();
        }
    }

    #[test]
    fn labels_are_pairs_and_never_guessed() {
        let labels: Labels = "app=web,tier=".parse().unwrap();
        assert_eq!(
            labels.0,
            BTreeMap::from([("app".into(), "web".into()), ("tier".into(), String::new())])
        );
        assert_eq!("".parse::<Labels>().unwrap(), Labels::default());
        for bad in ["app", "=web", "a=1,a=2"] {
            bad.parse::<Labels>().unwrap_err();
        }
    }
}
