//! `cargo xtask crdgen`: the custom resource definitions, from the types of the policies.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{
    setup::{self, Purpose},
    workspace,
};

/// Where they stand, and with which options they are made. A test of the agent says when they are no longer current.
const FILES: [(&str, &[&str]); 3] = [
    ("deploy/base/crds.yaml", &[]),
    // A chart is installed without what lies beside it.
    ("deploy/helm/egress-enforcer/crds/crds.yaml", &[]),
    ("deploy/cel/crds.yaml", &["--cel"]),
];

pub(crate) fn verb() -> Result<ExitCode> {
    setup::ensure(&[Purpose::Build])?;
    for (name, options) in FILES {
        let made = workspace::cargo("run")
            .args(["--quiet", "--locked", "--package", "egress-agent", "--", "crdgen"])
            .args(options)
            .output()
            .context("cannot run cargo")?;
        ensure!(
            made.status.success(),
            "the agent failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let file = workspace::root().join(name);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(&file, made.stdout).with_context(|| format!("cannot write {name}"))?;
        println!("{name} is current");
    }
    Ok(ExitCode::SUCCESS)
}
