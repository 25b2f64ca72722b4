//! Which module of the agent may use which: data flows one way, and so do the `use` lines.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Modules that know nothing of what flows: every stage may use them, and they use each other at most.
const GROUND: &str = "cluster console drain instance race readiness socket status telemetry";

/// The stages, in the order in which data flows, then what puts them together; each with those that it may use, which
/// stand above it. A new edge is a decision, made here.
const STAGES: [(&str, &str); 13] = [
    ("netns", ""),
    ("kernel", "netns"),
    ("identity", "kernel"),
    // Of the kernel it is the words for what is enforced without a name.
    ("policy", "kernel identity"),
    ("access_log", "identity policy"),
    ("import", "policy access_log"),
    ("dns", "netns kernel identity policy"),
    ("proxy", "netns kernel identity policy access_log dns"),
    ("publish", "identity policy"),
    ("enforcer", "netns kernel identity policy access_log dns proxy"),
    ("config", "identity policy access_log dns proxy"),
    ("cli", "identity policy access_log proxy"),
    (
        "commands",
        "netns kernel identity policy access_log import dns proxy publish enforcer config cli",
    ),
];

pub(super) fn check() -> Result<()> {
    let source = workspace::root().join("egress-agent/src");
    let mut files = Vec::new();
    rust_files(&source, &mut files)?;
    let mut wrong = STAGES
        .iter()
        .enumerate()
        .flat_map(|(at, (_, uses))| upward(at, uses))
        .collect::<Vec<_>>();
    for file in files {
        let inside = file.strip_prefix(&source).unwrap_or(&file);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        wrong.extend(complaints(inside, &text));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", wrong.join("\n  "))
}

fn upward(at: usize, uses: &str) -> Vec<String> {
    let above = |name: &str| STAGES.iter().take(at).any(|(other, _)| *other == name);
    let wrong = names(uses).filter(|name| !above(name));
    wrong
        .map(|name| format!("the table lets a module use {name}, which is not above it"))
        .collect()
}

fn names(list: &str) -> impl Iterator<Item = &str> + Clone {
    list.split(' ').filter(|name| !name.is_empty())
}

/// What the table lets a module use besides itself; none if it is not in the table.
fn allowed(module: &str) -> Option<Vec<&'static str>> {
    let ground = names(GROUND);
    if ground.clone().any(|name| name == module) {
        return Some(ground.collect());
    }
    let (_, uses) = STAGES.iter().find(|(name, _)| *name == module)?;
    Some(ground.chain(names(uses)).collect())
}

/// What is wrong with one file; `inside` is its path below `src`.
fn complaints(inside: &Path, text: &str) -> Vec<String> {
    let Some(module) = inside
        .iter()
        .next()
        .and_then(|first| Path::new(first).file_stem()?.to_str())
    else {
        return Vec::new();
    };
    // They put the stages together: whatever they use is above them.
    if inside.iter().count() == 1 && matches!(module, "lib" | "main") {
        return Vec::new();
    }
    let Some(allowed) = allowed(module) else {
        let place = inside.display();
        return vec![format!(
            "{place}: `{module}` has no place in the order (xtask/src/lint/layers.rs)"
        )];
    };
    // Other names are macros and items at the root.
    let is_module = |name: &str| {
        names(GROUND).any(|other| other == name) || STAGES.iter().any(|(other, _)| *other == name)
    };
    let may = |used: &str| used == module || allowed.contains(&used) || !is_module(used);
    let depth = inside.with_extension("").iter().count();
    let mut used = after(text, "crate::");
    // From inside `mod tests`, one more leads to the same place.
    for ups in [depth, depth + 1] {
        used.extend(after(text, &"super::".repeat(ups)));
    }
    used.iter()
        .filter(|name| !may(name))
        .map(|name| format!("{}: `{module}` must not use `{name}`", inside.display()))
        .collect()
}

/// The first names of all paths that follow `prefix` in code.
fn after(text: &str, prefix: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = code.get(at + prefix.len()..).unwrap_or_default();
        match rest.strip_prefix('{') {
            Some(group) => names.extend(first_names(group)),
            None => names.extend(identifier(rest)),
        }
    }
    names
}

/// The first name of each path of `a::{b, c}, d}`: those at the group's own level.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut level = 0_usize;
    let mut at_start = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => at_start = true,
            _ if at_start && !character.is_whitespace() => {
                names.extend(group.get(at..).and_then(identifier));
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_stage_that_uses_a_higher_one_is_refused_however_it_is_written() {
        for line in [
            "use crate::proxy::Connection;",
            "use crate::{identity::{Workload, pods}, proxy};",
            "fn f() -> crate::proxy::Connection {",
            "use super::super::proxy;",
            "mod tests { use super::super::super::proxy::x; }",
        ] {
            let found = complaints(Path::new("policy/compile.rs"), line);
            assert_eq!(
                found,
                ["policy/compile.rs: `policy` must not use `proxy`"],
                "{line}"
            );
        }
    }

    #[test]
    fn what_flows_down_is_allowed_and_comments_are_not_code() {
        let text = "use crate::{\n    identity::{Workload, x::proxy},\n    policy::Host,\n};\n// crate::proxy\nuse super::proxy;\n";
        assert!(complaints(Path::new("policy/compile.rs"), text).is_empty());
    }

    #[test]
    fn a_module_without_a_place_is_refused() {
        assert_eq!(complaints(Path::new("helpers/x.rs"), "").len(), 1);
    }
}
