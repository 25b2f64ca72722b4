//! `check`: load policy files and tell what is wrong with them.

use std::{io::Write, process::ExitCode};

use crate::{
    cli::CheckArgs,
    policy::{LoadErrors, Policy, PolicySet, PolicySource, Settings},
};

/// Writes a line for each good file and every error of the others.
///
/// # Errors
/// The output cannot be written.
pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let source = PolicySource::new(Settings::default()).with_paths(args.files.iter().cloned());
    let mut good = true;
    match source.load_each() {
        Err(errors) => {
            good = false;
            writeln!(out, "{errors}")?;
        }
        Ok(files) => {
            let mut policies = Vec::new();
            for file in files {
                match file.policies {
                    Ok(found) => {
                        let rules = found.iter().map(Policy::rule_count).sum();
                        let path = file.path.display();
                        writeln!(
                            out,
                            "{path}: OK, {}, {}",
                            count(found.len(), "policy", "policies"),
                            count(rules, "rule", "rules")
                        )?;
                        policies.extend(found);
                    }
                    Err(errors) => {
                        good = false;
                        writeln!(out, "{}", LoadErrors(errors))?;
                    }
                }
            }
            if let Err(duplicates) = PolicySet::build(policies, Settings::default()) {
                good = false;
                writeln!(out, "{}", LoadErrors::from(duplicates))?;
            }
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(files: &[(&str, &str)]) -> (ExitCode, String) {
        let directory = tempfile::tempdir().unwrap();
        let paths = files.iter().map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let args = CheckArgs {
            files: paths.collect(),
        };
        let mut out = Vec::new();
        let status = check(&args, &mut out).unwrap();
        let prefix = format!("{}/", directory.path().display());
        (status, String::from_utf8(out).unwrap().replace(&prefix, ""))
    }

    const GOOD: &str = "\
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: a}
spec:
  egress:
  - to: [{domain: example.com}]
";

    #[test]
    fn good_files_are_told_with_counts() {
        let (status, out) = run(&[("a.yaml", GOOD), ("b.yaml", &GOOD.replace("name: a", "name: b"))]);
        assert_eq!(
            out,
            "a.yaml: OK, 1 policy, 1 rule\nb.yaml: OK, 1 policy, 1 rule\n"
        );
        assert_eq!(status, ExitCode::SUCCESS);
    }

    #[test]
    fn one_bad_file_fails_the_check_and_every_error_of_it_is_told() {
        let bad = GOOD
            .replace("example.com", "'*.com'")
            .replace("spec:", "spec:\n  mod: x");
        let (status, out) = run(&[("bad.yaml", &bad), ("good.yaml", GOOD)]);
        let lines: Vec<_> = out.lines().collect();
        assert!(
            lines[0].starts_with("bad.yaml:5:3: unknown field `mod`, expected one of"),
            "{out}"
        );
        assert!(
            lines[1].starts_with("bad.yaml:7:19: `*.com` would match"),
            "{out}"
        );
        assert_eq!(lines[2], "good.yaml: OK, 1 policy, 1 rule");
        assert_eq!(status, ExitCode::FAILURE);
    }

    #[test]
    fn the_same_policy_in_two_files_fails_the_check() {
        let (status, out) = run(&[("a.yaml", GOOD), ("b.yaml", GOOD)]);
        assert!(
            out.contains("b.yaml:1:1: EgressPolicy default/a is already there (at a.yaml:1)"),
            "{out}"
        );
        assert_eq!(status, ExitCode::FAILURE);
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let args = CheckArgs {
            files: vec!["/nonexistent/a.yaml".into()],
        };
        let mut out = Vec::new();
        assert_eq!(check(&args, &mut out).unwrap(), ExitCode::FAILURE);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "/nonexistent/a.yaml: cannot be read: No such file or directory (os error 2)\n"
        );
    }
}
