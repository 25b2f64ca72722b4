//! The kernel programs as the kernel's target compiles them.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use bpf_build::{Endian, Request};

use crate::{setup, workspace};

/// Compiles them with warnings denied. By clippy if the compiler that has its library source has one: the
/// clippy of another toolchain could not read what that compiler wrote.
pub(super) fn check() -> Result<()> {
    let tools = setup::kernel_tools().map_err(|_| anyhow!("run `cargo xtask setup`"))?;
    let beside = tools
        .rustc
        .binary
        .parent()
        .context("the compiler is in a directory")?;
    let has_clippy = ["cargo-clippy", "clippy-driver"]
        .iter()
        .all(|name| beside.join(name).is_file());
    let (verb, cargo) = if has_clippy {
        ("clippy", beside.join("cargo"))
    } else {
        println!(
            "({} has no clippy beside it: the compiler's own warnings must do)",
            tools.rustc
        );
        (
            "rustc",
            env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from),
        )
    };
    let request = Request {
        root: workspace::root(),
        cargo,
        target_dir: workspace::target()?.join("bpf"),
        endian: if cfg!(target_endian = "big") {
            Endian::Big
        } else {
            Endian::Little
        },
        host_arch: env::consts::ARCH.to_owned(),
        verb,
        args: ["--", "-D", "warnings"].map(str::to_owned).to_vec(),
    };
    bpf_build::compile(&request, &tools)
        .map(|_| ())
        .context("egress-ebpf")
}
