//! What comes from rustup and cargo: components, a rustc with its library source, bpf-linker, cargo-deny.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Result, anyhow};
use bpf_build::{LINKER_VERSION, Missing, OLDEST_RUSTC, Places, Tools};

use super::{Advice, Purpose, packages};
use crate::{progress, workspace};

/// A toolchain whose LLVM is surely that of the linker.
const KNOWN_GOOD: &str = "1.95.0";

/// The version that reads our `deny.toml`.
const DENY_VERSION: &str = "0.20.2";

/// Packages that bring a recent rustc and its library source on Debian, and nothing else does there.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

pub(super) fn ensure(purposes: &[Purpose]) -> Result<Vec<Advice>> {
    let mut advice = Vec::new();
    if purposes.contains(&Purpose::Build) {
        advice.extend(kernel_tools()?);
    }
    if purposes.contains(&Purpose::Lint) {
        advice.extend(components());
        advice.extend(deny());
    }
    Ok(advice)
}

/// The tools for the kernel programs, in words.
pub(super) fn tools_line() -> Result<String> {
    find()
        .map(|tools| tools.to_string())
        .map_err(|missing| anyhow!("missing: {}", list(&missing)))
}

/// Where cargo-deny is: ours or the person's own.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let own = workspace::tools().join("bin/cargo-deny");
    own.is_file()
        .then_some(own)
        .or_else(|| which::which("cargo-deny").ok())
}

/// The tools for the kernel programs.
pub(crate) fn find() -> Result<Tools, Vec<Missing>> {
    let rustc = env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    Tools::find(&Places::usual(&workspace::root(), rustc))
}

fn kernel_tools() -> Result<Option<Advice>> {
    let missing = match find() {
        Ok(_) => return Ok(None),
        Err(missing) => missing,
    };
    eprintln!("the kernel programs want {}", list(&missing));
    if missing.contains(&Missing::RustSource)
        && let Some(advice) = library_source()
    {
        return Ok(Some(advice));
    }
    if missing.contains(&Missing::Linker)
        && let Some(advice) = install_by_cargo("bpf-linker", LINKER_VERSION, &[], "about 2 min")
    {
        return Ok(Some(advice));
    }
    // Where the linker was missing too, nobody has asked for its LLVM yet.
    find()
        .map(|_| None)
        .map_err(|missing| anyhow!("the kernel programs still want {}", list(&missing)))
}

/// Tries the ways to a rustc with its library source, the least intrusive one first.
fn library_source() -> Option<Advice> {
    let has_source = || {
        find()
            .err()
            .is_none_or(|missing| !missing.contains(&Missing::RustSource))
    };
    let rustup = which::which("rustup").is_ok();
    let known_good = [
        "toolchain",
        "install",
        KNOWN_GOOD,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ];
    let ways: [&dyn Fn() -> Result<()>; 3] = [
        &|| {
            by_rustup(
                rustup,
                "adding the library source to the toolchain in use",
                &["component", "add", "rust-src"],
            )
        },
        &|| {
            by_rustup(
                rustup,
                "installing a toolchain with its library source",
                &known_good,
            )
        },
        &by_apt,
    ];
    for way in ways {
        if let Err(error) = way() {
            eprintln!("{error:#}; trying another way");
        }
        if has_source() {
            return None;
        }
    }
    let command = if rustup {
        format!("rustup {}", known_good.join(" "))
    } else {
        format!(
            "sudo apt-get install -y --no-install-recommends {}",
            DEBIAN_PACKAGES.join(" ")
        )
    };
    Some(Advice {
        wanted: Missing::RustSource.to_string(),
        command,
    })
}

fn by_rustup(present: bool, what: &str, arguments: &[&str]) -> Result<()> {
    if !present {
        return Err(anyhow!("no rustup here"));
    }
    progress::run(what, "about 20 s", Command::new("rustup").args(arguments))
}

fn by_apt() -> Result<()> {
    if !workspace::is_root() || which::which("apt-get").is_err() {
        return Err(anyhow!("no packages to install here, or not as root"));
    }
    // A suite's first rustc is an old one, and the recent one is in its updates: an old list does not know it.
    if !packaged_rustc_is_recent() {
        packages::apt_update()?;
    }
    if !packaged_rustc_is_recent() {
        return Err(anyhow!("the distribution has no recent rustc"));
    }
    packages::apt_install(&DEBIAN_PACKAGES, "about 1 min")
}

fn packaged_rustc_is_recent() -> bool {
    DEBIAN_PACKAGES.iter().all(|package| {
        let version = packages::apt_version(package);
        version
            .as_deref()
            .and_then(bpf_build::version)
            .is_some_and(|version| version >= OLDEST_RUSTC)
    })
}

/// clippy and rustfmt for the toolchain in use.
fn components() -> Option<Advice> {
    let there = || {
        ["cargo-clippy", "cargo-fmt"]
            .iter()
            .all(|name| which::which(name).is_ok() && answers(name))
    };
    if there() {
        return None;
    }
    let arguments = ["component", "add", "clippy", "rustfmt"];
    if let Err(error) = by_rustup(
        which::which("rustup").is_ok(),
        "adding clippy and rustfmt",
        &arguments,
    ) {
        eprintln!("{error:#}");
    }
    (!there()).then(|| Advice {
        wanted: "clippy and rustfmt".to_owned(),
        command: format!("rustup {}", arguments.join(" ")),
    })
}

/// rustup's proxies are there even for a component that is not.
fn answers(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn deny() -> Option<Advice> {
    if cargo_deny().is_some() {
        return None;
    }
    // It reads one lock file in a second: not worth the time to optimise it.
    install_by_cargo("cargo-deny", DENY_VERSION, &["--debug"], "about 2 min")
}

/// Builds a tool of the project's own from the registry.
fn install_by_cargo(name: &str, version: &str, options: &[&str], how_long: &str) -> Option<Advice> {
    let mut cargo = workspace::cargo("install");
    cargo
        .args([name, "--version", version, "--locked", "--root"])
        .arg(workspace::tools())
        .args(options);
    let error = progress::run(&format!("building {name} {version}"), how_long, &mut cargo).err()?;
    eprintln!("{error:#}");
    Some(Advice {
        wanted: format!("{name} {version}"),
        command: workspace::describe(&cargo),
    })
}

fn list(missing: &[Missing]) -> String {
    missing
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}
