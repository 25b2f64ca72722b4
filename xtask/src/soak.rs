//! `cargo xtask soak`: the tests that take long, because they wait for what only shows in time or in great numbers. The figures
//! of docs/soak.md are what they print.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    build,
    setup::{self, Purpose},
    test::{self, required::Required},
    workspace,
};

/// Without it the tests are skipped.
const SWITCH: (&str, &str) = ("EGRESS_TESTS_SOAK", "1");

pub(crate) fn verb() -> Result<ExitCode> {
    workspace::demand_root("soak")?;
    setup::ensure(&[Purpose::Build, Purpose::Demo, Purpose::Test])?;
    // As it is installed: a debug build's memory and speed say nothing.
    let agent = build::agent(true)?;
    let required = Required::read()?;
    let names: Vec<String> = required.long().map(str::to_owned).collect();
    let (tally, failure) = test::on_the_kernel(&agent, &names, &[SWITCH])?;
    let missing = names
        .iter()
        .filter(|name| tally.ending(name).is_none())
        .map(|name| format!("did not run: {name}"));
    let complaints: Vec<String> = failure.into_iter().chain(missing).collect();
    Ok(test::close(&tally, &complaints))
}
