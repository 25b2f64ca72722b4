//! `cargo xtask VERB`: everything that is done with this repository, one verb per file. The same verbs serve
//! a person and CI.
#![forbid(unsafe_code)]

mod build;
mod cluster;
mod crdgen;
mod demo;
mod image;
mod lint;
mod progress;
mod run;
mod setup;
mod soak;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands. Each first installs what it needs, or prints the command that does.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building, testing and linting need (about 3 min the first time, then less than a second)
    Setup,
    /// Build the agent with the kernel programs in it (about 2 min the first time)
    Build(build::Arguments),
    /// Write the definitions of the custom resources (three files below deploy) from the types of the policies
    Crdgen,
    /// Watch the enforcer allow one name and refuse another, in a network of its own (root; about 10 s once
    /// built)
    Demo,
    /// Run all tests: the unit tests, then those on the real kernel (root; about 10 min)
    Test(test::Arguments),
    /// Run the tests that take long, and print what they have measured (root; about 15 min)
    Soak,
    /// Run the tests of the kernel programs on other kernels, in qemu: `cargo xtask vm 6.1 newest -- sockets::`
    Vm(vm::Arguments),
    /// Write the agent's container image, without a container engine (about 5 min the first time)
    Image(image::Arguments),
    /// Run the image on a real Kubernetes, two nodes on this machine: `cargo xtask cluster test`
    Cluster(cluster::Arguments),
    /// Check formatting, lints, dependencies, the order of the modules and the words (about 3 min)
    Lint,
    /// Build the agent and run it with these arguments: `cargo xtask run -- exec --allow example.org -- curl
    /// ...`
    Run(run::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Setup => setup::verb(),
        Verb::Build(arguments) => build::verb(&arguments),
        Verb::Crdgen => crdgen::verb(),
        Verb::Demo => demo::verb(),
        Verb::Test(arguments) => test::verb(&arguments),
        Verb::Soak => soak::verb(),
        Verb::Vm(arguments) => vm::verb(&arguments),
        Verb::Image(arguments) => image::verb(&arguments),
        Verb::Cluster(arguments) => cluster::verb(&arguments),
        Verb::Lint => lint::verb(),
        Verb::Run(arguments) => run::verb(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cargo xtask: {error:#}");
        ExitCode::FAILURE
    })
}
