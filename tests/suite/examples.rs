//! The examples: what can be checked of them without an engine for containers.

use std::{
    collections::BTreeSet, fs, net::TcpListener, os::unix::fs::symlink, path::Path,
    process::Command,
};

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::support::{Gatekey, tool};

/// Validates a file with the schema of the compose specification, and prints it as JSON.
const VALIDATE: &str = "
import importlib.util, json, jsonschema, pathlib, sys, yaml
package = importlib.util.find_spec('check_jsonschema').submodule_search_locations[0]
schema = pathlib.Path(package, 'builtin_schemas/vendor/compose-spec.json')
compose = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(compose, json.loads(schema.read_text()))
print(json.dumps(compose))
";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The compose file, which follows the schema.
fn compose() -> Json {
    let mut python = tool::python_with_compose_schema();
    let file = repository().join("examples/compose/compose.yaml");
    let json = tool::run(python.args(["-c", VALIDATE]).arg(file));
    serde_json::from_str(&json).expect("JSON")
}

#[test]
fn the_compose_file_follows_the_schema_and_mounts_files_of_this_repository() {
    let compose = compose();
    let services = compose["services"].as_object().expect("services");
    let mut files = 0;
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let (source, _) = volume
                .as_str()
                .and_then(|it| it.split_once(':'))
                .expect("a volume");
            if source.starts_with('.') {
                let path = repository().join("examples/compose").join(source);
                assert!(path.exists(), "{name}: {source}");
                files += 1;
            } else {
                let volumes = compose["volumes"].as_object().expect("volumes");
                assert!(volumes.contains_key(source), "{name}: {source}");
            }
        }
        // Nobody else on the network of this machine reaches it.
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(
                port.as_str().is_some_and(|it| it.starts_with("127.0.0.1:")),
                "{name}: {port}"
            );
        }
    }
    assert_eq!(files, 6);
}

#[test]
fn the_compose_file_sets_variables_that_the_program_has() {
    let help = tool::run(Command::new(env!("CARGO_BIN_EXE_gatekey")).arg("--help"));
    let known = help.split("[env: ").skip(1);
    let known: BTreeSet<_> = known.filter_map(|it| it.split(['=', ']']).next()).collect();
    let compose = compose();
    let environment = compose["services"]["gatekey"]["environment"].as_object();
    let set = environment.expect("variables").keys().map(String::as_str);
    let set: Vec<_> = set.filter(|it| it.starts_with("GATEKEY_")).collect();
    assert!(set.len() > 3);
    for name in set {
        assert!(known.contains(name), "{name} is none of {known:?}");
    }
}

#[test]
fn promtool_accepts_the_configuration_of_prometheus() {
    let folder = TempDir::new().expect("a temporary folder");
    for file in [
        "examples/compose/prometheus.yml",
        "helm/gatekey/files/rules.yaml",
    ] {
        let source = repository().join(file);
        let target = folder.path().join(source.file_name().expect("a name"));
        fs::copy(source, target).expect("the folder takes files");
    }
    let [_, promtool] = tool::prometheus();
    let mut check = Command::new(&promtool[0]);
    check.args(&promtool[1..]).args(["check", "config"]);
    let printed = tool::run(check.arg(folder.path().join("prometheus.yml")));
    assert!(printed.contains("1 rule files found"), "{printed}");
}

/// The ports in the files of the Envoy example.
const PORTS: [&str; 4] = ["50051", "8080", "8000", "9901"];

#[test]
fn the_example_with_envoy_shows_a_request_that_passes_and_two_that_do_not() {
    let folder = TempDir::new().expect("a temporary folder");
    let held: Vec<_> = PORTS
        .iter()
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    let free: Vec<_> = held
        .iter()
        .map(|it| it.local_addr().expect("it listens").port().to_string())
        .collect();
    for name in ["run.sh", "envoy.yaml"] {
        let file = repository().join("examples/envoy").join(name);
        let mut text = fs::read_to_string(&file).expect("the example is text");
        for (port, free) in PORTS.iter().zip(&free) {
            text = text.replace(port, free);
        }
        let copy = folder.path().join(name);
        fs::copy(&file, &copy).expect("the folder takes files");
        fs::write(copy, text).expect("the folder takes files");
    }
    for (name, program) in [
        ("gatekey", env!("CARGO_BIN_EXE_gatekey").into()),
        ("grpcurl", tool::grpcurl()),
        ("envoy", tool::envoy()),
    ] {
        symlink(program, folder.path().join(name)).expect("the folder takes links");
    }
    let path = std::env::var("PATH").expect("there is a PATH");
    drop(held);
    let printed = tool::run(
        Command::new("./run.sh")
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", folder.path().display()))
            .env("GATEKEY_LISTEN", format!("127.0.0.1:{}", free[0])),
    );
    let part = r#"{"error":{"code":"#;
    let expected = [
        "A key with the scope orders:read:\n[\"order 7\"]\n\nHTTP 200\n".to_owned(),
        format!("A key that does not exist:\n{part}\"MALFORMED\""),
        "\nHTTP 401\n".to_owned(),
        format!("A key without the scope:\n{part}\"INSUFFICIENT_SCOPE\""),
        "\nHTTP 403\n".to_owned(),
    ];
    for text in expected {
        assert!(printed.contains(&text), "{text}\n{printed}");
    }
}

#[test]
fn envoy_accepts_its_configuration_for_compose_which_is_that_of_the_example() {
    let file = |name: &str| repository().join("examples").join(name);
    let read = |name: &str| fs::read_to_string(file(name)).expect("the example is text");
    let mut expected = read("envoy/envoy.yaml");
    for (host, port) in [
        ("0.0.0.0", "8080"),
        ("service", "8000"),
        ("gatekey", "50051"),
    ] {
        let place = |host: &str| format!("address: {host}, port_value: {port}");
        expected = expected.replace(&place("127.0.0.1"), &place(host));
    }
    assert_eq!(read("compose/envoy.yaml"), expected);
    tool::run(
        Command::new(tool::envoy())
            .args(["--mode", "validate", "-c"])
            .arg(file("compose/envoy.yaml"))
            .env("GATEKEY_CREDENTIAL", "gk_example"),
    );
}

/// The blocks of YAML in the page about Envoy.
fn blocks_of_envoy() -> Vec<&'static str> {
    let page = include_str!("../../docs/envoy.md");
    let blocks = page.split("```yaml\n").skip(1);
    blocks
        .filter_map(|block| block.split("```").next())
        .collect()
}

#[test]
fn the_filter_and_the_rule_of_the_page_about_envoy_are_those_of_the_example() {
    let example = fs::read_to_string(repository().join("examples/envoy/envoy.yaml"));
    let example = example.expect("the example is text");
    let lines: Vec<_> = example.lines().map(str::trim).collect();
    let blocks = blocks_of_envoy();
    for line in blocks[..2].iter().flat_map(|block| block.lines()) {
        assert!(lines.contains(&line.trim()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gatekey_starts_with_the_routes_file_of_the_page_about_envoy() {
    let setup = Gatekey::sqlite();
    let file = setup.folder().join("routes.yaml");
    fs::write(&file, blocks_of_envoy()[2]).expect("the folder takes files");
    let setup = setup.env("GATEKEY_ROUTES_FILE", file.display().to_string());
    setup.start().await;
}
