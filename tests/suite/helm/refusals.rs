//! What cannot work is refused before anything is deployed, in words that name the value.

use serde_json::{Value as Json, json};

use super::{refusals, release};

const SQLITE: &str = "sqlite";

#[test]
fn what_cannot_work_is_refused_with_the_value_and_what_would_be_right() {
    let database = json!({"existingSecret": "db"});
    let cases = [
        (
            json!({}),
            "database.existingSecret is not set, and PostgreSQL needs a URL. Make the Secret and name it:\n    kubectl \
             -n space create secret generic gatekey-database --from-literal=url=",
        ),
        (
            json!({"database": {"engine": SQLITE}, "replicaCount": 2}),
            "replicaCount=2 cannot work with database.engine=sqlite: one process owns the file. Leave replicaCount \
             unset, or use database.engine=postgres.",
        ),
        (
            json!({"database": {"engine": SQLITE}, "autoscaling": {"enabled": true}}),
            "autoscaling.enabled=true cannot work with database.engine=sqlite",
        ),
        (
            json!({"database": {"engine": SQLITE, "existingSecret": "db"}}),
            "database.existingSecret=db is not used with database.engine=sqlite",
        ),
        (
            json!({"database": database, "tls": {"existingSecret": "mine"}}),
            "tls.existingSecret=mine has no effect with tls.enabled=false, and the port would be plaintext.",
        ),
        (
            json!({"database": database, "tls": {"clientCa": {"existingSecret": "mine"}}}),
            "tls.clientCa.existingSecret=mine has no effect with tls.enabled=false",
        ),
        (
            json!({"database": database, "pepper": {"enabled": false, "existingSecret": "mine"}}),
            "pepper.existingSecret=mine has no effect with pepper.enabled=false",
        ),
        (
            json!({"database": database, "config": {"lease": "10"}}),
            "config.lease=10 cannot work: it must be a duration with its unit, such as 500ms, 10s or 15m.",
        ),
        (
            json!({"database": database, "config": {"maxConnectionAge": ""}}),
            "config.maxConnectionAge= cannot work: it must be a duration",
        ),
        (
            json!({"database": database, "terminationGracePeriodSeconds": 25}),
            "terminationGracePeriodSeconds=25 cannot work: the kubelet would kill calls that may still finish. It must \
             be more than preStopSeconds + config.drainSeconds = 25; unset, it is.",
        ),
        (
            json!({"database": database, "autoscaling": {"enabled": true, "minReplicas": 11}}),
            "autoscaling.minReplicas=11 cannot work: it is more than autoscaling.maxReplicas=10.",
        ),
        (
            json!({"database": database, "ports": {"health": 50051}}),
            "ports.grpc=50051, ports.health=50051, ports.metrics=9464 cannot work: each must be a port of its own.",
        ),
        (
            json!({"database": database, "extraEnv": [{"name": "GATEKEY_LISTEN", "value": "0.0.0.0:1"}]}),
            "extraEnv sets GATEKEY_LISTEN, which the chart sets itself.",
        ),
        (
            json!({"database": database, "metrics": {"enabled": false}, "serviceMonitor": {"enabled": true}}),
            "serviceMonitor.enabled=true cannot work with metrics.enabled=false: there is nothing to scrape.",
        ),
    ];
    let (values, words): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    for (why, words) in refusals(&values).iter().zip(words) {
        let start = "gatekey cannot be deployed with these values:\n- ";
        assert!(why.contains(&format!("{start}{words}")), "{why}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let why = refusals(&[json!({
        "terminationGracePeriodSeconds": 1,
        "config": {"lease": "soon"},
        "extraEnv": [{"name": "GATEKEY_LOG"}],
    })]);
    for value in [
        "- database.existingSecret is",
        "- config.lease=soon",
        "- terminationGracePeriodSeconds=1 ",
        "- extraEnv sets GATEKEY_LOG,",
    ] {
        assert!(why[0].contains(value), "{why:?}");
    }
}

#[test]
fn what_is_just_inside_the_bounds_is_not_refused() {
    release(json!({
        "database": {"existingSecret": "db"},
        "terminationGracePeriodSeconds": 26,
        "autoscaling": {"enabled": true, "minReplicas": 10},
        "config": {"lease": "1m30s"},
    }));
    release(json!({"database": {"engine": "sqlite"}, "replicaCount": 1}));
}

#[test]
fn a_value_of_the_wrong_type_or_name_is_refused_with_its_place() {
    let cases = [
        (
            "replicaCount",
            json!("two"),
            "got string, want null or integer",
        ),
        (
            "replicaCount",
            json!(1.5),
            "got number, want null or integer",
        ),
        ("replicaCount", json!(-1), "minimum: got -1, want 0"),
        (
            "replicas",
            json!(2),
            "additional properties 'replicas' not allowed",
        ),
        ("cores", json!("2"), "got string, want integer"),
        ("cores", json!(0), "minimum: got 0, want 1"),
        (
            "database/engine",
            json!("mysql"),
            "value must be one of 'postgres', 'sqlite'",
        ),
        (
            "database/url",
            json!("postgres://a:b@c/d"),
            "additional properties 'url' not allowed",
        ),
        ("tls/enabled", json!("yes"), "got string, want boolean"),
        (
            "config/cacheKeys",
            json!("many"),
            "got string, want integer",
        ),
        (
            "config/drainSeconds",
            json!("20s"),
            "got string, want integer",
        ),
        (
            "config/logFormat",
            json!("xml"),
            "value must be one of 'json', 'text'",
        ),
        (
            "ports/grpc",
            json!(65536),
            "maximum: got 65,536, want 65,535",
        ),
        (
            "image/digest",
            json!("sha256:short"),
            "does not match pattern",
        ),
        ("preStopSeconds", json!(0), "minimum: got 0, want 1"),
        ("minReadySeconds", json!(600), "maximum: got 600, want 599"),
        ("extraEnv", json!({"A": "b"}), "got object, want array"),
        ("podAnnotations", json!({"a": 1}), "got number, want string"),
    ];
    let values: Vec<_> = cases
        .iter()
        .map(|(path, value, _)| at(path, value))
        .collect();
    for (why, (path, value, words)) in refusals(&values).iter().zip(&cases) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let named = why.contains(&format!("/{path}")) || why.contains(parent) && why.contains(name);
        assert!(named && why.contains(words), "{path}={value}: {why}");
    }
}

/// Good values, but for this one at this path.
fn at(path: &str, value: &Json) -> Json {
    let nested = path
        .rsplit('/')
        .fold(value.clone(), |it, name| json!({name: it}));
    let mut values = json!({"database": {"existingSecret": "db"}});
    for (name, it) in nested.as_object().expect("a path has a name") {
        match (
            values.get_mut(name).and_then(Json::as_object_mut),
            it.as_object(),
        ) {
            (Some(section), Some(it)) => section.extend(it.clone()),
            _ => values[name] = it.clone(),
        }
    }
    values
}
