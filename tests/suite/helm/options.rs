//! Values that switch each option of the chart on or off, and the releases that they make.

use serde_json::{Value as Json, json};

use super::{Release, releases};

/// Nothing but a Secret with the database's URL.
pub fn minimal() -> Json {
    json!({"database": {"existingSecret": "db"}})
}

/// Everything at once.
pub fn everything() -> Json {
    let mut values = minimal();
    for (_, option) in options() {
        let option = option.as_object().expect("values").clone();
        values.as_object_mut().expect("values").extend(option);
    }
    values["tls"] = json!({"enabled": true, "clientCa": {"existingSecret": "ca"}});
    values["metrics"] = json!({"enabled": true});
    values["podDisruptionBudget"] = json!({"enabled": true});
    values["topologySpreadConstraints"] = Json::Null;
    values["podSecurityContext"] = json!({});
    values["containerSecurityContext"] = json!({});
    values["serviceAccount"] = json!({"create": true, "annotations": {"iam.example/role": "r"}});
    values["pepper"] = json!({});
    values["config"]["connectionsPerAddress"] = json!(1000);
    values
}

/// Each option that is off by default, on; and each that is on, off.
fn options() -> Vec<(&'static str, Json)> {
    [secret_options(), network_options(), pod_options()].concat()
}

/// Secrets and certificates.
fn secret_options() -> Vec<(&'static str, Json)> {
    vec![
        (
            "own admin token",
            json!({"adminToken": {"existingSecret": "mine", "key": "token"}}),
        ),
        (
            "own pepper",
            json!({"pepper": {"existingSecret": "mine", "key": "peppers"}}),
        ),
        ("no pepper", json!({"pepper": {"enabled": false}})),
        (
            "own TLS",
            json!({"tls": {"enabled": true, "existingSecret": "mine"}}),
        ),
        ("TLS", json!({"tls": {"enabled": true}})),
        (
            "client CA",
            json!({"tls": {"enabled": true, "clientCa": {"existingSecret": "ca", "key": "pem"}}}),
        ),
        (
            "cert-manager",
            json!({"tls": {"enabled": true, "certManager": {
                "enabled": true,
                "issuerRef": {"name": "ca", "kind": "ClusterIssuer"},
                "dnsNames": ["keys.example.com", "{{ .Release.Name }}.example.com"],
                "duration": "720h",
                "renewBefore": "240h",
            }}}),
        ),
    ]
}

/// Services, scaling and monitoring.
fn network_options() -> Vec<(&'static str, Json)> {
    let peer = json!([{"namespaceSelector": {"matchLabels": {"team": "orders"}}}]);
    vec![
        (
            "traces",
            json!({"otel": {"endpoint": "http://collector:4317"}}),
        ),
        ("no metrics", json!({"metrics": {"enabled": false}})),
        ("IPv6", json!({"listenHost": "::"})),
        (
            "service",
            json!({"service": {
                "type": "LoadBalancer",
                "port": 443,
                "annotations": {"a": "b"},
                "appProtocol": "grpc",
                "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
                "headless": {"annotations": {"c": "d"}},
            }}),
        ),
        (
            "no service account",
            json!({"serviceAccount": {"create": false}}),
        ),
        (
            "no budget",
            json!({"podDisruptionBudget": {"enabled": false}}),
        ),
        (
            "budget",
            json!({"podDisruptionBudget": {"maxUnavailable": "50%"}}),
        ),
        ("autoscaling", json!({"autoscaling": {"enabled": true}})),
        (
            "autoscaling with behavior",
            json!({"autoscaling": {
                "enabled": true,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
                "metrics": [{
                    "type": "Pods",
                    "pods": {"metric": {"name": "calls"}, "target": {"type": "AverageValue", "averageValue": "1k"}},
                }],
            }}),
        ),
        (
            "network policy",
            json!({"networkPolicy": {"enabled": true}}),
        ),
        (
            "network policy for some",
            json!({"networkPolicy": {
                "enabled": true,
                "clients": peer,
                "scrapers": peer,
                "database": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "extraEgress": [{"ports": [{"port": 4317}]}],
            }}),
        ),
        (
            "service monitor",
            json!({"serviceMonitor": {
                "enabled": true,
                "interval": "15s",
                "scrapeTimeout": "10s",
                "labels": {"release": "prometheus"},
                "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
                "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "process_.*"}],
            }}),
        ),
    ]
}

/// The pods, and the metadata of all objects.
fn pod_options() -> Vec<(&'static str, Json)> {
    let digest = format!("sha256:{}", "0".repeat(64));
    vec![
        ("replicas", json!({"replicaCount": 5})),
        (
            "image",
            json!({"image": {"digest": digest, "pullSecrets": [{"name": "registry"}]}}),
        ),
        (
            "resources",
            json!({"resources": {"limits": {"cpu": 4, "memory": "1Gi"}}}),
        ),
        (
            "common metadata",
            json!({"commonLabels": {"team": "identity"}, "commonAnnotations": {"example/cost": "7"}}),
        ),
        (
            "assigned user", // as on OpenShift
            json!({"podSecurityContext": {"runAsUser": null, "runAsGroup": null, "fsGroup": null}}),
        ),
        (
            "no security contexts",
            json!({"podSecurityContext": null, "containerSecurityContext": null}),
        ),
        (
            "other probes",
            json!({
                "startupProbe": {"failureThreshold": 300},
                "readinessProbe": {"tcpSocket": {"port": "grpc"}},
                "livenessProbe": null,
            }),
        ),
        (
            "routes",
            json!({"routes": [{"path_prefix": "/", "tenant": "default", "scopes": ["orders:read"]}]}),
        ),
        ("grace period", json!({"terminationGracePeriodSeconds": 60})),
        ("no spread", json!({"topologySpreadConstraints": []})),
        (
            "own spread",
            json!({"topologySpreadConstraints": [
                {"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"},
            ]}),
        ),
        (
            "placement",
            json!({
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"operator": "Exists"}],
                "affinity": {"podAntiAffinity": {}},
                "priorityClassName": "high",
                "podLabels": {"a": "b"},
                "podAnnotations": {"c": "d"},
            }),
        ),
        (
            "extras",
            json!({
                "extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}],
                "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
                "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/database"}],
            }),
        ),
        (
            "containers and objects",
            json!({
                "initContainers": [{"name": "wait", "image": "wait"}],
                "sidecars": [{"name": "proxy", "image": "proxy:{{ .Chart.AppVersion }}"}],
                "extraObjects": [
                    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "space"},
                     "spec": {"type": "ExternalName", "externalName": "{{ .Release.Name }}.example.com"}},
                    "{apiVersion: v1, kind: LimitRange, metadata: {name: x, namespace: {{ .Release.Namespace }}}}",
                ],
            }),
        ),
        ("names", json!({"fullnameOverride": "keys"})),
        ("a long name", json!({"fullnameOverride": "k".repeat(63)})),
    ]
}

/// All options, on PostgreSQL and, where that can be, on SQLite; and everything at once.
pub fn every_release() -> Vec<(String, Release)> {
    let mut all = vec![
        ("PostgreSQL".to_owned(), minimal()),
        ("everything".to_owned(), everything()),
    ];
    all.push((
        "SQLite".to_owned(),
        json!({"database": {"engine": "sqlite"}}),
    ));
    let claim = json!({"database": {"engine": "sqlite"}, "sqlite": {"existingClaim": "mine"}});
    all.push(("SQLite, own volume".to_owned(), claim));
    all.push((
        "database by parts".to_owned(),
        json!({"database": {"host": "db"}}),
    ));
    for (name, option) in options() {
        for database in [json!({"existingSecret": "db"}), json!({"engine": "sqlite"})] {
            let sqlite = database["engine"] == "sqlite";
            if sqlite && ["replicas", "autoscaling", "autoscaling with behavior"].contains(&name) {
                continue; // these are refused
            }
            let mut values = option.clone();
            values["database"] = database;
            all.push((format!("{name}, SQLite: {sqlite}"), values));
        }
    }
    let (names, values): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    names.into_iter().zip(releases(values)).collect()
}
