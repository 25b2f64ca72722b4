//! squid.conf as squid 5.7 reads it (`cache_cf.cc`, `ConfigParser.cc`): lines, continuations, includes, words, lists in
//! files. What squid would read in a way that cannot be told from here is marked, and never guessed at.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// squid cuts a longer line in two (BUFSIZ).
const LONGEST_LINE: usize = 8191;
/// squid's own bound of nested includes.
const DEEPEST: usize = 16;
/// More files, or bytes in all of them, are no squid.conf but a mistake.
const MOST_FILES: usize = 1000;
const MOST_BYTES: usize = 64 << 20;

/// Where a line begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    file: Arc<str>,
    line: usize,
}

/// How files are read: from a disk, or in tests from memory.
pub trait Files {
    /// The text of a file.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&self, path: &Path) -> Result<String, String>;

    /// The files that a pattern of `include` means, in squid's order.
    ///
    /// # Errors
    /// Why they cannot be found.
    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String>;
}

/// A directive and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    /// Where it stands.
    pub spot: Spot,
    /// Its name and its arguments, without the comment behind them.
    pub words: Vec<String>,
    /// Why it may mean something else to squid, or nothing.
    pub doubt: Option<&'static str>,
}

/// Why a file cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{spot}: {problem}")]
pub struct Broken {
    /// Where.
    pub spot: Spot,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Spot {
    /// A line of a file.
    #[must_use]
    pub fn new(file: &Arc<str>, line: usize) -> Self {
        Self {
            file: Arc::clone(file),
            line,
        }
    }

    fn broken(&self, problem: impl Into<String>) -> Broken {
        Broken {
            spot: self.clone(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What reading has come to.
struct Reader<'a> {
    files: &'a dyn Files,
    directives: Vec<Directive>,
    read: usize,
    bytes: usize,
    /// `configuration_includes_quoted_values on`: words are read in another way from there on.
    quotes: bool,
}

/// Reads a configuration with all that it includes.
///
/// # Errors
/// See [`Broken`].
pub(super) fn read(path: &Path, files: &dyn Files) -> Result<Vec<Directive>, Broken> {
    let mut reader = Reader {
        files,
        directives: Vec::new(),
        read: 0,
        bytes: 0,
        quotes: false,
    };
    let spot = Spot::new(&path.display().to_string().into(), 1);
    reader.file(path, &spot, 0, None)?;
    Ok(reader.directives)
}

impl Reader<'_> {
    fn file(
        &mut self,
        path: &Path,
        from: &Spot,
        depth: usize,
        doubt: Option<&'static str>,
    ) -> Result<(), Broken> {
        if depth > DEEPEST {
            return Err(from.broken("files include each other more than 16 deep"));
        }
        let text = self
            .files
            .read(path)
            .map_err(|error| from.broken(format!("{}: {error}", path.display())))?;
        self.read += 1;
        self.bytes += text.len();
        if self.read > MOST_FILES || self.bytes > MOST_BYTES {
            return Err(from.broken("more than 1000 files or 64 MiB are included"));
        }
        let name: Arc<str> = path.display().to_string().into();
        let mut conditions = 0_usize;
        for (spot, line) in lines(&name, &text)? {
            let doubt = match conditions {
                0 => doubt,
                _ => Some("it stands between `if` and `endif`"),
            };
            if is_statement(&line, "if") {
                conditions += 1;
            } else if is_statement(&line, "endif") {
                conditions = conditions
                    .checked_sub(1)
                    .ok_or_else(|| spot.broken("`endif` without `if`"))?;
            } else if is_statement(&line, "else") {
                // Neither branch is known to hold.
            } else if let Some(patterns) = line
                .strip_prefix("include")
                .filter(|rest| rest.starts_with(is_space))
            {
                for pattern in words(patterns) {
                    let found = self
                        .files
                        .matching(&pattern)
                        .map_err(|error| spot.broken(error))?;
                    for path in found {
                        self.file(&path, &spot, depth + 1, doubt)?;
                    }
                }
            } else {
                self.directive(spot, &line, doubt);
            }
        }
        Ok(())
    }

    fn directive(&mut self, spot: Spot, line: &str, doubt: Option<&'static str>) {
        let words = words(line);
        let Some(name) = words.first() else { return };
        let is_quoting = name == "configuration_includes_quoted_values";
        let doubt = if line.contains("${") {
            Some("it has a macro (`${...}`)")
        } else if self.quotes && line.contains(['"', '\'', '\\', '(']) {
            Some("`configuration_includes_quoted_values` is on")
        } else {
            doubt
        };
        if is_quoting {
            self.quotes = words.get(1).is_none_or(|value| value != "off") || doubt.is_some();
        }
        self.directives.push(Directive { spot, words, doubt });
    }
}

/// Logical lines: comments and empty lines left out, continued ones joined.
fn lines(name: &Arc<str>, text: &str) -> Result<Vec<(Spot, String)>, Broken> {
    let mut found = Vec::new();
    let mut joined: Option<(Spot, String)> = None;
    for (number, line) in text.split('\n').enumerate() {
        let spot = Spot::new(name, number + 1);
        if line.len() >= LONGEST_LINE {
            return Err(spot.broken(
                "squid reads a line of more than 8190 bytes as two: break it, or put the values into a file of their own",
            ));
        }
        if line.contains('\0') {
            return Err(spot.broken("a zero byte, where squid stops reading the line"));
        }
        let line = line.split('\r').next().unwrap_or_default();
        let line = line.trim_start_matches(is_space);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (first, mut whole) = joined.take().unwrap_or((spot, String::new()));
        whole.push_str(line);
        if let Some(continued) = whole.strip_suffix('\\') {
            joined = Some((first, continued.to_owned()));
        } else {
            found.push((first, whole));
        }
    }
    match joined {
        // squid forgets it.
        Some((spot, _)) => {
            Err(spot.broken("the file ends in the middle of this line: squid ignores it then"))
        }
        None => Ok(found),
    }
}

/// isspace(3) in the C locale.
pub(super) const fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Words as they are told apart without quoted values: a `#` at the beginning of one ends the line.
fn words(line: &str) -> Vec<String> {
    line.split(is_space)
        .filter(|word| !word.is_empty())
        .take_while(|word| !word.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn is_statement(line: &str, word: &str) -> bool {
    line.strip_prefix(word)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(is_space))
}

/// A value of an `acl` with the place where it stands.
pub(super) type Value = (Spot, String);

/// The values of an `acl`, those of files read. A quoted word is the name of a file with one value a line.
///
/// # Errors
/// Why they cannot all be known; the ones that are come with it.
pub(super) fn values(spot: &Spot, words: &[String], files: &dyn Files) -> (Vec<Value>, Option<String>) {
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let Some(name) = word.strip_prefix(['"', '\'']) else {
            found.push((spot.clone(), word.clone()));
            continue;
        };
        let name = name.split(['"', '\'']).next().unwrap_or_default();
        let text = match files.read(Path::new(name)) {
            Ok(text) => text,
            Err(error) => return (found, Some(format!("its list {name} cannot be read: {error}"))),
        };
        let file: Arc<str> = name.into();
        for (number, line) in text.split('\n').enumerate() {
            let line = line.trim_matches(is_space);
            let value = without_comment(line);
            if !value.is_empty() {
                found.push((Spot::new(&file, number + 1), value.to_owned()));
            }
        }
        if index + 1 < words.len() {
            let problem =
                "squid may ignore what stands behind a list's file: give each file a line of its own";
            return (found, Some(problem.to_owned()));
        }
    }
    (found, None)
}

/// A line of a list's file up to a `#` at the beginning of a word.
fn without_comment(line: &str) -> &str {
    let mut previous_is_space = true;
    for (at, character) in line.char_indices() {
        if character == '#' && previous_is_space {
            return line.get(..at).unwrap_or_default().trim_end_matches(is_space);
        }
        previous_is_space = is_space(character);
    }
    line
}
