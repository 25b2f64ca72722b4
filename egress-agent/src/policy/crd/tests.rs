use std::path::Path;

use proptest::prelude::*;
use regex::Regex;

use super::*;
use crate::policy::{HostPattern, ObjectKey, PolicyKind, PolicyObject};

#[test]
fn the_committed_definitions_are_current() {
    for (file, rules) in [
        ("base", Rules::None),
        ("helm/egress-enforcer/crds", Rules::None),
        ("cel", Rules::Cel),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/{file}/crds.yaml"));
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, yaml(rules)).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap();
        assert!(
            committed == yaml(rules),
            "{} is not what the types say: run `cargo xtask crdgen`",
            file.display()
        );
    }
}

#[test]
fn the_yaml_says_what_the_definitions_say() {
    for rules in [Rules::Cel, Rules::None] {
        let read: Vec<Json> = serde_saphyr::from_multiple(&yaml(rules)).unwrap();
        let made: Vec<Json> = definitions(rules)
            .into_iter()
            .map(|(_, definition)| definition)
            .collect();
        assert_eq!(read, made);
        let has_rules = yaml(rules).contains("x-kubernetes-validations");
        assert_eq!(has_rules, rules == Rules::Cel);
    }
}

fn schema(definition: &Json) -> &Json {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Every subschema, with its path, and whether it stands where a structural schema may only restrict values.
fn walk(path: &str, schema: &Json, restricts: bool, visit: &mut impl FnMut(&str, &Json, bool)) {
    visit(path, schema, restricts);
    for (key, value) in schema.as_object().unwrap() {
        let path = format!("{path}.{key}");
        match key.as_str() {
            "properties" => {
                for (name, value) in value.as_object().unwrap() {
                    walk(&format!("{path}.{name}"), value, restricts, visit);
                }
            }
            "items" | "additionalProperties" => walk(&path, value, restricts, visit),
            "oneOf" | "anyOf" | "allOf" => {
                for value in value.as_array().unwrap() {
                    walk(&path, value, true, visit);
                }
            }
            "not" => walk(&path, value, true, visit),
            _ => {}
        }
    }
}

/// The rules of https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema.
#[test]
fn the_schemas_are_structural_and_bounded() {
    for (name, definition) in definitions(Rules::Cel) {
        walk(
            &name,
            schema(&definition),
            false,
            &mut |path, schema, restricts| {
                let fields = schema.as_object().unwrap();
                for foreign in [
                    "$ref",
                    "$schema",
                    "definitions",
                    "nullable",
                    "uniqueItems",
                    "title",
                ] {
                    assert!(!fields.contains_key(foreign), "{path}: {foreign}");
                }
                if restricts {
                    for field in [
                        "type",
                        "description",
                        "default",
                        "nullable",
                        "additionalProperties",
                    ] {
                        assert!(!fields.contains_key(field), "{path}: {field} within a condition");
                    }
                    return;
                }
                let kind = fields["type"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{path} has no type"));
                let is_of_status = path.contains(".status");
                match kind {
                    "array" => assert!(
                        is_of_status || fields.contains_key("maxItems"),
                        "{path} has no end"
                    ),
                    "string" => {
                        let bounded = ["maxLength", "enum", "format"]
                            .iter()
                            .any(|bound| fields.contains_key(*bound));
                        let is_servers_own = path.ends_with("Schema.properties.kind")
                            || path.ends_with(".apiVersion")
                            || path.ends_with(".properties.kind");
                        assert!(is_of_status || bounded || is_servers_own, "{path} has no end");
                    }
                    "object" if fields.contains_key("additionalProperties") => {
                        assert!(fields.contains_key("maxProperties"), "{path} has no end");
                    }
                    "object" | "integer" | "boolean" => {}
                    other => panic!("{path}: {other}"),
                }
                assert!(
                    path.ends_with("metadata")
                        || is_of_status
                        || path.ends_with("kind")
                        || path.ends_with("apiVersion")
                        || path.ends_with("items")
                        || path.ends_with("additionalProperties")
                        || fields.contains_key("description"),
                    "{path} is not explained"
                );
            },
        );
    }
}

fn pattern_of(spec: &str) -> Regex {
    let (_, definition) = &definitions(Rules::Cel)[0];
    let rule = &schema(definition)["properties"]["spec"]["properties"]["egress"]["items"]["properties"];
    let text = rule.pointer(spec).and_then(Json::as_str).unwrap();
    Regex::new(text).unwrap()
}

proptest! {
    #[test]
    fn the_schema_refuses_no_host_pattern_that_is_good(
        text in r"(\*\.|\*\*\.|\.)?([a-zA-Z0-9_ü-]{1,6}[.。]){0,3}[a-z]{2,5}\.?|\PC{0,20}",
    ) {
        if text.parse::<HostPattern>().is_ok() {
            prop_assert!(pattern_of("/to/items/properties/domain/pattern").is_match(&text), "{}", text);
        }
    }
}

#[test]
fn the_schema_refuses_what_can_be_seen_to_be_no_host_pattern() {
    let domain = pattern_of("/to/items/properties/domain/pattern");
    for good in [
        "example.com",
        "*.example.com",
        "**.example.com",
        ".example.com",
        "a_b.example.com.",
        "münchen.de",
    ] {
        assert!(domain.is_match(good), "{good}");
    }
    for bad in [
        "",
        "*",
        "**",
        ".",
        "www.*.com",
        "https://x.test/",
        "x.test:80",
        "a..b",
        "***.x.test",
        "[::1]",
        "a b",
    ] {
        assert!(!domain.is_match(bad), "{bad}");
    }
    let cidr = pattern_of("/to/items/properties/cidr/pattern");
    assert!(cidr.is_match("10.0.0.0/8") && cidr.is_match("64:ff9b::10.1.0.0/112"));
    assert!(!cidr.is_match("10.0.0.0") && !cidr.is_match("all/0"));
}

fn spec(kind: PolicyKind, rule: &str) -> PolicyObject {
    PolicyObject {
        key: ObjectKey {
            kind,
            namespace: if kind == PolicyKind::EgressPolicy {
                "a".to_owned()
            } else {
                String::new()
            },
            name: "p".to_owned(),
        },
        uid: String::new(),
        generation: 1,
        spec: serde_saphyr::from_str(rule).unwrap(),
    }
}

/// What a server with CEL refuses, the agent refuses on a server without it. The same list is put to such a server by the
/// tests on a cluster.
#[test]
fn the_agent_refuses_what_the_rules_in_cel_refuse() {
    #[derive(serde::Deserialize)]
    struct Case {
        spec: String,
        says: Option<String>,
    }
    let cases: Vec<Case> =
        serde_saphyr::from_str(include_str!("../../../../tests/cluster/rules.yaml")).unwrap();
    let rules = yaml(Rules::Cel);
    for case in &cases {
        let compiled = spec(PolicyKind::EgressPolicy, &case.spec).compile();
        assert_eq!(compiled.is_err(), case.says.is_some(), "{}", case.spec);
        if let Some(word) = &case.says {
            assert!(rules.contains(word), "no rule says {word}");
        }
    }
    let messages: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.split_once("message: ").map(|(_, message)| message))
        .collect();
    assert!(!messages.is_empty());
    for message in messages {
        let is_tried = |case: &Case| case.says.as_ref().is_some_and(|word| message.contains(word));
        assert!(cases.iter().any(is_tried), "no case is refused by {message}");
    }
}
