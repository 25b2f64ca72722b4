//! The regular expressions that mean a domain; no others are understood.

use super::domains::Pattern;
use crate::policy::DomainName;

/// Beginnings of expressions, and whether the name that follows matches itself, and whether what is below it does.
const BEGINNINGS: [(&str, bool, bool); 5] = [
    (r"(^|\.)", true, true),
    (r"^(.*\.)?", true, true),
    (r"^(.+\.)?", true, true),
    (r"\.", false, true),
    ("^", true, false),
];

/// The domain that an expression of `dstdom_regex` means. `is_blind`: without regard to case (`-i`).
pub(super) fn as_pattern(text: &str, is_blind: bool) -> Option<Pattern> {
    let inner = text.strip_suffix('$')?;
    let (rest, itself, below) = BEGINNINGS
        .iter()
        .find_map(|(beginning, itself, below)| Some((inner.strip_prefix(beginning)?, *itself, *below)))?;
    let mut name = String::new();
    let mut letters = rest.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.next() == Some('.') => name.push('.'),
            letter if letter.is_ascii_digit() || letter == '-' || letter == '_' => name.push(letter),
            // Hosts are in lower case when squid compares them.
            letter if letter.is_ascii_lowercase() || (is_blind && letter.is_ascii_uppercase()) => {
                name.push(letter.to_ascii_lowercase());
            }
            _ => return None,
        }
    }
    if name.starts_with('.') || name.ends_with('.') {
        return None;
    }
    Some(Pattern {
        name: DomainName::parse(&name).ok()?,
        itself,
        below,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_mean_a_domain_are_told_from_others() {
        let told = |text: &str| {
            as_pattern(text, false).map(|pattern| (pattern.name.to_string(), pattern.itself, pattern.below))
        };
        assert_eq!(
            told(r"^www\.a\.test$"),
            Some(("www.a.test".to_owned(), true, false))
        );
        assert_eq!(told(r"(^|\.)a\.test$"), Some(("a.test".to_owned(), true, true)));
        assert_eq!(told(r"^(.*\.)?a\.test$"), Some(("a.test".to_owned(), true, true)));
        assert_eq!(told(r"\.a\.test$"), Some(("a.test".to_owned(), false, true)));
        for other in [
            "a.test$",
            r"a\.test$",
            r"^a\.test",
            r"^a.test$",
            r"^a\.(b|c)$",
            r"^A\.test$",
            r"(.*\.)?a\.test$",
            r"^\.a\.test$",
            r"\.$",
            "^$",
            "",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
        assert!(as_pattern(r"^A\.test$", true).is_some());
    }
}
