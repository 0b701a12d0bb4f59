//! The Helm chart, as Helm's own code renders it and Kubernetes' own schemas read it.

mod bounds;
mod database;
pub mod lifecycle;
mod manifests;
mod monitoring;
mod notes;
mod options;
mod overrides;
mod random;
mod readme;
mod secrets;
mod sizes;
mod validation;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value as Json, json};

use crate::support::tool;

/// The chart of this repository.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/gatekey")
}

/// What Helm would deploy into namespace `space` as `release`.
#[derive(Debug, Clone)]
pub struct Release {
    pub objects: Vec<Json>,
    pub notes: String,
}

/// The release with these values; asserts that Helm and Kubernetes have nothing against it.
pub fn release(values: Json) -> Release {
    let mut releases = releases(vec![values]);
    releases.pop().expect("one for each")
}

/// The same for many, which is quicker at once.
pub fn releases(values: Vec<Json>) -> Vec<Release> {
    let requests: Vec<_> = values.iter().map(|it| request(it, None)).collect();
    let answers = ask(&requests);
    let pairs = answers.into_iter().zip(values);
    pairs
        .map(|(answer, values)| accepted(&answer, &values))
        .collect()
}

/// The release with these values in a cluster that holds these objects.
pub fn release_into(cluster: &[Json], values: &Json) -> Release {
    let answers = ask(&[request(values, Some(cluster))]);
    accepted(&answers[0], values)
}

/// The release of another chart.
pub fn release_of(chart: &Path, values: &Json) -> Release {
    let mut request = request(values, None);
    request["chart"] = json!(chart);
    accepted(&ask(&[request])[0], values)
}

/// Why these values are refused; asserts that they are.
pub fn refusals(values: &[Json]) -> Vec<String> {
    let refused = refused(values).into_iter().zip(values);
    let why = refused.map(|(why, values)| why.unwrap_or_else(|| panic!("not refused: {values}")));
    why.collect()
}

/// Why these values are refused, for those that are.
pub fn refused(values: &[Json]) -> Vec<Option<String>> {
    let requests = values.iter().map(|values| {
        let mut request = request(values, None);
        request["validate"] = json!(false);
        request
    });
    let answers = ask(&requests.collect::<Vec<_>>());
    let why = answers.iter().map(|it| it["refused"].as_str());
    why.map(|why| why.map(str::to_owned)).collect()
}

fn request(values: &Json, cluster: Option<&[Json]>) -> Json {
    json!({"chart": chart(), "values": values, "cluster": cluster, "validate": true})
}

fn accepted(answer: &Json, values: &Json) -> Release {
    assert_eq!(answer["refused"], Json::Null, "{values}");
    assert_eq!(answer["faults"], json!([]), "{values}");
    assert_eq!(answer["unknown"], json!([]), "no schema: {values}");
    Release {
        objects: answer["objects"].as_array().expect("a list").clone(),
        notes: text(&answer["notes"]).to_owned(),
    }
}

/// Asks Helm, in Python.
fn ask(requests: &[Json]) -> Vec<Json> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/helm/chart.py");
    let mut child = tool::python_with_helm()
        .arg(script)
        // No cluster of whoever runs this.
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 was seen to run");
    let mut stdin = child.stdin.take().expect("a pipe");
    let lines: Vec<_> = requests.iter().map(Json::to_string).collect();
    let writer = std::thread::spawn(move || writeln!(stdin, "{}", lines.join("\n")));
    let output = child.wait_with_output().expect("it is our child");
    writer.join().expect("it cannot panic").expect("it reads");
    assert!(output.status.success(), "chart.py failed, see above");
    let answers: Vec<_> = String::from_utf8(output.stdout)
        .expect("JSON is UTF-8")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an answer is JSON"))
        .collect();
    assert_eq!(answers.len(), requests.len());
    answers
}

impl Release {
    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<&Json> {
        let of_kind = self.objects.iter().filter(|it| it["kind"] == kind);
        of_kind.collect()
    }

    /// The one object of a kind.
    pub fn the(&self, kind: &str) -> &Json {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}s of {:?}", self.kinds());
        all[0]
    }

    /// The object of a kind with this name.
    pub fn named(&self, kind: &str, name: &str) -> &Json {
        let named = self
            .all(kind)
            .into_iter()
            .find(|it| it["metadata"]["name"] == name);
        named.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", self.kinds()))
    }

    /// What there is, in alphabetical order.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.objects.iter().map(|it| text(&it["kind"])).collect();
        kinds.sort_unstable();
        kinds
    }

    /// The server's pods.
    pub fn pod(&self) -> &Json {
        &self.the("Deployment")["spec"]["template"]
    }

    /// The container that migrates the schema.
    pub fn migration(&self) -> &Json {
        let containers = self.pod()["spec"]["initContainers"].as_array();
        let mut containers = containers.into_iter().flatten();
        let found = containers.find(|it| it["name"] == "migrate");
        found.expect("an init container migrates")
    }

    /// The container that serves.
    pub fn server(&self) -> &Json {
        &self.pod()["spec"]["containers"][0]
    }
}

/// The variables of a container, with their values; one that comes from a Secret has none.
pub fn env(container: &Json) -> Vec<(&str, Option<&str>)> {
    let variables = container["env"].as_array().expect("it has an environment");
    let variables = variables.iter();
    variables
        .map(|it| (text(&it["name"]), it["value"].as_str()))
        .collect()
}

/// One variable's value.
pub fn variable<'a>(container: &'a Json, name: &str) -> &'a str {
    let found = env(container)
        .into_iter()
        .find(|(variable, _)| *variable == name);
    let value = found.and_then(|(_, value)| value);
    value.unwrap_or_else(|| panic!("{name} has no value in {container}"))
}

pub fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A copy of the chart in this folder.
fn copy(folder: &Path) -> PathBuf {
    tool::run(Command::new("cp").arg("-r").arg(chart()).arg(folder));
    folder.join("gatekey")
}
