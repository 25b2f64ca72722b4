//! `explain`: what the policies say of a target.

mod live;
mod question;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
};

use self::question::Question;
use crate::{
    cli::ExplainArgs,
    identity::Workload,
    policy::{
        Host, LoadErrors, Policy, PolicySet, PolicySource, Posture, RequestFacts, Settings, Target,
        Unselected, explain::explain as answer,
    },
};

/// Writes the verdict, the rule that gave it and the reason. Ends with 0 if the target is allowed, 1 if it is denied.
///
/// # Errors
/// The policies cannot be loaded, the target cannot be read, or the output cannot be written.
pub(super) fn explain(args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let question = Question::parse(&args.target)?;
    let settings = Settings {
        unselected: if args.deny_unselected {
            Unselected::Enforce
        } else {
            Unselected::Observe
        },
        audit: false,
    };
    let files = PolicySource::new(settings)
        .with_paths(args.policies.iter().cloned())
        .load_policies()?;
    let asked = match &args.pod {
        Some(pod) => live::ask(args.kubeconfig.as_deref(), pod, files)?,
        None => Asked {
            workload: Workload {
                namespace: args.namespace.clone(),
                namespace_labels: args.namespace_labels.0.clone(),
                labels: args.labels.0.clone(),
                ..Workload::default()
            },
            policies: files,
            broken: Vec::new(),
        },
    };
    tell(args, &question, asked, settings, out)
}

/// Who asks, and by which policies that is judged.
#[derive(Debug)]
struct Asked {
    workload: Workload,
    policies: Vec<Policy>,
    /// What is wrong with policies that would be among them.
    broken: Vec<String>,
}

fn tell(
    args: &ExplainArgs,
    question: &Question,
    asked: Asked,
    settings: Settings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let Asked {
        workload,
        policies,
        broken,
    } = asked;
    let set = PolicySet::build(policies, settings).map_err(LoadErrors::from)?;
    let view = Arc::new(set).view(&workload);
    let address = match &question.host {
        Host::Address(address) => Some(*address),
        Host::Name(_) => args.address,
    };
    let target = Target {
        host: &question.host,
        port: question.port,
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        request: question.path.as_deref().map(|path| RequestFacts {
            method: &args.method,
            path,
        }),
    };
    let explanation = answer(&view, &target, address.is_some());
    let allowed = explanation.verdict.is_allow();
    writeln!(out, "{} {}", if allowed { "allow" } else { "deny" }, args.target)?;
    writeln!(out, "  outcome:  {}", explanation.verdict.outcome.as_str())?;
    writeln!(
        out,
        "  rule:     {}",
        explanation.rule.as_deref().unwrap_or("none")
    )?;
    for reason in &explanation.reasons {
        writeln!(out, "  reason:   {reason}")?;
    }
    let posture = match view.posture() {
        Posture::Enforce => "enforced",
        Posture::Audit => "audited",
        Posture::Observe => "observed",
    };
    let pod = match workload.name.as_str() {
        "" => String::new(),
        name => format!(" (pod {name})"),
    };
    writeln!(
        out,
        "  workload: {posture}, in namespace {}{pod}",
        workload.namespace
    )?;
    for policy in view.policies() {
        writeln!(out, "  selected: {policy}")?;
    }
    for policy in broken {
        writeln!(out, "  broken:   {policy}")?;
    }
    Ok(if allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests;
