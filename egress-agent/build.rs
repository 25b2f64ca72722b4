//! Compiles the kernel programs, or takes those that `EGRESS_EBPF_OBJECT` names, to `OUT_DIR/egress-ebpf`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use bpf_build::{Endian, Places, Request, Tools};

/// Names an object to embed instead of compiling one: for a machine without the tools.
const PREBUILT: &str = "EGRESS_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let object = match env::var_os(PREBUILT) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            PathBuf::from(path)
        }
        None => compile()?,
    };
    let embedded = variable("OUT_DIR")?.join("egress-ebpf");
    let mut bytes = fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?;
    bpf_build::mend_names(&mut bytes)?;
    fs::write(&embedded, bytes).map_err(|error| format!("{}: {error}", embedded.display()))?;
    Ok(())
}

fn compile() -> Result<PathBuf, Box<dyn Error>> {
    let root = variable("CARGO_MANIFEST_DIR")?.join("..").canonicalize()?;
    for source in ["egress-ebpf", "egress-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let tools = Tools::find(&Places::usual(&root, variable("RUSTC")?)).map_err(|missing| {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        println!(
            "cargo::warning=the kernel programs want {}: run `cargo xtask setup`",
            missing.join(" and ")
        );
        "run `cargo xtask setup`"
    })?;
    println!("{tools}");
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out: one inner target directory serves every profile.
    let target_dir = variable("OUT_DIR")?
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not where cargo puts it")?
        .join("bpf");
    let request = Request {
        root,
        cargo: variable("CARGO")?,
        target_dir,
        endian: if env::var("CARGO_CFG_TARGET_ENDIAN")? == "big" {
            Endian::Big
        } else {
            Endian::Little
        },
        host_arch: env::var("CARGO_CFG_TARGET_ARCH")?,
        verb: "build",
        args: Vec::new(),
    };
    Ok(bpf_build::compile(&request, &tools)?)
}

fn variable(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: this is run by cargo").into())
}
