//! What is wrong with a document, and where.

use std::{
    borrow::Cow,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A place in a file, both from 1. Columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// A place in a file on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Where in it.
    pub position: Position,
}

/// One step from a document's root to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into a mapping, by key.
    Field(String),
    /// Into a sequence, by position from 0.
    Index(usize),
}

/// Something wrong in a document that has the right shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The way from the document's root to the value that is wrong.
    pub path: Vec<Step>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// Why a policy file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoadError {
    /// The file or directory.
    pub file: PathBuf,
    /// Where in it; `None` if the file could not be read at all.
    pub position: Option<Position>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// Every error of a load; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadErrors(pub Vec<LoadError>);

impl LoadErrors {
    /// The reading itself failed, before it could tell which file is at fault.
    pub(super) fn unread(error: &dyn std::error::Error) -> Self {
        Self(vec![LoadError {
            file: PathBuf::from("policies"),
            position: None,
            message: format!("cannot be read: {error}"),
        }])
    }
}

/// Most bytes of what somebody has written that a message repeats.
const QUOTED: usize = 100;

/// The beginning of a text, at most `most` bytes and an ellipsis. Who writes an object must not say how much everybody who
/// tells of it has to carry.
#[must_use]
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let begin = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
    Cow::Owned(format!("{begin}…"))
}

/// What a document says, for a message about it.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    shortened(text, QUOTED)
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.position.line)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{}", quoted(name)),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl fmt::Display for Problem {
    /// `spec.egress[0].to[1].domain: message`, for documents that have no file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: String = self.path.iter().map(ToString::to_string).collect();
        write!(f, "{}: {}", path.trim_start_matches('.'), self.message)
    }
}

impl fmt::Display for LoadError {
    /// `file:line:column: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(position) => write!(f, "{}:{position}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

impl fmt::Display for LoadErrors {
    /// One error a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}
impl std::error::Error for LoadErrors {}
