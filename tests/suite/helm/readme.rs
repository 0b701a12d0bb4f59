//! The chart's README is made from the comments of values.yaml. `GATEKEY_REWRITE=1 cargo test --test suite
//! helm::readme` rewrites it.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use serde_json::Value as Json;

use super::chart;

/// The part of the README above the table.
const HEAD: &str = "\
# gatekey

A Helm chart for gatekey, a gRPC service that issues, lists, revokes and validates API keys. It needs
Kubernetes 1.30 or later, and PostgreSQL or a volume.

```
kubectl create secret generic gatekey-database --from-literal=url='postgres://user:password@host/database'
helm install gatekey helm/gatekey --set database.existingSecret=gatekey-database \\
  --set image.repository=registry.example/gatekey
helm test gatekey
```

[docs/kubernetes.md](../../docs/kubernetes.md) explains TLS, secrets, sizes, updates and monitoring.

## Values

This table is generated from `values.yaml`.

";

/// A value of values.yaml.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    path: String,
    /// None for a group of values.
    default: Option<String>,
    description: String,
}

/// The values of the file, in its order. A comment belongs to the line below it.
fn values(yaml: &str) -> Vec<Value> {
    let (mut values, mut comment, mut parents) =
        (Vec::new(), Vec::new(), Vec::<(usize, String)>::new());
    for line in yaml.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(text) = content.strip_prefix('#') {
            comment.push(text.trim().to_owned());
            continue;
        }
        let Some((key, default)) = content.split_once(':') else {
            assert!(content.is_empty(), "not a value: {line}");
            comment.clear();
            continue;
        };
        parents.retain(|(outer, _)| *outer < indent);
        parents.push((indent, key.to_owned()));
        let path: Vec<_> = parents.iter().map(|(_, key)| key.as_str()).collect();
        let default = Some(default.trim()).filter(|it| !it.is_empty());
        values.push(Value {
            path: path.join("."),
            default: default.map(str::to_owned),
            description: std::mem::take(&mut comment).join(" "),
        });
    }
    values
}

fn readme(values: &[Value]) -> String {
    let mut text = format!("{HEAD}| Value | Default | Description |\n|---|---|---|\n");
    for Value {
        path,
        default,
        description,
    } in values
    {
        // A group without a comment says nothing that its values do not.
        if default.is_none() && description.is_empty() {
            continue;
        }
        let default = default
            .as_ref()
            .map(|it| format!("`{it}`"))
            .unwrap_or_default();
        let description = description.replace('|', "\\|");
        writeln!(text, "| `{path}` | {default} | {description} |").expect("memory takes all");
    }
    text
}

#[test]
fn the_readme_of_the_chart_is_made_from_the_comments_of_its_values() {
    let yaml = fs::read_to_string(chart().join("values.yaml")).expect("it is there");
    let made = readme(&values(&yaml));
    let path = chart().join("README.md");
    if std::env::var_os("GATEKEY_REWRITE").is_some() {
        fs::write(&path, &made).expect("the repository takes files");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "helm/gatekey/README.md is stale: GATEKEY_REWRITE=1 cargo test --test suite helm::readme"
    );
}

#[test]
fn the_schema_has_every_value_and_no_other() {
    let yaml = fs::read_to_string(chart().join("values.yaml")).expect("it is there");
    let schema = fs::read_to_string(chart().join("values.schema.json")).expect("it is there");
    let schema: Json = serde_json::from_str(&schema).expect("JSON");
    let mut known = BTreeSet::new();
    collect(&schema, "", &mut known);
    let open = |path: &str| {
        ["Probe.", "SecurityContext.", "labels."]
            .iter()
            .any(|it| path.contains(it))
    };
    let there: BTreeSet<_> = values(&yaml)
        .into_iter()
        .map(|it| it.path)
        .filter(|it| !open(it))
        .collect();
    known.remove("global"); // Helm's own
    assert_eq!(known, there);
}

/// The paths of a schema's properties.
fn collect(schema: &Json, prefix: &str, paths: &mut BTreeSet<String>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        collect(schema, &format!("{path}."), paths);
        paths.insert(path);
    }
}
