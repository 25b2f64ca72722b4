//! The images on the nodes: the agent's, and two for its pods. No registry can be reached.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::output;
use crate::{
    image::{
        self, Arch,
        archive::{Image, Layer},
    },
    setup,
};

/// Writes all archives to `directory`.
pub(super) fn write(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let agent = format!("localhost/egress-agent:{version}");
    image::write(Arch::own()?, &agent, &directory.join("agent.tar"))?;
    let busybox = directory.with_file_name("root").join("bin/busybox");
    let mut layer = Layer::default();
    with_busybox(&mut layer, &busybox)?;
    // Whatever holds a pod's namespaces has only to stay.
    image("pause:1", layer, &["/bin/sleep", "2147483647"])?.write(&directory.join("pause.tar"))?;
    let mut layer = Layer::default();
    with_busybox(&mut layer, &busybox)?;
    // busybox's own wget crashes: it is linked statically, and the C library's resolver is not made for that.
    with_closure(
        &mut layer,
        &setup::locate("curl").context("curl is not installed")?,
    )?;
    image("tools:1", layer, &["/bin/sh"])?.write(&directory.join("tools.tar"))
}

fn image(name: &str, layer: Layer, command: &[&str]) -> Result<Image> {
    Ok(Image {
        name: format!("localhost/{name}"),
        arch: Arch::own()?.name(),
        entrypoint: Vec::new(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".to_owned()],
        labels: Vec::new(),
        layer,
    })
}

fn with_busybox(layer: &mut Layer, busybox: &Path) -> Result<()> {
    for directory in [
        "bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var",
    ] {
        layer.directory(directory)?;
    }
    let program = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    layer.file("bin/busybox", 0o755, &program)?;
    let applets = output(Command::new(busybox).arg("--list"))?;
    for applet in String::from_utf8_lossy(&applets)
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    layer.file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n")
}

/// A program in /usr/bin, with the libraries that the loader finds for it, each at its own place.
fn with_closure(layer: &mut Layer, program: &Path) -> Result<()> {
    let program = fs::canonicalize(program).with_context(|| format!("cannot find {}", program.display()))?;
    let name = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    layer.file(&format!("usr/bin/{name}"), 0o755, &fs::read(&program)?)?;
    let listed = output(Command::new("ldd").arg(&program))?;
    let libraries: BTreeSet<PathBuf> = String::from_utf8_lossy(&listed)
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect();
    for library in libraries {
        let bytes = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        let place = library
            .strip_prefix("/")
            .unwrap_or(&library)
            .display()
            .to_string();
        layer.file(&place, 0o755, &bytes)?;
    }
    Ok(())
}
