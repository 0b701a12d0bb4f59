//! What is deployed: with each option on and off, and that its parts fit each other and the program.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value as Json, json};

use super::{
    Release, env,
    options::{every_release, everything, minimal},
    release, text, variable,
};
use crate::support::tool::run;

/// Settings that stand for another one that the chart sets.
const ALTERNATIVES: [&str; 1] = ["GATEKEY_DATABASE_URL_FILE"];
/// Every setting of the contract, each of which the chart sets.
const SETTINGS: [&str; 23] = [
    "GATEKEY_ADMIN_TOKEN_FILE",
    "GATEKEY_ALLOW_READABLE_SECRETS",
    "GATEKEY_ARGON2",
    "GATEKEY_CACHE_KEYS",
    "GATEKEY_CONNECTIONS_PER_ADDRESS",
    "GATEKEY_DATABASE_URL",
    "GATEKEY_DRAIN",
    "GATEKEY_HEALTH_LISTEN",
    "GATEKEY_LEASE",
    "GATEKEY_LISTEN",
    "GATEKEY_LOG",
    "GATEKEY_LOG_FORMAT",
    "GATEKEY_MAX_CONNECTION_AGE",
    "GATEKEY_METRICS_LISTEN",
    "GATEKEY_PEPPER_FILE",
    "GATEKEY_ROUTES_FILE",
    "GATEKEY_TLS_CERT_FILE",
    "GATEKEY_TLS_CLIENT_CA_FILE",
    "GATEKEY_TLS_KEY_FILE",
    "GATEKEY_VALIDATE_AUTH",
    "GATEKEY_WARM_KEYS",
    "GATEKEY_WORKERS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

#[test]
fn every_option_on_and_off_passes_helms_linter_and_kubernetes_schemas_and_fits_together() {
    let releases = every_release(); // which have no faults
    assert!(releases.len() > 50);
    for (name, release) in &releases {
        names_are_names(name, release);
        pods_are_confined(name, release);
        selectors_select(name, release);
        volumes_and_secrets_are_there(name, release);
        a_stop_has_time(name, release);
    }
}

/// What Kubernetes asks of names, which its schemas do not tell.
fn names_are_names(of: &str, release: &Release) {
    let mut seen = BTreeSet::new();
    for it in &release.objects {
        let (kind, name) = (text(&it["kind"]), text(&it["metadata"]["name"]));
        assert_eq!(it["metadata"]["namespace"], "space", "{of}: {kind} {name}");
        assert!(name.len() <= 63 && !name.ends_with('-'), "{of}: {name}");
        assert!(seen.insert((kind, name)), "{of}: {kind} {name} twice");
    }
}

/// The chart's own containers of a pod.
fn own_containers(pod: &Json) -> impl Iterator<Item = &Json> {
    let init = pod["initContainers"].as_array().into_iter().flatten();
    let all = init.chain(pod["containers"].as_array().expect("containers"));
    all.filter(|it| ["migrate", "gatekey", "lifecycle"].contains(&text(&it["name"])))
}

fn pods_are_confined(of: &str, release: &Release) {
    // Options that take the security contexts away are checked in overrides.rs.
    let own_contexts = of.starts_with("no security contexts") || of.starts_with("assigned user");
    for pod in [release.pod(), release.the("Pod")] {
        let pod = &pod["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{of}");
        assert_eq!(pod["enableServiceLinks"], false, "{of}");
        if !own_contexts {
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{of}");
            assert_eq!(security["runAsUser"], 65532, "{of}");
            assert_eq!(
                security["seccompProfile"],
                json!({"type": "RuntimeDefault"}),
                "{of}"
            );
        }
        for container in own_containers(pod) {
            let confined = json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            });
            if !own_contexts {
                assert_eq!(container["securityContext"], confined, "{of}");
            }
            assert!(
                container["resources"]["limits"]["memory"].is_string(),
                "{of}"
            );
            let mut names: Vec<_> = env(container).into_iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{of}: a variable twice");
        }
    }
}

/// Every selector finds the server's pods, and none the pod of `helm test`.
fn selectors_select(of: &str, release: &Release) {
    let server = &release.pod()["metadata"]["labels"];
    let test = &release.the("Pod")["metadata"]["labels"];
    let selects = |selector: &Json, labels: &Json| {
        let selector = selector.as_object().expect("a selector");
        !selector.is_empty() && selector.iter().all(|(name, value)| &labels[name] == value)
    };
    let deployment = &release.the("Deployment")["spec"]["selector"]["matchLabels"];
    let mut selectors = vec![deployment];
    let services = release.all("Service").into_iter();
    let services = services.filter(|it| it["spec"]["type"] != "ExternalName");
    let services: Vec<_> = services.collect();
    selectors.extend(services.iter().map(|it| &it["spec"]["selector"]));
    for budget in release.all("PodDisruptionBudget") {
        selectors.push(&budget["spec"]["selector"]["matchLabels"]);
    }
    for policy in release.all("NetworkPolicy") {
        selectors.push(&policy["spec"]["podSelector"]["matchLabels"]);
    }
    let spread = release.pod()["spec"]["topologySpreadConstraints"].as_array();
    for constraint in spread.into_iter().flatten() {
        selectors.push(&constraint["labelSelector"]["matchLabels"]);
    }
    for selector in selectors {
        assert!(selects(selector, server), "{of}: {selector}");
        assert!(!selects(selector, test), "{of}: {selector}");
    }
    // A Service's port leads to a port of the container, by name.
    let ports = release.server()["ports"].as_array().expect("ports");
    for service in &services {
        for port in service["spec"]["ports"].as_array().expect("ports") {
            let target = ports.iter().find(|it| it["name"] == port["targetPort"]);
            let target = target.unwrap_or_else(|| panic!("{of}: no port for {port}"));
            // Nothing translates the ports of a Service without an address.
            let headless = service["spec"]["clusterIP"] == "None";
            assert!(!headless || target["containerPort"] == port["port"], "{of}");
        }
    }
    // One Service is scraped, by a port that it has.
    for monitor in release.all("ServiceMonitor") {
        let selector = &monitor["spec"]["selector"]["matchLabels"];
        let found: Vec<_> = services
            .iter()
            .filter(|it| selects(selector, &it["metadata"]["labels"]))
            .collect();
        assert_eq!(found.len(), 1, "{of}: {selector}");
        let endpoint = &monitor["spec"]["endpoints"][0];
        let ports = found[0]["spec"]["ports"].as_array().expect("ports");
        assert!(
            ports.iter().any(|it| it["name"] == endpoint["port"]),
            "{of}"
        );
        assert_eq!(endpoint["path"], "/metrics", "{of}");
    }
    for scaler in release.all("HorizontalPodAutoscaler") {
        let target = &scaler["spec"]["scaleTargetRef"];
        release.named(text(&target["kind"]), text(&target["name"]));
        let replicas = &release.the("Deployment")["spec"]["replicas"];
        assert_eq!(
            replicas,
            &Json::Null,
            "{of}: two that decide on the replicas"
        );
    }
}

/// What is mounted is a volume, and what a volume is of is in the release or was named in the values.
fn volumes_and_secrets_are_there(of: &str, release: &Release) {
    let foreign = ["db", "mine", "ca"];
    for pod in [release.pod(), release.the("Pod")] {
        let pod = &pod["spec"];
        let volumes = pod["volumes"].as_array().expect("volumes");
        let init = pod["initContainers"].as_array().into_iter().flatten();
        for container in init.chain(pod["containers"].as_array().expect("containers")) {
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                let volume = volumes.iter().find(|it| it["name"] == mount["name"]);
                assert!(volume.is_some(), "{of}: {mount}");
            }
        }
        for volume in volumes {
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                assert!(
                    claim == "mine"
                        || claim == text(&release.the("PersistentVolumeClaim")["metadata"]["name"])
                );
            }
            for source in volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let (name, items) = (text(&source["secret"]["name"]), &source["secret"]["items"]);
                if foreign.contains(&name) {
                    continue;
                }
                // cert-manager creates it.
                let certificates = release.all("Certificate");
                if certificates
                    .iter()
                    .any(|it| it["spec"]["secretName"] == name)
                {
                    continue;
                }
                let secret = release.named("Secret", name);
                for item in items.as_array().expect("items") {
                    let value = secret["data"][text(&item["key"])].as_str();
                    assert!(value.is_some(), "{of}: {item} of {name}");
                }
            }
        }
    }
    let account = &release.pod()["spec"]["serviceAccountName"];
    let accounts = release.all("ServiceAccount");
    assert!(
        account == "default" || accounts[0]["metadata"]["name"] == *account,
        "{of}"
    );
}

/// The kubelet's patience is longer than the sleep before the stop and the stop itself.
fn a_stop_has_time(of: &str, release: &Release) {
    let server = release.server();
    let sleep = server["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
    let drain = variable(server, "GATEKEY_DRAIN").strip_suffix('s');
    let drain: u64 = drain.expect("seconds").parse().expect("a number");
    let deadline = release.pod()["spec"]["terminationGracePeriodSeconds"].as_u64();
    assert!(deadline > sleep.map(|sleep| sleep + drain), "{of}");
}

#[test]
fn a_secret_with_the_databases_url_is_all_that_is_needed() {
    let release = release(minimal());
    let kinds = [
        "Deployment",
        "Pod",
        "PodDisruptionBudget",
        "Secret",
        "Service",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(release.kinds(), kinds);
    let deployment = &release.the("Deployment")["spec"];
    assert_eq!(deployment["replicas"], 3);
    let rolling =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    assert_eq!(deployment["strategy"], rolling);
    // As long as gRPC's clients may go without asking DNS again.
    assert_eq!(deployment["minReadySeconds"], 30);

    let url = json!({"secretKeyRef": {"name": "db", "key": "url"}});
    let migrate = release.migration();
    assert_eq!(migrate["args"], json!(["migrate"]));
    for container in [migrate, release.server()] {
        assert_eq!(container["env"][0]["name"], "GATEKEY_DATABASE_URL");
        assert_eq!(container["env"][0]["valueFrom"], url);
        assert_eq!(
            container["image"],
            format!("gatekey:{}", env!("CARGO_PKG_VERSION"))
        );
    }

    let server = release.server();
    let health = variable(server, "GATEKEY_HEALTH_LISTEN");
    let port: u16 = health
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let service = |probe: &str| {
        assert_eq!(server[probe]["grpc"]["port"], port, "{probe}");
        server[probe]["grpc"]["service"].clone()
    };
    assert_eq!(service("startupProbe"), Json::Null);
    assert_eq!(service("livenessProbe"), Json::Null);
    assert_eq!(service("readinessProbe"), gatekey::api::READINESS);

    assert!(release.notes.contains("release-gatekey.space.svc:50051"));
    assert!(release.notes.contains("helm -n space test release"));
    assert!(
        release
            .notes
            .contains("get secret release-gatekey -o go-template='{{index .data \"admin-token\"")
    );
}

#[test]
fn sqlite_is_one_replica_with_a_volume_that_is_gone_before_the_next_comes() {
    let release = release(json!({"database": {"engine": "sqlite"}}));
    let deployment = &release.the("Deployment")["spec"];
    assert_eq!(deployment["replicas"], 1);
    assert_eq!(deployment["strategy"], json!({"type": "Recreate"}));
    assert_eq!(deployment["minReadySeconds"], Json::Null);
    assert_eq!(release.all("PodDisruptionBudget").len(), 0);
    let claim = release.the("PersistentVolumeClaim");
    let kept = &claim["metadata"]["annotations"]["helm.sh/resource-policy"];
    assert_eq!(kept, "keep");
    for container in [release.server(), release.migration()] {
        let url = variable(container, "GATEKEY_DATABASE_URL");
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let data = mounts
            .iter()
            .find(|it| it["name"] == "data")
            .expect("a volume");
        let folder = format!("sqlite://{}/", text(&data["mountPath"]));
        assert!(url.starts_with(&folder), "{url}");
        assert_eq!(data["readOnly"], Json::Null);
    }
}

#[test]
fn the_chart_sets_every_setting_of_the_program_and_no_other() {
    let mut set = BTreeSet::new();
    let release = release(everything());
    for container in [release.server(), release.migration()] {
        set.extend(env(container).into_iter().map(|(name, _)| name));
    }
    let own: BTreeSet<_> = ["OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"].into();
    let set: BTreeSet<_> = set.difference(&own).copied().collect();
    assert_eq!(set, SETTINGS.into());

    let help = run(Command::new(env!("CARGO_BIN_EXE_gatekey")).arg("--help"));
    let known = help.split("[env: ").skip(1);
    let known: Vec<_> = known.filter_map(|it| it.split(['=', ']']).next()).collect();
    assert!(known.len() >= 9, "{help}");
    for setting in known {
        assert!(
            set.contains(setting) || ALTERNATIVES.contains(&setting),
            "the chart has no value for {setting}"
        );
    }
}

#[test]
fn a_network_policy_for_some_lets_the_test_in_and_the_server_out_to_its_database() {
    let mut values = minimal();
    let clients = json!([{"podSelector": {"matchLabels": {"app": "orders"}}}]);
    values["networkPolicy"] = json!({"enabled": true, "clients": clients, "databasePort": 6432});
    let release = release(values);
    let policy = &release.the("NetworkPolicy")["spec"];
    let from = policy["ingress"][0]["from"].as_array().expect("peers");
    assert_eq!(from[0], clients[0]);
    let peer = from[1]["podSelector"]["matchLabels"]
        .as_object()
        .expect("labels");
    let labels = &release.the("Pod")["metadata"]["labels"];
    assert!(
        peer.iter().all(|(name, value)| &labels[name] == value),
        "{peer:?}"
    );
    let out: Vec<_> = policy["egress"]
        .as_array()
        .expect("rules")
        .iter()
        .map(|it| &it["ports"])
        .collect();
    let dns = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
    assert_eq!(out, [&dns, &json!([{"port": 6432, "protocol": "TCP"}])]);
}
