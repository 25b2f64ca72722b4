//! `egress-agent import`: what a squid.conf allows, as policies. What cannot be said in policies is told line by line, and
//! never allowed: the policies allow at most what squid did.
//!
//! `conf` reads the file, `acl` and `access` its lists, `plan` works out what they allow, `emit` writes that down.

mod access;
mod acl;
mod address_set;
mod conf;
mod directives;
mod domains;
mod emit;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod plan;
mod regex;
mod report;

pub use conf::{Broken, Files, Spot};
pub use files::Disk;
pub use report::{Finding, Import, Weight};

use std::path::Path;

use ipnet::IpNet;

use self::{
    address_set::AddressSet,
    directives::Configuration,
    emit::{Labels, documents},
    plan::Question,
};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the policies hold; as kubectl has it if absent.
    pub namespace: Option<String>,
    /// What they are called; `squid` if absent.
    pub name: Option<String>,
    /// Where the workloads' requests came from.
    pub sources: Vec<IpNet>,
    /// Ports that are used, of the ranges that squid lets through.
    pub ports: Vec<u16>,
    /// Acls that are taken for always or never matching.
    pub assumed: Vec<(String, bool)>,
}

/// Reads the configuration at `path` and all that it includes, and makes policies of it.
///
/// # Errors
/// squid would not read it, or not all of it.
pub fn import(path: &Path, files: &dyn Files, options: &Options) -> Result<Import, Broken> {
    let directives = conf::read(path, files)?;
    let mut configuration = Configuration::read(&directives, files)?;
    for (name, matches) in &options.assumed {
        configuration.assume(name, *matches);
    }
    let source: AddressSet = options
        .sources
        .iter()
        .map(|net| AddressSet::of(*net))
        .fold(AddressSet::default(), |all, more| all.union(&more));
    let question = Question {
        acls: &configuration.acls,
        lists: &configuration.lists,
        source: (!source.is_empty()).then_some(&source),
        ports: &options.ports,
    };
    let plan = question.answer();
    let labels = Labels {
        namespace: options.namespace.as_deref(),
        name: options.name.as_deref().unwrap_or("squid"),
    };
    let documents = documents(&plan, labels);
    let source = (!source.is_empty()).then_some(&source);
    Ok(report::report(configuration, &plan, documents, source))
}
