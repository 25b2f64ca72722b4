//! `crdgen`: the custom resource definitions, for `deploy`.

use std::{io::Write, process::ExitCode};

use crate::{cli::CrdgenArgs, policy::crd};

/// Writes both, as YAML.
///
/// # Errors
/// The output cannot be written.
pub(super) fn run(args: &CrdgenArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let rules = if args.cel {
        crd::Rules::Cel
    } else {
        crd::Rules::None
    };
    out.write_all(crd::yaml(rules).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
