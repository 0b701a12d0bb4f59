//! Invalid values are refused before anything is deployed, with the name of the value and what is valid.

use serde_json::{Value as Json, json};

use super::{refusals, release};

const SQLITE: &str = "sqlite";

/// Databases that no server could use.
fn invalid_databases() -> Vec<(Json, &'static str)> {
    vec![
        (
            json!({}),
            "PostgreSQL needs database.existingSecret, a Secret with the URL, or database.host. Create the Secret and name \
             it:\n    kubectl -n space create secret generic gatekey-database --from-literal=url=",
        ),
        (
            json!({"database": {"engine": SQLITE}, "replicaCount": 2}),
            "replicaCount=2 is invalid with database.engine=sqlite, which allows one process only. Leave replicaCount \
             unset, or use database.engine=postgres.",
        ),
        (
            json!({"database": {"engine": SQLITE}, "autoscaling": {"enabled": true}}),
            "autoscaling.enabled=true is invalid with database.engine=sqlite",
        ),
        (
            json!({"database": {"engine": SQLITE, "existingSecret": "db"}}),
            "database.existingSecret=db has no effect with database.engine=sqlite",
        ),
        (
            json!({"database": {"existingSecret": "db", "host": "db"}}),
            "database.host and database.existingSecret exclude each other.",
        ),
        (
            json!({"database": {"existingSecret": "db", "password": {"existingSecret": "pw"}}}),
            "database.password.existingSecret=pw has no effect without database.host.",
        ),
        (
            json!({"database": {"existingSecret": "db", "sslMode": "require"}}),
            "database.sslMode=require has no effect without database.host. Put it into the URL.",
        ),
        (
            json!({"database": {"engine": SQLITE, "host": "db"}}),
            "database.host=db has no effect with database.engine=sqlite",
        ),
        (
            json!({"database": {"host": "db", "password": {"existingSecret": "pw"}}, "extraEnv": [{"name": "PGPASSWORD"}]}),
            "extraEnv must not set PGPASSWORD together with database.password.existingSecret",
        ),
    ]
}

/// Secrets and certificates that would have no effect, or are missing.
fn invalid_secrets() -> Vec<(Json, &'static str)> {
    let database = json!({"existingSecret": "db"});
    vec![
        (
            json!({"database": database, "tls": {"existingSecret": "mine"}}),
            "tls.existingSecret=mine has no effect with tls.enabled=false: the port would be plaintext.",
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
            json!({"database": database, "tls": {"certManager": {"enabled": true, "issuerRef": {"name": "ca"}}}}),
            "tls.certManager.enabled=true has no effect with tls.enabled=false: the port would be plaintext.",
        ),
        (
            json!({"database": database, "tls": {"enabled": true, "certManager": {"enabled": true}}}),
            "tls.certManager.enabled=true requires tls.certManager.issuerRef.name.",
        ),
        (
            json!({"database": database, "tls": {
                "enabled": true,
                "existingSecret": "mine",
                "certManager": {"enabled": true, "issuerRef": {"name": "ca"}},
            }}),
            "tls.certManager.enabled and tls.existingSecret exclude each other.",
        ),
    ]
}

/// Pods, Services and monitoring that contradict themselves.
fn invalid_pods() -> Vec<(Json, &'static str)> {
    let database = json!({"existingSecret": "db"});
    vec![
        (
            json!({"database": database, "service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}),
            "service.loadBalancerSourceRanges has no effect with service.type=ClusterIP.",
        ),
        (
            json!({
                "database": database,
                "otel": {"endpoint": "http://collector:4317"},
                "extraEnv": [{"name": "OTEL_SERVICE_NAME"}],
            }),
            "extraEnv must not set OTEL_SERVICE_NAME together with otel.endpoint",
        ),
        (
            json!({"database": database, "terminationGracePeriodSeconds": 25}),
            "terminationGracePeriodSeconds=25 is too short: the kubelet would kill calls that may still finish. It must \
             exceed preStopSeconds + config.drainSeconds = 25, as its default does.",
        ),
        (
            json!({"database": database, "autoscaling": {"enabled": true, "minReplicas": 11}}),
            "autoscaling.minReplicas=11 exceeds autoscaling.maxReplicas=10.",
        ),
        (
            json!({"database": database, "ports": {"health": 50051}}),
            "ports.grpc=50051, ports.health=50051 and ports.metrics=9464 must differ.",
        ),
        (
            json!({"database": database, "extraEnv": [{"name": "GATEKEY_LISTEN", "value": "0.0.0.0:1"}]}),
            "extraEnv must not set GATEKEY_LISTEN: the chart sets it.",
        ),
        (
            json!({"database": database, "metrics": {"enabled": false}, "serviceMonitor": {"enabled": true}}),
            "serviceMonitor.enabled=true requires metrics.enabled=true.",
        ),
    ]
}

#[test]
fn invalid_combinations_are_refused_with_their_names_and_what_is_valid() {
    let cases = [invalid_databases(), invalid_secrets(), invalid_pods()].concat();
    let (values, words): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    for (why, words) in refusals(&values).iter().zip(words) {
        let start = "Invalid values for gatekey:\n- ";
        assert!(why.contains(&format!("{start}{words}")), "{why}");
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let why = refusals(&[json!({
        "terminationGracePeriodSeconds": 1,
        "extraEnv": [{"name": "GATEKEY_LOG"}],
    })]);
    for value in [
        "- PostgreSQL needs database.existingSecret",
        "- terminationGracePeriodSeconds=1 ",
        "- extraEnv must not set GATEKEY_LOG:",
    ] {
        assert!(why[0].contains(value), "{why:?}");
    }
}

#[test]
fn values_just_inside_the_bounds_are_accepted() {
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
