//! Where things are, and the cargo that runs us.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    // Cargo tells the directory at run time too: a workspace that was moved after xtask was built is found.
    let here =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or_else(|| here.clone(), Path::to_owned)
}

/// Cargo's target directory, wherever the person has it: the one that xtask itself was built into.
pub(crate) fn target() -> Result<PathBuf> {
    let own = env::current_exe().context("where this program is")?;
    own.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("this program is run by cargo")
}

/// Where `setup` installs tools of the project's own.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// A cargo command, to be run in the workspace.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(verb).current_dir(root());
    // What cargo has told xtask of itself. ring's build script asks for them (`rerun-if-env-changed`), so ring and all that
    // stands on it would be compiled again after each cargo that was run by hand, and after each that xtask ran.
    for (name, _) in env::vars_os() {
        let is_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_ours) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command that speaks for itself on the terminal.
///
/// # Errors
///
/// It cannot be started, or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// The command as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether we are root in this user namespace.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What only root can do is refused in one sentence with the command to type instead.
///
/// # Errors
///
/// We are not root.
pub(crate) fn demand_root(verb: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`{verb}` loads programs into the kernel and makes network namespaces, which takes root. Run:\n  \
         sudo -E env PATH=\"$PATH\" cargo xtask {verb}"
    )
}
