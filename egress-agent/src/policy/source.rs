//! Where policies come from on a host: files, directories of them, and the patterns of `--allow`.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    compile::compile,
    document::{API_VERSION, ClusterEgressPolicy, Document, EgressPolicy},
    host_pattern::HostPattern,
    problem::{LoadError, LoadErrors, Place, Position, Step, quoted},
    rule::Policy,
    set::{self, Duplicate, PolicySet, Settings},
    yaml::{self, Located, Node},
};

/// Largest file: etcd takes no larger object than 1.5 MiB, and 10,000 rules are about 1 MiB.
const MAX_FILE: u64 = 8 * 1024 * 1024;
/// Most files of a directory.
const MAX_FILES: usize = 10_000;
/// The files of a directory that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Files, directories and patterns that together make a [`PolicySet`].
#[derive(Debug, Clone, Default)]
pub struct PolicySource {
    paths: Vec<PathBuf>,
    patterns: Vec<HostPattern>,
    settings: Settings,
}

/// The policies of one file.
#[derive(Debug)]
pub struct LoadedFile {
    /// The file.
    pub path: PathBuf,
    /// What it holds, or everything that is wrong with it.
    pub policies: Result<Vec<Policy>, Vec<LoadError>>,
}

impl PolicySource {
    /// A source without policies.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self {
            paths: Vec::new(),
            patterns: Vec::new(),
            settings,
        }
    }

    /// Adds files, or directories whose `*.yaml`, `*.yml` and `*.json` files are read (without those that begin with a
    /// dot, and not those of directories in them).
    #[must_use]
    pub fn with_paths(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.paths.extend(paths);
        self
    }

    /// Adds host patterns that every workload may reach on the default ports: `--allow`.
    #[must_use]
    pub fn with_patterns(mut self, patterns: impl IntoIterator<Item = HostPattern>) -> Self {
        self.patterns.extend(patterns);
        self
    }

    /// The files and directories.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Reads everything, as a set.
    ///
    /// # Errors
    /// As [`Self::load_policies`].
    pub fn load(&self) -> Result<PolicySet, LoadErrors> {
        Ok(PolicySet::build(self.load_policies()?, self.settings)?)
    }

    /// Reads everything. No two of the policies have one name.
    ///
    /// # Errors
    /// Every error of every file: one broken file fails the whole, because a set that lacks its denials would allow too
    /// much.
    pub fn load_policies(&self) -> Result<Vec<Policy>, LoadErrors> {
        let mut policies = Vec::new();
        let mut errors = Vec::new();
        for file in self.files()? {
            match load_file(&file) {
                Ok(loaded) => policies.extend(loaded),
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return Err(LoadErrors(errors));
        }
        if !self.patterns.is_empty() {
            policies.push(Policy::of_command_line(self.patterns.clone()));
        }
        let duplicates = set::duplicates(&policies);
        if !duplicates.is_empty() {
            return Err(duplicates.into());
        }
        Ok(policies)
    }

    /// What holds for the whole set.
    #[must_use]
    pub const fn settings(&self) -> Settings {
        self.settings
    }

    /// Reads every file for itself.
    ///
    /// # Errors
    /// A directory cannot be listed, or a path is not there.
    pub fn load_each(&self) -> Result<Vec<LoadedFile>, LoadErrors> {
        let load = |path: PathBuf| LoadedFile {
            policies: load_file(&path),
            path,
        };
        Ok(self.files()?.into_iter().map(load).collect())
    }

    fn files(&self) -> Result<BTreeSet<PathBuf>, LoadErrors> {
        let mut files = BTreeSet::new();
        let mut errors = Vec::new();
        for path in &self.paths {
            let found = match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => list(path),
                Ok(_) => Ok(vec![path.clone()]),
                Err(error) => Err(unreadable(path, &error)),
            };
            match found {
                Ok(found) => files.extend(found),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(files)
        } else {
            Err(LoadErrors(errors))
        }
    }
}

/// Reads the policies in a text, as a file named `path` would hold it. A text without any is an error: it may be a file
/// that is being written, and taking it for the absence of policies would set workloads free.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_text(path: &Path, text: &str) -> Result<Vec<Policy>, Vec<LoadError>> {
    let error = |(position, message): Located| LoadError {
        file: path.to_path_buf(),
        position: Some(position),
        message,
    };
    let documents = yaml::parse(text).map_err(|located| vec![error(located)])?;
    if documents.is_empty() {
        let message = "the file holds no policy; remove it, or end its name otherwise, if none is meant";
        return Err(vec![error((Position { line: 1, column: 1 }, message.to_owned()))]);
    }
    let file: Arc<Path> = Arc::from(path);
    let mut policies = Vec::new();
    let mut errors = Vec::new();
    for mut root in documents {
        match read_document(&file, &mut root) {
            Ok(policy) => policies.push(policy),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() {
        Ok(policies)
    } else {
        errors.sort_by_key(|(position, _)| *position);
        Err(errors.into_iter().map(error).collect())
    }
}

fn read_document(file: &Arc<Path>, root: &mut Node) -> Result<Policy, Vec<Located>> {
    match root.text("kind") {
        Some("EgressPolicy") => {
            decode_and_compile(file, root, Document::EgressPolicy as fn(EgressPolicy) -> _)
        }
        Some("ClusterEgressPolicy") => decode_and_compile(
            file,
            root,
            Document::ClusterEgressPolicy as fn(ClusterEgressPolicy) -> _,
        ),
        kind => {
            let found = kind.map_or_else(
                || "the document has no `kind`".to_owned(),
                |kind| format!("`{}` is not a kind of policy", quoted(kind)),
            );
            let position = root.position(&[Step::Field("kind".into())]);
            let allowed = format!("allowed are EgressPolicy and ClusterEgressPolicy of `{API_VERSION}`");
            Err(vec![(position, format!("{found}; {allowed}"))])
        }
    }
}

fn decode_and_compile<T: DeserializeOwned>(
    file: &Arc<Path>,
    root: &mut Node,
    wrap: fn(T) -> Document,
) -> Result<Policy, Vec<Located>> {
    let decoded = yaml::decode(root);
    let mut errors = decoded.errors;
    let Some(document) = decoded.document.map(wrap) else {
        return Err(errors);
    };
    let place = |path: &[Step]| {
        Some(Place {
            file: Arc::clone(file),
            position: root.position(path),
        })
    };
    let problems = match compile(&document, &place) {
        Ok(policy) if errors.is_empty() => return Ok(policy),
        Ok(_) => Vec::new(),
        Err(problems) => problems,
    };
    let located = problems
        .into_iter()
        .map(|problem| (root.position(&problem.path), problem.message));
    errors.extend(located.filter(|(position, _)| !decoded.pruned.contains(position)));
    Err(errors)
}

fn load_file(path: &Path) -> Result<Vec<Policy>, Vec<LoadError>> {
    let text = read_bounded(path).map_err(|error| vec![error])?;
    read_text(path, &text)
}

fn read_bounded(path: &Path) -> Result<String, LoadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    let whole = |message: String| LoadError {
        file: path.to_path_buf(),
        position: None,
        message,
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(whole(format!(
            "the file is larger than {} MiB; split it",
            MAX_FILE / (1024 * 1024)
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        whole(format!("byte {at} is not UTF-8; policy files are UTF-8 text"))
    })
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(|error| unreadable(directory, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, &error))?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_policy = path
            .extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known));
        // Through symbolic links: a ConfigMap's files are links into a directory that is swapped.
        if is_policy && !is_hidden && !path.is_dir() {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(LoadError {
                file: directory.to_path_buf(),
                position: None,
                message: format!("the directory has more than {MAX_FILES} policy files; join some of them"),
            });
        }
    }
    Ok(files)
}

fn unreadable(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError {
        file: path.to_path_buf(),
        position: None,
        message: format!("cannot be read: {error}"),
    }
}

impl From<Vec<Duplicate>> for LoadErrors {
    fn from(duplicates: Vec<Duplicate>) -> Self {
        Self(duplicates.into_iter().map(duplicate_error).collect())
    }
}

fn duplicate_error(duplicate: Duplicate) -> LoadError {
    let first = duplicate
        .first
        .map_or_else(|| "elsewhere".to_owned(), |place| format!("at {place}"));
    LoadError {
        file: duplicate
            .second
            .as_ref()
            .map_or_else(PathBuf::new, |place| place.file.to_path_buf()),
        position: duplicate.second.map(|place| place.position),
        message: format!(
            "{} is already there ({first}); names are unique within a namespace",
            duplicate.policy
        ),
    }
}

#[cfg(test)]
mod tests;
