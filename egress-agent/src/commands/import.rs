//! `import`: policies of a squid.conf.

use std::{fs, io::Write, path::Path, process::ExitCode};

use anyhow::Context;

use crate::{
    cli::ImportArgs,
    import::{self, Disk, Import, Options},
    policy,
};

/// Writes the policies, and what there is to say to `err`.
///
/// # Errors
/// squid would not read the file, or the policies cannot be written.
pub(super) fn import(
    args: &ImportArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let options = Options {
        namespace: args.namespace.clone(),
        name: Some(args.name.clone()),
        sources: args.sources.clone(),
        ports: args.ports.clone(),
        assumed: args.assumed.clone(),
    };
    let disk = Disk::new(&args.file, args.root.as_deref());
    let imported = import::import(&args.file, &disk, &options)?;
    let target = args.output.as_ref().map(|output| {
        if output.is_dir() {
            output.join(format!("{}.yaml", args.name))
        } else {
            output.clone()
        }
    });
    let text = format!(
        "# Made by `egress-agent import` of {}.\n{}",
        args.file.display(),
        imported.policies
    );
    // As `check` will read it: a namespace or a name that none can have is told here.
    let name = target.as_deref().unwrap_or_else(|| Path::new("policies"));
    policy::read_text(name, &text).map_err(|errors| anyhow::anyhow!("{}", policy::LoadErrors(errors)))?;
    match &target {
        Some(path) => fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?,
        None => out.write_all(text.as_bytes())?,
    }
    tell(&imported, err)?;
    Ok(if imported.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(imported: &Import, err: &mut dyn Write) -> anyhow::Result<()> {
    for finding in &imported.findings {
        writeln!(err, "{finding}")?;
    }
    if !imported.hints.is_empty() {
        writeln!(
            err,
            "for the configuration of `egress-agent run` (docs/configuration.md):"
        )?;
        for hint in &imported.hints {
            writeln!(err, "    {hint}")?;
        }
    }
    Ok(())
}
