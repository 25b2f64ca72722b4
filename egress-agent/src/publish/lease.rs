//! Who leads: one Lease, held by whoever renews it. Two that believe to lead for a moment write the same.

use std::{env, fs, time::Duration};

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::Instant;

/// The Lease's name. No node is called so: a node's name has no part that is longer than 63 characters, and none that
/// ends in a dash.
pub(super) const NAME: &str = "egress-enforcer.leader";
/// How long a leader may be silent.
pub(super) const LIFETIME: Duration = Duration::from_secs(15);
/// How often it renews.
pub(super) const RENEW: Duration = Duration::from_secs(5);

/// Where the namespace of a pod's service account is told.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The agents' own namespace: the configured one, POD_NAMESPACE, or that of the service account.
///
/// # Errors
/// None of them tells one.
pub fn own_namespace(configured: Option<&str>) -> anyhow::Result<String> {
    if let Some(namespace) = configured
        .map(str::to_owned)
        .or_else(|| env::var("POD_NAMESPACE").ok())
    {
        return Ok(namespace);
    }
    let told = fs::read_to_string(NAMESPACE_FILE).context(
        "which namespace are the agents in? give `kubernetes.namespace`, or POD_NAMESPACE in the environment",
    )?;
    match told.trim() {
        "" => bail!("{NAMESPACE_FILE} is empty: give `kubernetes.namespace`"),
        namespace => Ok(namespace.to_owned()),
    }
}

/// One that would lead.
pub(super) struct Candidate {
    api: Api<Lease>,
    name: String,
    /// The version of the Lease that was seen last, and when it was first seen: clocks of other machines do not matter.
    seen: Option<(String, Instant)>,
}

/// What to do about the Lease as it is.
#[derive(Debug, PartialEq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours, or nobody's any more.
    Hold { transitions: i32 },
    /// It is somebody else's.
    Wait,
}

impl Candidate {
    pub(super) fn new(api: Api<Lease>, name: &str) -> Self {
        Self {
            api,
            name: name.to_owned(),
            seen: None,
        }
    }

    /// Takes the lead if nobody has it, renews it if it is ours. Tells whether it is ours until [`LIFETIME`] has passed.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub(super) async fn try_hold(&mut self) -> kube::Result<bool> {
        let found = self.api.get_opt(NAME).await?;
        let step = self.step(found.as_ref(), Instant::now());
        let held = match step {
            Step::Wait => return Ok(false),
            Step::Create => {
                let lease = self.lease(None, 0);
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Hold { transitions } => {
                let version = found.and_then(|lease| lease.metadata.resource_version);
                let lease = self.lease(version, transitions);
                self.api.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match held {
            Ok(_) => Ok(true),
            // Somebody was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn step(&mut self, found: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = found else {
            return Step::Create;
        };
        let spec = lease.spec.as_ref();
        let holder = spec
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default();
        let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        if holder == self.name {
            return Step::Hold { transitions };
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            Some(_) | None => now,
        };
        self.seen = Some((version, since));
        if holder.is_empty() || now.duration_since(since) >= LIFETIME {
            return Step::Hold {
                transitions: transitions.saturating_add(1),
            };
        }
        Step::Wait
    }

    fn lease(&self, version: Option<String>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
                lease_transitions: Some(transitions),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_transitions: Some(3),
                ..LeaseSpec::default()
            }),
        }
    }

    fn candidate() -> Candidate {
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        Candidate::new(Api::namespaced(kube::Client::new(nobody, "x"), "x"), "n1")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_when_its_holder_has_been_silent_for_its_lifetime() {
        let mut candidate = candidate();
        let begun = Instant::now();
        assert_eq!(candidate.step(None, begun), Step::Create);
        assert_eq!(candidate.step(Some(&held_by("n2", "7")), begun), Step::Wait);
        let late = begun + LIFETIME - Duration::from_millis(1);
        assert_eq!(candidate.step(Some(&held_by("n2", "7")), late), Step::Wait);
        assert_eq!(
            candidate.step(Some(&held_by("n2", "8")), late),
            Step::Wait,
            "it was renewed"
        );
        assert_eq!(
            candidate.step(Some(&held_by("n2", "8")), begun + LIFETIME),
            Step::Wait
        );
        let silent = late + LIFETIME;
        assert_eq!(
            candidate.step(Some(&held_by("n2", "8")), silent),
            Step::Hold { transitions: 4 }
        );
        assert_eq!(
            candidate.step(Some(&held_by("n1", "9")), silent),
            Step::Hold { transitions: 3 }
        );
        assert_eq!(
            candidate.step(Some(&held_by("", "9")), begun),
            Step::Hold { transitions: 4 }
        );
    }
}
