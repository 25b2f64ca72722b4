//! YAML text to typed documents, with a line and a column for everything that is wrong.
//!
//! The text becomes a tree whose nodes know where they stand; the typed documents are decoded from the tree. So the
//! types stay free of spans (Kubernetes objects have none), and a path into a document gives a position.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value as Json;
use serde_path_to_error::Segment;
use serde_saphyr::{Localizer, Location, MessageFormatter, Options, Spanned};

use super::problem::{Position, Step};

/// Nobody reads more errors of one document at a time; each costs another decoding.
const MAX_ERRORS: usize = 50;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    position: Position,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    /// Null, a boolean, a number or a text.
    Scalar(Json),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
struct Key {
    position: Position,
    text: String,
}

/// An error and where it is.
pub(super) type Located = (Position, String);

/// Reads every document of a YAML (or JSON) text; empty ones are left out.
///
/// # Errors
/// The first break of YAML's rules, or of the bounds on nesting, nodes and aliases.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Located> {
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
        let position = error.location().map_or(START, position);
        (position, error.render_with_formatter(&PlainMessages))
    })
}

/// What [`decode`] made of a tree.
pub(super) struct Decoded<T> {
    /// The document, without what the errors name; `None` if nothing was left to decode.
    pub(super) document: Option<T>,
    /// Every error.
    pub(super) errors: Vec<Located>,
    /// Where the mappings and sequences stand that something was taken out of: what is wrong with them now may be no
    /// fault of theirs.
    pub(super) pruned: Vec<Position>,
}

/// Decodes a tree, gathering every error rather than the first: what is wrong is taken out of the tree, and the rest
/// decoded again. The document is good only if there are no errors.
pub(super) fn decode<T: DeserializeOwned>(root: &mut Node) -> Decoded<T> {
    let mut decoded = Decoded {
        document: None,
        errors: Vec::new(),
        pruned: Vec::new(),
    };
    while decoded.errors.len() < MAX_ERRORS {
        let error = match serde_path_to_error::deserialize(root.to_json()) {
            Ok(document) => {
                decoded.document = Some(document);
                break;
            }
            Err(error) => error,
        };
        let path = steps(error.path());
        let message = error.into_inner().to_string();
        let place = if message.starts_with("unknown field") {
            root.key_position(&path)
        } else {
            root.position(&path)
        };
        let is_consequence = message.starts_with("missing field") && decoded.pruned.contains(&place);
        if !is_consequence {
            decoded.errors.push((place, message));
        }
        match root.remove(&path) {
            Some(parent) => decoded.pruned.push(parent),
            None => break,
        }
    }
    decoded
}

impl Node {
    /// The text of a field of the root, if it is there and a text.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        match &self.child(&Step::Field(field.to_owned()))?.value {
            Value::Scalar(Json::String(text)) => Some(text),
            Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// Where the value at the end of `path` stands; if it is missing, where the last of its parents does.
    pub(super) fn position(&self, path: &[Step]) -> Position {
        let mut node = self;
        for step in path {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.position
    }

    /// Where the key of the last step stands; for a sequence's element, the element.
    fn key_position(&self, path: &[Step]) -> Position {
        let key = path.split_last().and_then(|(last, parents)| {
            let parent = self.descend(parents)?;
            match (&parent.value, last) {
                (Value::Mapping(entries), Step::Field(field)) => entries
                    .iter()
                    .find(|(key, _)| key.text == *field)
                    .map(|(key, _)| key.position),
                _ => None,
            }
        });
        key.unwrap_or_else(|| self.position(path))
    }

    fn descend(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| node.child(step))
    }

    fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::Mapping(entries), Step::Field(field)) => entries
                .iter()
                .find(|(key, _)| key.text == *field)
                .map(|(_, node)| node),
            (Value::Sequence(nodes), Step::Index(index)) => nodes.get(*index),
            _ => None,
        }
    }

    /// Takes the value at the end of `path` out, and tells where its parent stands.
    fn remove(&mut self, path: &[Step]) -> Option<Position> {
        let (first, rest) = path.split_first()?;
        if rest.is_empty() {
            match (&mut self.value, first) {
                (Value::Mapping(entries), Step::Field(field)) => {
                    entries.retain(|(key, _)| key.text != *field)
                }
                (Value::Sequence(nodes), Step::Index(index)) if *index < nodes.len() => {
                    nodes.remove(*index);
                }
                _ => return None,
            }
            return Some(self.position);
        }
        let child = match (&mut self.value, first) {
            (Value::Mapping(entries), Step::Field(field)) => entries
                .iter_mut()
                .find(|(key, _)| key.text == *field)
                .map(|(_, node)| node),
            (Value::Sequence(nodes), Step::Index(index)) => nodes.get_mut(*index),
            _ => None,
        };
        child?.remove(rest)
    }

    fn to_json(&self) -> Json {
        match &self.value {
            Value::Scalar(scalar) => scalar.clone(),
            Value::Sequence(nodes) => nodes.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => entries
                .iter()
                .map(|(key, node)| (key.text.clone(), node.to_json()))
                .collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            position: position(spanned.referenced),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a sequence or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Json::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Json::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON has no .nan and .inf; no field takes them either, and the error then says what is expected.
        Ok(Value::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Value::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let key = Key {
                position: position(key.referenced),
                text: key.value,
            };
            entries.push((key, access.next_value()?));
        }
        Ok(Value::Mapping(entries))
    }
}

const START: Position = Position { line: 1, column: 1 };

fn position(location: Location) -> Position {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    Position {
        line: number(location.line()),
        column: number(location.column()),
    }
}

pub(super) fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => Step::Index(*index),
            Segment::Map { key } => Step::Field(key.clone()),
            Segment::Enum { variant } => Step::Field(variant.clone()),
            Segment::Unknown => Step::Field(String::new()),
        })
        .collect()
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            // 10,000 rules are about 120,000 nodes.
            max_nodes: 1_000_000,
            max_events: 2_000_000,
            max_documents: 20_000,
        },
        // YAML 1.2: a label's value may be `no` or `on` without quotes.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The library's messages without their `at line .. column ..`, which stands before ours.
struct PlainMessages;

impl MessageFormatter for PlainMessages {
    fn localizer(&self) -> &dyn Localizer {
        self
    }

    fn format_message<'a>(&self, error: &'a serde_saphyr::Error) -> Cow<'a, str> {
        serde_saphyr::UserMessageFormatter.format_message(error)
    }
}

impl Localizer for PlainMessages {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _location: Location) -> Cow<'a, str> {
        base
    }
}
