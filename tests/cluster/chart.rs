//! The Helm chart. No Helm can be had here: the chart is rendered by another implementation of its template language, with the
//! functions that the chart uses.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use egress_tests::promises;
use gtmpl::{Context, FuncError, Template, Value};
use serde_json::{Value as Json, json};

promises![
    the_chart_gives_what_kustomize_gives,
    the_charts_values_reach_the_agent,
];

/// Kubernetes' objects by kind and name.
type Objects = BTreeMap<(String, String), Json>;

async fn the_chart_gives_what_kustomize_gives() {
    for (overlay, values) in [
        ("k3s", json!({})),
        ("surge", json!({"surge": true})),
        ("uninstall", json!({"uninstall": true})),
    ] {
        let mut chart = rendered(&values);
        let mut kustomized = kustomized(overlay).await;
        // Made by Helm itself (createNamespace).
        kustomized.remove(&("Namespace".to_owned(), "egress-enforcer".to_owned()));
        // Each has its own way to make a change of the configuration a rollout.
        for objects in [&mut chart, &mut kustomized] {
            let agent = agent(objects);
            let annotations = &mut agent["spec"]["template"]["metadata"]["annotations"];
            let annotations = annotations.as_object_mut().expect("annotations");
            annotations.remove("egress-enforcer.io/config");
            agent["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"] = "egress-agent".into();
        }
        if overlay == "uninstall" {
            // It stands on the base, which has other addresses than k3s; nothing of it is read then.
            for objects in [&mut chart, &mut kustomized] {
                objects.retain(|(kind, _), _| kind != "ConfigMap");
            }
        }
        let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&chart), names(&kustomized), "{overlay}");
        for (name, object) in chart {
            assert_eq!(object, kustomized[&name], "{overlay}: {name:?}");
        }
    }
}

async fn the_charts_values_reach_the_agent() {
    let mut objects = rendered(&json!({
        "image": {"repository": "registry.example/egress", "tag": "1.2.3"},
        "imagePullSecrets": [{"name": "pull"}],
        "env": [{"name": "RUST_LOG", "value": "debug"}],
        "nodeSelector": {"egress": "yes"},
        "config": {"internal": ["10.0.0.0/8"], "unselected": "Enforce"},
        "extraVolumes": [{"name": "parent-proxy", "secret": {"secretName": "parent-proxy"}}],
        "extraVolumeMounts": [{"name": "parent-proxy", "mountPath": "/etc/parent-proxy", "readOnly": true}],
    }));
    let config = &objects[&("ConfigMap".to_owned(), "egress-agent".to_owned())]["data"]["config.yaml"];
    assert_eq!(config["internal"], json!(["10.0.0.0/8"]));
    assert_eq!(config["unselected"], "Enforce");
    assert_eq!(config["onStop"], "hold", "what is not said stays");
    let annotation = |objects: &mut Objects| {
        agent(objects)["spec"]["template"]["metadata"]["annotations"]["egress-enforcer.io/config"].clone()
    };
    assert_ne!(
        annotation(&mut objects),
        annotation(&mut rendered(&json!({}))),
        "another configuration is a rollout"
    );
    let spec = &agent(&mut objects)["spec"]["template"]["spec"];
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    let nodes = json!({"egress": "yes", "kubernetes.io/os": "linux"});
    assert_eq!(spec["nodeSelector"], nodes, "key by key");
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "registry.example/egress:1.2.3");
    let environment = container["env"].as_array().expect("env");
    assert_eq!(
        environment.last(),
        Some(&json!({"name": "RUST_LOG", "value": "debug"}))
    );
    assert_eq!(environment.len(), 4);
    for (list, place) in [
        ("mounts", &container["volumeMounts"]),
        ("volumes", &spec["volumes"]),
    ] {
        let all = place.as_array().expect(list);
        assert_eq!(all.len(), 6, "{list}");
        assert_eq!(all[5]["name"], "parent-proxy", "{list}");
    }
}

fn agent(objects: &mut Objects) -> &mut Json {
    objects
        .get_mut(&("DaemonSet".to_owned(), "egress-agent".to_owned()))
        .expect("a DaemonSet")
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

async fn kustomized(overlay: &str) -> Objects {
    let output = tokio::process::Command::new("kubectl")
        .arg("kustomize")
        .arg(deploy().join(overlay))
        .output()
        .await
        .expect("kubectl runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl kustomize {overlay}: {told}");
    objects(&String::from_utf8_lossy(&output.stdout))
}

/// What the chart makes of these values, over its own.
fn rendered(values: &Json) -> Objects {
    let chart = deploy().join("helm/egress-enforcer");
    let read = |path: &Path| fs::read_to_string(path).expect("a file of the chart");
    let parse = |name: &str| {
        serde_saphyr::from_str::<Json>(&read(&chart.join(name))).expect("YAML, as the chart has it")
    };
    let mut all = parse("values.yaml");
    merge(&mut all, values);
    let top = json!({
        "Values": all,
        "Release": {"Name": "egress", "Namespace": "egress-enforcer"},
        "Chart": {"AppVersion": parse("Chart.yaml")["appVersion"]},
    });
    let context = Context::from(from_json(&top));
    let mut found = objects(&read(&chart.join("crds/crds.yaml")));
    for file in fs::read_dir(chart.join("templates")).expect("templates") {
        let path = file.expect("a file").path();
        let mut template = Template::default();
        template.add_funcs(&[
            ("toYaml", to_yaml as gtmpl::Func),
            ("nindent", nindent),
            ("default", default),
            ("quote", quote),
            ("sha256sum", sha256sum),
        ]);
        template.parse(read(&path)).expect("a template, as Helm has them");
        let text = template
            .render(&context)
            .expect("a template that the chart's values fill");
        if path.extension().is_some_and(|end| end == "yaml") {
            found.extend(objects(&text));
        } else {
            assert!(text.contains("`helm uninstall"), "what helm prints: {text}");
        }
    }
    found
}

/// As Helm lays a user's values over the chart's: mappings key by key, everything else as a whole.
fn merge(into: &mut Json, from: &Json) {
    match (into, from) {
        (Json::Object(into), Json::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Json::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Reads a stream of documents. The agent's configuration is read too: its text need not be the same.
fn objects(text: &str) -> Objects {
    let all: Vec<Json> = serde_saphyr::from_multiple(text).expect("documents, as Kubernetes has them");
    all.into_iter()
        .filter(|object| !object.is_null())
        .map(|mut object| {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                // Early kustomize makes empty ones.
                metadata.retain(|_, value| *value != json!({}));
            }
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            let mut name = object["metadata"]["name"].as_str().expect("a name").to_owned();
            if kind == "ConfigMap" {
                // Kustomize adds a hash.
                "egress-agent".clone_into(&mut name);
                object["metadata"]["name"] = name.clone().into();
                let config = &mut object["data"]["config.yaml"];
                let parsed = serde_saphyr::from_str(config.as_str().expect("a text"));
                *config = parsed.expect("YAML, as the configuration");
            }
            ((kind, name), object)
        })
        .collect()
}

fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::from(number.as_i64().expect("the chart has whole numbers alone")),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(values) => Value::Array(values.iter().map(from_json).collect()),
        Json::Object(values) => Value::Map(
            values
                .iter()
                .map(|(key, value)| (key.clone(), from_json(value)))
                .collect::<HashMap<_, _>>(),
        ),
    }
}

fn to_json(value: &Value) -> Result<Json, FuncError> {
    Ok(match value {
        Value::Nil => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number
            .as_i64()
            .ok_or_else(|| wrong("a number that is not whole"))?
            .into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => values.iter().map(to_json).collect::<Result<_, _>>()?,
        Value::Map(values) => values
            .iter()
            .map(|(key, value)| Ok((key.clone(), to_json(value)?)))
            .collect::<Result<_, FuncError>>()?,
        Value::NoValue | Value::Object(_) | Value::Function(_) => {
            return Err(wrong(&format!("{value:?} is no value of a chart")));
        }
    })
}

fn wrong(what: &str) -> FuncError {
    FuncError::Generic(what.to_owned())
}

fn text(value: &Value) -> Result<&str, FuncError> {
    if let Value::String(text) = value {
        Ok(text)
    } else {
        Err(wrong(&format!("{value:?} is no text")))
    }
}

/// Without the last line's end, as Helm's.
fn to_yaml(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = arguments else {
        return Err(wrong("toYaml takes one value"));
    };
    let yaml = serde_saphyr::to_string(&to_json(value)?).map_err(|error| wrong(&error.to_string()))?;
    Ok(Value::String(yaml.trim_end().to_owned()))
}

fn nindent(arguments: &[Value]) -> Result<Value, FuncError> {
    let [Value::Number(spaces), value] = arguments else {
        return Err(wrong("nindent takes a number and a text"));
    };
    let spaces = spaces.as_i64().and_then(|spaces| usize::try_from(spaces).ok());
    let line = format!("\n{}", " ".repeat(spaces.ok_or_else(|| wrong("no indentation"))?));
    Ok(Value::String(format!(
        "{line}{}",
        text(value)?.replace('\n', &line)
    )))
}

fn default(arguments: &[Value]) -> Result<Value, FuncError> {
    let [otherwise, value] = arguments else {
        return Err(wrong("default takes two values"));
    };
    let is_empty = text(value)?.is_empty();
    Ok(if is_empty { otherwise } else { value }.clone())
}

fn quote(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = arguments else {
        return Err(wrong("quote takes one text"));
    };
    Ok(Value::String(Json::from(text(value)?).to_string()))
}

fn sha256sum(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = arguments else {
        return Err(wrong("sha256sum takes one text"));
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, text(value)?.as_bytes());
    Ok(Value::String(egress_tests::bytes::hex(digest.as_ref())))
}
