use super::*;

fn read(text: &str) -> Result<Vec<Policy>, Vec<LoadError>> {
    read_text(Path::new("p.yaml"), text)
}

/// The errors of a text, one a line.
fn errors(text: &str) -> String {
    LoadErrors(read(text).unwrap_err()).to_string()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: {API_VERSION}\nkind: EgressPolicy\nmetadata: {{name: a, namespace: b}}\nspec:\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

fn cluster_policy(spec: &str) -> String {
    policy(spec)
        .replace("EgressPolicy", "ClusterEgressPolicy")
        .replace(", namespace: b", "")
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_place() {
    for (text, expected) in [
        ("a: [", "p.yaml:1:4: unclosed bracket '['"),
        ("a:\n\tb: c\n", "p.yaml:2:2: tabs disallowed"),
        ("kind: a\nkind: b\n", "p.yaml:2:1: duplicate mapping key `kind`"),
        ("a: 1\nb: *c\n", "p.yaml:2:4: reference to unknown value"),
        ("- &a [1]\n- *a\n", "p.yaml:1:1: the document has no `kind`"),
        (
            "just text",
            "p.yaml:1:1: the document has no `kind`; allowed are EgressPolicy and",
        ),
        (
            "x: 1\nkind: NetworkPolicy",
            "p.yaml:2:7: `NetworkPolicy` is not a kind of policy; allowed",
        ),
    ] {
        assert!(errors(text).starts_with(expected), "{text}: {}", errors(text));
    }
}

#[test]
fn a_nested_bomb_is_refused() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in ('b'..='j').zip('a'..) {
        text += &format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(", "));
    }
    assert!(errors(&text).contains("p.yaml:"), "{}", errors(&text));
    let deep = format!("kind: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(errors(&deep).contains("p.yaml:"), "{}", errors(&deep));
}

#[test]
fn every_error_of_a_file_is_told_at_once_with_its_place() {
    let text = format!(
        "{}---\n{}",
        policy(
            "podselector: {}
mode: enforce
egress:
- to: [{domain: '*.com'}, {domain: 7}, {cidr: 10.0.0.1/8}, {cidr: 1.2.3.4}, {}, text]
  ports: [{port: 70000}, {port: http}, {port: 80, protocol: SCTP}, {port: 9, endPort: 8}, {endPort: 7}]
- ports: [{port: 80}]
- to: []
  http: [{methods: [get], path: v1}]
- to: [{domain: b.test}]
  ports: [{port: 443}]
  http: [{path: /}]
  foo: bar"
        ),
        cluster_policy("ceiling:\n- to: [{domain: a.test, cidr: 10.0.0.0/8}]")
    );
    let expected = "\
p.yaml:5:3: unknown field `podselector`, expected one of `podSelector`, `mode`, `egress`, `privateAnswers`
p.yaml:6:9: unknown variant `enforce`, expected `Enforce` or `Audit`
p.yaml:8:19: `*.com` would match names that anybody can register, because `com` is a public suffix; write the names \
out, or put the wildcard below a registered name (`**.NAME.com`)
p.yaml:8:38: invalid type: integer `7`, expected a string
p.yaml:8:49: `10.0.0.1/8` has address bits beyond its prefix; write `10.0.0.0/8`, or a longer prefix
p.yaml:8:69: `1.2.3.4` is not an address block; for the one address write `1.2.3.4/32`
p.yaml:8:79: the entry names nothing; allowed are `domain`, or `cidr` with or without `except`
p.yaml:8:83: invalid type: string \"text\", expected a mapping with either `domain`, or `cidr` and perhaps `except`
p.yaml:9:20: invalid value: integer `70000`, expected a port number from 1 to 65535
p.yaml:9:35: invalid type: string \"http\", expected a port number from 1 to 65535
p.yaml:9:63: unknown variant `SCTP`, expected `TCP` or `UDP`
p.yaml:9:89: `endPort` 8 is below `port` 9; it must be the same or higher
p.yaml:9:93: missing field `port`
p.yaml:10:5: missing field `to`
p.yaml:11:9: `to` is empty; give at least one entry, or leave the field or the rule out
p.yaml:12:23: `get` is not a method; methods are case-sensitive and upper case, such as GET or POST
p.yaml:12:35: `v1` matches no path: it does not begin with `/`; a path begins with `/`, `*` stands for a run of \
characters within a segment, `**` for one across segments, as in `/v1/*/items/**`
p.yaml:15:11: the rule's only port is 443, where requests are encrypted; `http` needs a port with plain HTTP, such as 80
p.yaml:16:5: unknown field `foo`, expected one of `to`, `ports`, `http`
p.yaml:23:10: `domain` and `cidr` exclude each other; write them as two entries of `to`";
    assert_eq!(errors(&text), expected);
}

#[test]
fn what_stands_where_it_may_not_is_refused() {
    for (text, expected) in [
        (policy("deny: []"), "p.yaml:5:3: unknown field `deny`"),
        (
            policy("egress: [{to: [{domain: 192.0.2.1}]}]"),
            "p.yaml:5:27: `192.0.2.1` is an address and not a host name; addresses are allowed by a rule of a policy \
             file: `to: [{cidr: 192.0.2.1/32}]`",
        ),
        (
            policy("egress: [{to: [{domain: a.test, except: [10.0.0.0/8]}]}]"),
            "p.yaml:5:43: `except` belongs to `cidr`",
        ),
        (
            policy("egress: [{to: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]"),
            "p.yaml:5:46: `11.0.0.0/16` is not within `10.0.0.0/8`",
        ),
        (
            policy("egress: [{to: [{domain: a.test}], ports: [{port: 443, protocol: UDP}]}]"),
            "p.yaml:5:67: names are told apart on TCP only",
        ),
        (
            policy("egress: [{to: [{domain: a.test}], ports: []}]"),
            "p.yaml:5:44: `ports` is empty",
        ),
        (
            policy("egress: [{to: [{domain: a.test}], http: []}]"),
            "p.yaml:5:43: `http` is empty",
        ),
        (
            policy("egress: [{to: [{domain: a.test}], http: [{methods: []}]}]"),
            "p.yaml:5:54: `methods` is empty",
        ),
        (
            policy("podSelector: {matchLabels: {app: 'a b'}}"),
            "p.yaml:5:36: `a b` is not a label value",
        ),
        (
            policy("privateAnswers: ['*']"),
            "p.yaml:5:20: `*` would match every name",
        ),
        (
            cluster_policy("namespaceSelector: {matchExpressions: [{key: a, operator: In}]}"),
            "p.yaml:5:42: `values` is empty",
        ),
        (
            policy("{}").replace("v1alpha1", "v1"),
            "p.yaml:1:13: `egress-enforcer.io/v1` is not known; allowed is `egress-enforcer.io/v1alpha1`",
        ),
        (
            policy("{}").replace("name: a", "name: A_b"),
            "p.yaml:3:18: `A_b` is not a name",
        ),
        (
            policy("{}").replace("name: a,", ""),
            "p.yaml:3:11: `name` is missing",
        ),
        (
            policy("{}").replace("namespace: b", "nmespace: b"),
            "p.yaml:3:21: unknown field `nmespace`",
        ),
        (
            policy("{}").replace("namespace: b", "namespace: B"),
            "p.yaml:3:32: `B` is not a namespace",
        ),
        (
            cluster_policy("{}").replace("name: a", "name: a, namespace: b"),
            "p.yaml:3:32: a ClusterEgressPolicy has no namespace",
        ),
    ] {
        let found = errors(&text);
        assert!(found.starts_with(expected), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn whole_objects_of_the_api_server_are_taken_in_yaml_and_json() {
    let yaml = "\
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata:
  name: a.b-c
  annotations: {x: y}
  labels: {}
  creationTimestamp: '2026-01-01T00:00:00Z'
  generation: 3
  resourceVersion: '17'
  uid: 2a
  managedFields: [{manager: kubectl}]
spec:
  podSelector:
  egress:
  - to: [{domain: .example.com}, {cidr: 2001:db8::/32, except: [2001:db8:1::/48]}]
    ports: [{port: 443, endPort: 444, protocol: TCP}]
status: {conditions: []}
";
    let policies = read(yaml).unwrap();
    assert_eq!(policies.len(), 1);
    assert_eq!(policies[0].namespace, "default");
    let json = r#"{"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "ClusterEgressPolicy",
        "metadata": {"name": "x"}, "spec": {"ceiling": [], "deny": [{"to": [{"domain": "a.test"}]}]}}"#;
    let policies = read(json).unwrap();
    assert_eq!(policies[0].rule_count(), 1);
    assert!(policies[0].ceiling.is_some());
}

#[test]
fn empty_documents_are_left_out() {
    let text = format!("---\n# nothing\n---\n{}---\n...\n", policy("{}"));
    assert_eq!(read(&text).unwrap().len(), 1);
    for text in ["", "# nothing\n", "---\n---\n", "null"] {
        assert!(
            errors(text).starts_with("p.yaml:1:1: the file holds no policy"),
            "{text}"
        );
    }
}

#[test]
fn a_directory_gives_its_policy_files_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("a.yaml", &policy("{}"));
    write("b.yml", &policy("{}").replace("name: a", "name: b"));
    write("c.json", "{\"kind\": \"?\"}");
    write("d.txt", "not: a policy");
    write(".e.yaml", "not: a policy");
    std::fs::create_dir(directory.path().join("f.yaml")).unwrap();
    let source = PolicySource::new(Settings::default()).with_paths([directory.path().to_path_buf()]);
    let loaded = source.load_each().unwrap();
    let names: Vec<_> = loaded
        .iter()
        .map(|file| file.path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["a.yaml", "b.yml", "c.json"]);
    let errors = source.load().unwrap_err().to_string();
    assert!(
        errors.contains("c.json:1:10: `?` is not a kind of policy"),
        "{errors}"
    );
    std::fs::remove_file(directory.path().join("c.json")).unwrap();
    assert_eq!(source.load().unwrap().counts().policies, 2);
}

#[test]
fn a_file_that_cannot_be_read_is_told_beside_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("latin1.yaml"), b"kind: \xe9").unwrap();
    let huge = File::create(path("huge.yaml")).unwrap();
    huge.set_len(MAX_FILE + 1).unwrap();
    let source = PolicySource::new(Settings::default()).with_paths([path("latin1.yaml"), path("huge.yaml")]);
    let errors = source.load().unwrap_err().to_string();
    assert!(errors.contains("latin1.yaml: byte 6 is not UTF-8"), "{errors}");
    assert!(
        errors.contains("huge.yaml: the file is larger than 8 MiB"),
        "{errors}"
    );
    let missing = PolicySource::new(Settings::default()).with_paths([path("none.yaml")]);
    let errors = missing.load().unwrap_err().to_string();
    assert!(
        errors.contains("none.yaml: cannot be read: No such file"),
        "{errors}"
    );
}
