//! The attempts as a table: for who watches the tests, and for THREATS.md.

use std::fmt::Write as _;

use super::{Attack, Told, Verdict};

/// Prints a line for each attempt; `cargo xtask test` makes one table of all of them.
pub fn print(told: &[Told]) {
    for one in told {
        let verdict = match &one.verdict {
            Verdict::Held => "held".to_owned(),
            Verdict::Open => "OPEN".to_owned(),
            Verdict::OutOfScope => "out of scope".to_owned(),
            Verdict::NotHere(why) => format!("not here: {why}"),
            Verdict::Failed(why) => format!("FAILED: {why}"),
        };
        println!(
            "attack | {} | {} | {} | {} | {verdict}",
            one.attack.id, one.attack.what, one.attack.expect, one.seen
        );
    }
}

/// The table of THREATS.md.
#[must_use]
pub fn markdown(attacks: &[Attack]) -> String {
    let mut text = String::from(
        "| id | attempt | what the client sees | record | what shuts it |\n| --- | --- | --- | --- | --- |\n",
    );
    for attack in attacks {
        let shut = match (&attack.open, &attack.out) {
            (Some(why), _) => format!("**open**: {why}. To be shut by {}", attack.shut),
            (None, Some(why)) => format!("out of scope: {why}"),
            (None, None) => attack.shut.clone(),
        };
        let sees = match attack.expect.as_str() {
            "-" => "nothing arrives".to_owned(),
            words => words.to_owned(),
        };
        let record = match attack.log.as_str() {
            "-" => "",
            word => word,
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            text,
            "| {} | {} | {sees} | {record} | {shut} |",
            attack.id, attack.what
        );
    }
    text
}
