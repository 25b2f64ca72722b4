//! docs/programs.md: how large the kernel programs are, as every kernel of the matrix took them. It is committed, so that
//! growth is seen where changes are reviewed.

mod table;

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use bpf_build::{Endian, Request};

use self::table::Table;
use super::{guest::Ran, kernels::Kernel};
use crate::{setup, workspace};

/// The test that tells the figures.
pub(super) const TEST: &str = "programs::the_verifier_is_far_from_its_limit";

/// The variable that makes it print them.
pub(super) const TELL: &str = "EGRESS_TESTS_TELL_PROGRAMS";

/// The programs' figures of one run.
#[derive(Debug, Default)]
pub(super) struct Programs {
    table: Table,
}

impl Programs {
    /// Adds what a guest has told, if it was asked.
    pub(super) fn add(&mut self, kernel: &Kernel, ran: &Ran) {
        for line in &ran.lines {
            self.table.read_told(&kernel.wanted, line);
        }
        self.table.name(&kernel.wanted, &kernel.release);
    }

    /// Writes the figures over the committed ones; those of kernels that did not run stay.
    pub(super) fn write(mut self) -> Result<()> {
        self.table.set_stacks(&stacks()?);
        let path = path();
        let mut table = committed()?;
        table.replace_by(self.table);
        fs::write(&path, table.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
        Ok(())
    }

    /// What has grown since the table was committed.
    pub(super) fn complaints(mut self) -> Result<Vec<String>> {
        if self.table.is_empty() {
            return Ok(Vec::new());
        }
        self.table.set_stacks(&stacks()?);
        Ok(committed()?.growth(&self.table))
    }
}

fn path() -> PathBuf {
    workspace::root().join("docs/programs.md")
}

fn committed() -> Result<Table> {
    let path = path();
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Table::parse(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Table::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The stack of every program, in bytes. The kernel does not tell it; the object does.
fn stacks() -> Result<BTreeMap<String, u32>> {
    let tools = setup::kernel_tools().map_err(|_| anyhow!("run `cargo xtask setup`"))?;
    let request = Request {
        root: workspace::root(),
        cargo: env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from),
        target_dir: workspace::target()?.join("bpf"),
        endian: Endian::Little,
        host_arch: env::consts::ARCH.to_owned(),
        verb: "build",
        args: Vec::new(),
    };
    let object = bpf_build::compile(&request, &tools).context("egress-ebpf")?;
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    bpf_build::stacks(&bytes).with_context(|| format!("{}", object.display()))
}
