use super::*;

fn workload(labels: &[(&str, &str)], namespace: &str, namespace_labels: &[(&str, &str)]) -> Workload {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Workload {
        namespace: namespace.into(),
        labels: map(labels),
        namespace_labels: map(namespace_labels),
        ..Workload::default()
    }
}

fn selector(json: serde_json::Value) -> LabelSelector {
    serde_json::from_value(json).unwrap()
}

fn compile(json: serde_json::Value) -> Selector {
    let mut problems = Vec::new();
    let compiled = Selector::compile(Some(&selector(json)), &mut problems);
    assert_eq!(problems, []);
    compiled
}

fn problems(json: serde_json::Value) -> Vec<String> {
    let mut problems = Vec::new();
    Selector::compile(Some(&selector(json)), &mut problems);
    problems
        .into_iter()
        .map(|(path, message)| {
            let path: String = path.iter().map(ToString::to_string).collect();
            format!("{path}: {message}")
        })
        .collect()
}

#[test]
fn an_absent_or_empty_selector_selects_everything() {
    let pod = workload(&[], "a", &[]);
    assert!(Selector::compile(None, &mut Vec::new()).selects(&pod));
    assert!(compile(serde_json::json!({})).selects(&pod));
    assert!(compile(serde_json::json!({"matchLabels": {}, "matchExpressions": []})).selects(&pod));
}

#[test]
fn every_operator_means_what_it_means_in_kubernetes() {
    let with = |value| workload(&[("tier", value)], "a", &[]);
    let without = workload(&[("other", "x")], "a", &[]);
    for (operator, values, selects_front, selects_back, selects_without) in [
        ("In", serde_json::json!(["front", "edge"]), true, false, false),
        ("NotIn", serde_json::json!(["front", "edge"]), false, true, true),
        ("Exists", serde_json::Value::Null, true, true, false),
        ("DoesNotExist", serde_json::json!([]), false, false, true),
    ] {
        let compiled = compile(serde_json::json!({
            "matchExpressions": [{"key": "tier", "operator": operator, "values": values}],
        }));
        assert_eq!(compiled.selects(&with("front")), selects_front, "{operator}");
        assert_eq!(compiled.selects(&with("back")), selects_back, "{operator}");
        assert_eq!(compiled.selects(&without), selects_without, "{operator}");
    }
}

#[test]
fn all_requirements_must_hold() {
    let compiled = compile(serde_json::json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]},
                             {"key": "debug", "operator": "DoesNotExist"}],
    }));
    assert!(compiled.selects(&workload(&[("app", "web")], "a", &[])));
    assert!(!compiled.selects(&workload(&[("app", "api")], "a", &[])));
    assert!(!compiled.selects(&workload(&[("app", "web"), ("debug", "")], "a", &[])));
    assert_eq!(compiled.demanded_pod_label(), Some(("app", "web")));
}

#[test]
fn namespaces_are_selected_by_their_labels_and_always_by_their_name() {
    let all = || Selector::compile(None, &mut Vec::new());
    let by = |json| all().in_namespaces(Some(&selector(json)), &mut Vec::new());
    let team = by(serde_json::json!({"matchLabels": {"team": "x"}}));
    assert!(team.selects(&workload(&[], "a", &[("team", "x")])));
    assert!(!team.selects(&workload(&[("team", "x")], "a", &[])));
    let name = by(serde_json::json!({"matchLabels": {NAMESPACE_NAME: "a"}}));
    assert!(name.selects(&workload(&[], "a", &[])));
    assert!(!name.selects(&workload(&[], "b", &[(NAMESPACE_NAME, "a")])));
}

#[test]
fn a_selector_that_could_select_nothing_by_mistake_is_refused() {
    for (json, path, what) in [
        (
            serde_json::json!({"matchLabels": {"": "x"}}),
            ".matchLabels.",
            "not a label key",
        ),
        (
            serde_json::json!({"matchLabels": {"a b": "x"}}),
            ".matchLabels.a b",
            "not a label key",
        ),
        (
            serde_json::json!({"matchLabels": {"UPPER.example/x": "x"}}),
            ".matchLabels.UPPER.example/x",
            "not a label key",
        ),
        (
            serde_json::json!({"matchLabels": {"app": "web,api"}}),
            ".matchLabels.app",
            "not a label value",
        ),
        (
            serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            ".matchExpressions[0].values",
            "at least one value",
        ),
        (
            serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            ".matchExpressions[0].values",
            "take no `values`",
        ),
    ] {
        let problems = problems(json);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(path) && problems[0].contains(what),
            "{problems:?}"
        );
    }
    assert_eq!(
        problems(serde_json::json!({"matchLabels": {"app.kubernetes.io/name": "x_y.z", "a": ""}})),
        [""; 0]
    );
}
