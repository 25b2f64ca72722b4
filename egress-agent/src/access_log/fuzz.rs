//! What must hold for any text that a user gives as a log's format. The fuzz target and the replay of its corpus call
//! this.

use jiff::tz::TimeZone;

use super::Format;

/// Reading never panics; what is read can be rendered and prints to itself.
///
/// # Panics
/// A promise is broken.
pub fn log_format(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(format) = text.parse::<Format>() else {
        return;
    };
    assert!(
        format.renderer(TimeZone::UTC, false).is_ok(),
        "what was read can be rendered"
    );
    assert_eq!(
        format.to_string().parse::<Format>().as_ref(),
        Ok(&format),
        "a format prints to itself"
    );
}
