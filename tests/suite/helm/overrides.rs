//! Values that reach every object or replace a part of the pod.

use serde_json::{Value as Json, json};

use super::{
    Release,
    options::{everything, minimal},
    release, text,
};

/// The release with the minimal values and these.
fn with(values: &Json) -> Release {
    let mut all = minimal();
    let values = values.as_object().expect("values").clone();
    all.as_object_mut().expect("values").extend(values);
    release(all)
}

#[test]
fn common_labels_and_annotations_are_on_every_object_and_change_no_label_of_the_chart() {
    let mut values = everything();
    values["extraObjects"] = json!([]);
    values["commonLabels"] =
        json!({"team": "identity", "app.kubernetes.io/name": "other", "a": "common"});
    values["commonAnnotations"] = json!({"example/cost": "7", "helm.sh/resource-policy": "delete"});
    let release = release(values);
    for object in &release.objects {
        let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
        assert_eq!(metadata["labels"]["team"], "identity", "{kind}");
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/name"], "gatekey",
            "{kind}"
        );
        assert_eq!(metadata["annotations"]["example/cost"], "7", "{kind}");
        if kind == "Secret" {
            assert_eq!(metadata["annotations"]["helm.sh/resource-policy"], "keep");
        }
    }
    let pod = &release.pod()["metadata"];
    assert_eq!(pod["labels"]["team"], "identity");
    assert_eq!(pod["labels"]["a"], "b", "podLabels take precedence");
    assert_eq!(pod["labels"]["app.kubernetes.io/name"], "gatekey");
    assert_eq!(pod["annotations"]["example/cost"], Json::Null);
    let selector = &release.the("Deployment")["spec"]["selector"]["matchLabels"];
    assert_eq!(selector["team"], Json::Null, "a selector must never change");
}

#[test]
fn every_object_takes_annotations() {
    let mark = |name: &str| json!({"example/of": name});
    let mut values = everything();
    let sections = [
        ("service", "annotations"),
        ("serviceAccount", "annotations"),
        ("podDisruptionBudget", "annotations"),
        ("autoscaling", "annotations"),
        ("networkPolicy", "annotations"),
        ("serviceMonitor", "annotations"),
    ];
    for (section, field) in sections {
        values[section][field] = mark(section);
    }
    values["deploymentAnnotations"] = mark("deployment");
    values["secretAnnotations"] = mark("secret");
    values["adminToken"] = json!({});
    values["prometheusRule"] = json!({"enabled": true, "annotations": mark("prometheusRule")});
    values["dashboard"] = json!({"enabled": true, "annotations": mark("dashboard")});
    values["tls"]["certManager"] =
        json!({"enabled": true, "issuerRef": {"name": "ca"}, "annotations": mark("certificate")});
    let of = |release: &Release, kind: &str, suffix: &str, name: &str| {
        let object = release.named(kind, &format!("keys{suffix}"));
        assert_eq!(
            object["metadata"]["annotations"]["example/of"], name,
            "{kind}"
        );
    };
    values["fullnameOverride"] = json!("keys");
    let postgres = release(values);
    for (kind, suffix, name) in [
        ("Service", "", "service"),
        ("ServiceAccount", "", "serviceAccount"),
        ("PodDisruptionBudget", "", "podDisruptionBudget"),
        ("HorizontalPodAutoscaler", "", "autoscaling"),
        ("NetworkPolicy", "", "networkPolicy"),
        ("ServiceMonitor", "", "serviceMonitor"),
        ("Deployment", "", "deployment"),
        ("Secret", "", "secret"),
        ("PrometheusRule", "", "prometheusRule"),
        ("ConfigMap", "-dashboard", "dashboard"),
        ("Certificate", "", "certificate"),
    ] {
        of(&postgres, kind, suffix, name);
    }
    let sqlite = release(json!({
        "fullnameOverride": "keys",
        "database": {"engine": "sqlite"},
        "sqlite": {"annotations": mark("sqlite")},
        "secretAnnotations": mark("secret"),
        "tls": {"enabled": true},
        "service": {"headless": {"annotations": mark("headless")}},
    }));
    of(&sqlite, "PersistentVolumeClaim", "", "sqlite");
    of(&sqlite, "Secret", "-tls", "secret");
    of(&sqlite, "Service", "-headless", "headless");
}

#[test]
fn security_contexts_can_lose_single_fields_or_go_as_a_whole() {
    let assigned = json!({"runAsUser": null, "runAsGroup": null, "fsGroup": null});
    let openshift = with(&json!({"podSecurityContext": assigned}));
    let none = with(&json!({"podSecurityContext": null, "containerSecurityContext": null}));
    let other = with(
        &json!({"containerSecurityContext": {"readOnlyRootFilesystem": null, "runAsUser": 1000}}),
    );
    for pod in ["Deployment", "Pod"] {
        let spec = |release: &Release| match pod {
            "Pod" => release.the("Pod")["spec"].clone(),
            _ => release.pod()["spec"].clone(),
        };
        let kept = json!({
            "runAsNonRoot": true,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(spec(&openshift)["securityContext"], kept, "{pod}");
        let manifest = spec(&openshift).to_string();
        assert!(!manifest.contains("65532"), "{pod}: {manifest}");
        assert!(
            !spec(&none).to_string().contains("securityContext"),
            "{pod}"
        );
        let context = json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "runAsUser": 1000,
        });
        assert_eq!(
            spec(&other)["containers"][0]["securityContext"],
            context,
            "{pod}"
        );
    }
}

#[test]
fn containers_and_objects_of_the_values_are_templates() {
    let release = with(&json!({
        "initContainers": [{"name": "wait", "image": "wait"}],
        "sidecars": [{"name": "proxy", "image": "{{ .Release.Name }}"}],
        "extraEnv": [{"name": "OF", "value": "{{ include \"gatekey.fullname\" . }}"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 1,
            "podAffinityTerm": {
                "topologyKey": "rack",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "{{ .Release.Name }}"}},
            },
        }]}},
        "extraObjects": [
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-a\n  namespace: {{ .Release.Namespace }}\n",
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b", "namespace": "{{ .Release.Namespace }}"}},
        ],
    }));
    let spec = &release.pod()["spec"];
    let names = |list: &str| {
        let containers = spec[list].as_array().expect("containers").iter();
        containers
            .map(|it| text(&it["name"]).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("initContainers"), ["wait", "migrate"]);
    assert_eq!(names("containers"), ["gatekey", "proxy"]);
    assert_eq!(spec["containers"][1]["image"], "release");
    assert_eq!(super::variable(release.server(), "OF"), "release-gatekey");
    assert!(
        spec["affinity"]
            .to_string()
            .contains(r#""app.kubernetes.io/instance":"release""#)
    );
    for name in ["release-a", "b"] {
        assert_eq!(
            release.named("ConfigMap", name)["metadata"]["namespace"],
            "space"
        );
    }
}

#[test]
fn probes_keep_grpc_until_another_handler_replaces_it() {
    let release = with(&json!({
        "startupProbe": {"failureThreshold": 300},
        "readinessProbe": {"tcpSocket": {"port": "grpc"}},
        "livenessProbe": null,
    }));
    let server = release.server();
    let startup = json!({"grpc": {"port": 50052}, "periodSeconds": 2, "failureThreshold": 300});
    assert_eq!(server["startupProbe"], startup);
    assert_eq!(server["readinessProbe"]["tcpSocket"]["port"], "grpc");
    assert_eq!(server["readinessProbe"]["grpc"], Json::Null);
    assert_eq!(server["livenessProbe"], Json::Null);
}

#[test]
fn a_spread_without_a_selector_gets_the_servers_and_a_selector_stays() {
    let release = with(&json!({"topologySpreadConstraints": [
        {"topologyKey": "a", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"},
        {"topologyKey": "b", "maxSkew": 2, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"x": "y"}}},
    ]}));
    let spread = &release.pod()["spec"]["topologySpreadConstraints"];
    let selector = &release.the("Deployment")["spec"]["selector"];
    assert_eq!(&spread[0]["labelSelector"], selector);
    assert_eq!(spread[1]["labelSelector"]["matchLabels"]["x"], "y");
    let none = with(&json!({"topologySpreadConstraints": []}));
    assert_eq!(none.pod()["spec"]["topologySpreadConstraints"], Json::Null);
}

#[test]
fn autoscaling_service_and_service_monitor_pass_their_values_on() {
    let release = release(everything());
    let scaler = &release.the("HorizontalPodAutoscaler")["spec"];
    assert_eq!(
        scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"],
        60
    );
    assert_eq!(scaler["metrics"].as_array().map(Vec::len), Some(2));
    let service = &release.named("Service", &"k".repeat(50))["spec"];
    assert_eq!(
        service["loadBalancerSourceRanges"],
        json!(["10.0.0.0/8", "fd00::/8"])
    );
    assert_eq!(service["ports"][0]["port"], 443);
    let endpoint = &release.the("ServiceMonitor")["spec"]["endpoints"][0];
    assert_eq!(endpoint["scrapeTimeout"], "10s");
    assert_eq!(endpoint["relabelings"][0]["targetLabel"], "node");
    assert_eq!(endpoint["metricRelabelings"][0]["action"], "drop");
}

#[test]
fn cert_manager_issues_the_certificate_that_the_server_reads() {
    let issuer = json!({"enabled": true, "issuerRef": {"name": "ca"}});
    let release = with(&json!({"tls": {"enabled": true, "certManager": issuer}}));
    let certificate = &release.the("Certificate")["spec"];
    assert_eq!(
        certificate["issuerRef"],
        json!({"name": "ca", "kind": "Issuer", "group": "cert-manager.io"})
    );
    let names = certificate["dnsNames"].as_array().expect("names");
    for service in release.all("Service") {
        let name = text(&service["metadata"]["name"]);
        for suffix in ["", ".space", ".space.svc", ".space.svc.cluster.local"] {
            assert!(
                names.contains(&json!(format!("{name}{suffix}"))),
                "{name}{suffix}"
            );
        }
    }
    // The Secret is the one that is mounted, and the chart generates none.
    let sources = release.pod()["spec"]["volumes"][0]["projected"]["sources"].to_string();
    let secret = text(&certificate["secretName"]);
    assert!(
        sources.contains(&format!(r#""name":"{secret}""#)),
        "{sources}"
    );
    assert!(
        release
            .all("Secret")
            .iter()
            .all(|it| it["type"] == "Opaque")
    );

    let mut own = json!({"enabled": true, "certManager": issuer});
    own["certManager"]["dnsNames"] = json!(["{{ .Release.Name }}.example.com"]);
    let release = with(&json!({"tls": own}));
    assert_eq!(
        release.the("Certificate")["spec"]["dnsNames"],
        json!(["release.example.com"])
    );
}
