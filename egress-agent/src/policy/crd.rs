//! The custom resource definitions, made from the types of the documents.

use kube::core::schema::OptionalEnum;
use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::transform_subschemas};
use serde_json::{Map, Value as Json, json};

use super::{
    document::{API_GROUP, ClusterEgressPolicySpec, EgressPolicySpec, VERSION},
    object_status::ObjectStatus,
};

/// What kubectl and the API server call a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// `EgressPolicy`.
    pub kind: &'static str,
    /// In URLs: `egresspolicies`.
    pub plural: &'static str,
    /// For one: `egresspolicy`.
    pub singular: &'static str,
    /// For people who type: `egp`.
    pub short: &'static str,
    /// Whether its objects are in namespaces.
    pub is_namespaced: bool,
}

/// The names of [`super::document::EgressPolicy`].
pub const EGRESS_POLICY: Names = Names {
    kind: "EgressPolicy",
    plural: "egresspolicies",
    singular: "egresspolicy",
    short: "egp",
    is_namespaced: true,
};

/// The names of [`super::document::ClusterEgressPolicy`].
pub const CLUSTER_EGRESS_POLICY: Names = Names {
    kind: "ClusterEgressPolicy",
    plural: "clusteregresspolicies",
    singular: "clusteregresspolicy",
    short: "cegp",
    is_namespaced: false,
};

/// Whether the definitions have rules in CEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// They have: for API servers from 1.25.
    Cel,
    /// They have none: kubectl refuses them where an older API server does not know the field.
    None,
}

/// Each definition with its name, `PLURAL.GROUP`.
#[must_use]
pub fn definitions(rules: Rules) -> [(String, Json); 2] {
    let mut definitions = [
        definition::<EgressPolicySpec>(EGRESS_POLICY),
        definition::<ClusterEgressPolicySpec>(CLUSTER_EGRESS_POLICY),
    ];
    for (_, definition) in &mut definitions {
        match rules {
            Rules::None => remove_everywhere(definition, "x-kubernetes-validations"),
            Rules::Cel => leave_to_rules(definition),
        }
    }
    definitions
}

/// Where a rule in CEL says the same, the schema's own condition goes: the server would tell of that one (`must validate one
/// and only one schema`), and sometimes of nothing else.
fn leave_to_rules(value: &mut Json) {
    match value {
        Json::Object(fields) => {
            if fields.contains_key("x-kubernetes-validations") {
                fields.remove("oneOf");
            }
            fields.values_mut().for_each(leave_to_rules);
        }
        Json::Array(items) => items.iter_mut().for_each(leave_to_rules),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

fn definition<Spec: JsonSchema>(names: Names) -> (String, Json) {
    let name = format!("{}.{API_GROUP}", names.plural);
    let spec = schema_of::<Spec>();
    let mut status = schema_of::<ObjectStatus>();
    // Each of its writers may leave out what it does not know.
    remove(&mut status, "required");
    // Nor does the API server fill it in.
    remove_everywhere(&mut status, "default");
    let columns = json!([
        {"name": "Mode", "type": "string", "jsonPath": ".spec.mode",
            "description": "Whether its verdicts are carried out (Enforce) or only logged (Audit)"},
        {"name": "Pods", "type": "integer", "jsonPath": ".status.pods",
            "description": "How many pods it selects"},
        {"name": "Nodes", "type": "string", "jsonPath": ".status.nodes",
            "description": "On how many nodes its current generation is in force, of how many"},
        {"name": "Accepted", "type": "string",
            "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status",
            "description": "Whether it could be read; `kubectl describe` says what is wrong if not"},
        {"name": "Reason", "type": "string", "priority": 1,
            "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].message"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let description = spec.get("description").cloned().unwrap_or_default();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "egress-enforcer"}},
        "spec": {
            "group": API_GROUP,
            "names": {
                "kind": names.kind,
                "listKind": format!("{}List", names.kind),
                "plural": names.plural,
                "singular": names.singular,
                "shortNames": [names.short],
                "categories": ["egress-enforcer"],
            },
            "scope": if names.is_namespaced { "Namespaced" } else { "Cluster" },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "description": description,
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": spec,
                        "status": status,
                    },
                }},
            }],
        },
    });
    (name, definition)
}

/// A structural schema, as the API server demands it.
fn schema_of<T: JsonSchema>() -> Json {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings
        .with_transform(OptionalEnum)
        .with_transform(plain)
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// What the derived schema says and Kubernetes does not want said.
fn plain(schema: &mut Schema) {
    transform_subschemas(&mut plain, schema);
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    one_enum(fields);
    fields.remove("title");
    // A field that is null is dropped by the API server, and absent then; files may say null.
    fields.remove("nullable");
    if fields.get("default") == Some(&Json::Null) {
        fields.remove("default");
    }
    // A structural schema has no closed objects: what it does not name is dropped, after kubectl has complained.
    if fields.get("additionalProperties") == Some(&Json::Bool(false)) {
        fields.remove("additionalProperties");
    }
    if fields.get("type") == Some(&json!("integer")) {
        let wide = fields
            .get("format")
            .and_then(Json::as_str)
            .is_some_and(|format| format.ends_with("64"));
        fields.insert("format".into(), json!(if wide { "int64" } else { "int32" }));
    }
    if let Some(Json::String(text)) = fields.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
}

/// A type of several words, each with a description of its own, becomes one list of words: a structural schema wants the
/// type outside of `oneOf`. (kube's own rewriting takes every `oneOf` for such a type.)
fn one_enum(fields: &mut Map<String, Json>) {
    let word = |variant: &Json| match (variant.get("const"), variant.get("enum")) {
        (Some(Json::String(word)), _) => Some(word.clone()),
        (_, Some(Json::Array(words))) => match &words[..] {
            [Json::String(word)] => Some(word.clone()),
            _ => None,
        },
        _ => None,
    };
    let words: Option<Vec<String>> = fields
        .get("oneOf")
        .and_then(Json::as_array)
        .and_then(|variants| variants.iter().map(word).collect());
    if let Some(words) = words {
        fields.remove("oneOf");
        fields.insert("type".into(), json!("string"));
        fields.insert("enum".into(), json!(words));
    }
}

fn remove(schema: &mut Json, field: &str) {
    if let Some(fields) = schema.as_object_mut() {
        fields.remove(field);
    }
}

fn remove_everywhere(value: &mut Json, field: &str) {
    match value {
        Json::Object(fields) => {
            fields.remove(field);
            fields
                .values_mut()
                .for_each(|value| remove_everywhere(value, field));
        }
        Json::Array(items) => items.iter_mut().for_each(|item| remove_everywhere(item, field)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// The definitions as one YAML text: what `deploy` has.
#[must_use]
pub fn yaml(rules: Rules) -> String {
    let mut text = String::from(
        "# Made by `cargo xtask crdgen` from egress-agent/src/policy/document.rs; a test checks that it is current.\n",
    );
    for (_, definition) in definitions(rules) {
        text.push_str("---\n");
        write_yaml(&mut text, &definition, 0, false);
    }
    text
}

/// Block style, as people write it; scalars as JSON writes them, which is YAML too.
fn write_yaml(text: &mut String, value: &Json, depth: usize, follows_dash: bool) {
    let indent = "  ".repeat(depth);
    match value {
        Json::Object(fields) => {
            for (index, (key, value)) in fields.iter().enumerate() {
                if index > 0 || !follows_dash {
                    text.push_str(&indent);
                }
                text.push_str(key);
                text.push(':');
                write_child(text, value, depth);
            }
        }
        Json::Array(items) => {
            for item in items {
                text.push_str(&indent);
                text.push_str("- ");
                if is_block(item) {
                    write_yaml(text, item, depth + 1, true);
                } else {
                    text.push_str(&item.to_string());
                    text.push('\n');
                }
            }
        }
        scalar @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => {
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn write_child(text: &mut String, value: &Json, depth: usize) {
    if is_block(value) {
        text.push('\n');
        // A sequence may stand as deep as its key.
        let deeper = usize::from(value.is_object());
        write_yaml(text, value, depth + deeper, false);
    } else {
        text.push(' ');
        text.push_str(&value.to_string());
        text.push('\n');
    }
}

fn is_block(value: &Json) -> bool {
    match value {
        Json::Object(fields) => !fields.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
    }
}

#[cfg(test)]
mod tests;
