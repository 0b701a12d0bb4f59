//! Values that render are values that the program starts with.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use proptest::{prelude::*, sample::select};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{
    Release,
    bounds::{AGE, LEASE, UNITS, draw},
    env, releases, text, variable,
};
use crate::support::Authority;

/// How long a server may take to become ready.
const DEADLINE: Duration = Duration::from_mins(1);
/// The number of random releases to start; `GATEKEY_CHART_CASES` sets another one.
fn cases() -> usize {
    let cases = std::env::var("GATEKEY_CHART_CASES");
    cases.map_or(8, |cases| cases.parse().expect("a number"))
}

/// Durations within these bounds.
fn valid([low, high]: [u64; 2]) -> impl Strategy<Value = String> {
    let unit = UNITS.into_iter().filter(move |(_, factor)| *factor <= high);
    select(unit.collect::<Vec<_>>()).prop_flat_map(move |(unit, factor)| {
        let number = low.div_ceil(factor)..=high / factor;
        number.prop_map(move |number| format!("{number}{unit}"))
    })
}

/// Random values that the chart accepts, on SQLite.
fn values() -> impl Strategy<Value = Json> {
    let config = (
        (
            1_u64..2_000_000,
            0_u64..2_000_000,
            valid(LEASE),
            valid(AGE),
            0..=86_400,
        ),
        (
            select(vec!["required", "none"]),
            select(vec!["off", "error", "warn", "info", "debug", "trace"]),
            select(vec!["json", "text"]),
        ),
        (1024..=65_536, 1..=8, 1..=4).prop_map(|(m, t, p)| format!("m={m},t={t},p={p}")),
    );
    let config = config.prop_map(|((cache, warm, lease, age, drain), (auth, log, format), argon2)| {
        json!({
            "cacheKeys": cache, "warmKeys": warm, "lease": lease, "maxConnectionAge": age, "drainSeconds": drain,
            "validateAuth": auth, "log": log, "logFormat": format, "argon2": argon2,
        })
    });
    let tls = select(vec![
        json!({}),
        json!({"enabled": true}),
        json!({"enabled": true, "existingSecret": "own-tls"}),
        json!({"enabled": true, "existingSecret": "own-tls", "clientCa": {"existingSecret": "own-ca"}}),
        json!({"enabled": true, "generatedDays": 1, "clientCa": {"existingSecret": "own-ca"}}),
    ]);
    let listen = (
        select(vec!["0.0.0.0", "::"]),
        1024_u16..30_000,
        30_000_u16..40_000,
        40_000_u16..,
    );
    let endpoint = select(vec![
        "",
        "http://127.0.0.1:4317",
        "https://[::1]:4317/",
        "http://localhost",
    ]);
    let routes = prop::collection::vec(route(), 0..4);
    let rest = (any::<bool>(), any::<bool>(), 1_u32..64, endpoint, 1..600);
    (config, tls, listen, rest, routes).prop_map(
        |(config, tls, listen, (pepper, metrics, cores, endpoint, stop), routes)| {
            json!({
                "database": {"engine": "sqlite"},
                "config": config,
                "routes": routes,
                "tls": tls,
                "listenHost": listen.0,
                "ports": {"grpc": listen.1, "health": listen.2, "metrics": listen.3},
                "pepper": {"enabled": pepper},
                "metrics": {"enabled": metrics},
                "cores": cores,
                "otel": {"endpoint": endpoint},
                "preStopSeconds": stop,
            })
        },
    )
}

/// A random route that the chart accepts.
fn route() -> impl Strategy<Value = Json> {
    let scopes = "[-A-Za-z0-9_./]{1,64}(:[-A-Za-z0-9_./]{1,64}){0,7}";
    let fields = (
        prop::option::of("([*][.])?[A-Za-z0-9]([-A-Za-z0-9.]{0,20}[-A-Za-z0-9])?"),
        prop::option::of(prop::collection::vec("[A-Z]{1,32}", 1..16)),
        "/([A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,9}/){0,3}([A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,9})?",
        "([*]|[a-z0-9][a-z0-9-]{0,62})",
        prop::option::of(prop::collection::vec(scopes, 1..9)),
        prop::option::of("[!-~]{1,255}"),
        prop::option::of("[-A-Za-z0-9_]{1,64}"),
        prop::option::of("[-A-Za-z0-9._~]{1,64}"),
        prop::option::of(any::<bool>()),
    );
    fields.prop_map(|fields| {
        let names = [
            "host",
            "methods",
            "path_prefix",
            "tenant",
            "scopes",
            "audience",
            "header",
        ];
        let names = names
            .into_iter()
            .chain(["query_parameter", "forward_credential"]);
        let fields = json!(fields);
        let fields = names.zip(fields.as_array().cloned().unwrap_or_default());
        let given = fields.filter(|(_, value)| !value.is_null());
        given
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<serde_json::Map<_, _>>()
            .into()
    })
}

#[test]
fn a_server_with_any_values_that_render_becomes_ready() {
    let values = draw(cases(), values());
    for (values, release) in values.iter().zip(releases(values.clone())) {
        let pod = Pod::new(&release);
        let migrated = pod.command(release.migration()).output();
        let migrated = migrated.expect("cargo has built the program");
        assert!(migrated.status.success(), "{values}: {migrated:?}");
        let server = pod
            .command(release.server())
            .spawn()
            .expect("cargo has built the program");
        pod.wait_until_ready(Server(server), &release, values);
    }
}

/// A server; killed on drop.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The volumes of a pod, in a folder, and free ports instead of its own.
struct Pod {
    folder: TempDir,
    ports: Vec<u16>,
}

impl Pod {
    fn new(release: &Release) -> Pod {
        let folder = TempDir::new().expect("a temporary folder");
        let secrets = folder.path().join("etc/gatekey");
        for folder in [&secrets, &folder.path().join("var/lib/gatekey")] {
            fs::create_dir_all(folder).expect("the folder takes folders");
        }
        mount(release, &secrets);
        let routes = release.all("ConfigMap");
        for map in routes
            .iter()
            .filter(|map| !map["data"]["routes.yaml"].is_null())
        {
            let folder = folder.path().join("etc/gatekey-routes");
            fs::create_dir_all(&folder).expect("the folder takes folders");
            let content = text(&map["data"]["routes.yaml"]);
            fs::write(folder.join("routes.yaml"), content).expect("the folder takes files");
        }
        let free = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let free: Vec<_> = (0..3).map(free).collect();
        let ports = free
            .iter()
            .map(|it| it.local_addr().expect("it is bound").port());
        Pod {
            ports: ports.collect(),
            folder,
        }
    }

    /// The command of a container, with paths and ports of this test.
    fn command(&self, container: &Json) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatekey"));
        command
            .args(
                container["args"]
                    .as_array()
                    .expect("arguments")
                    .iter()
                    .map(text),
            )
            .env_clear();
        for (name, value) in env(container) {
            command.env(
                name,
                self.rewritten(name, value.expect("nothing here is in a Secret")),
            );
        }
        command
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn rewritten(&self, name: &str, value: &str) -> String {
        let listen = [
            "GATEKEY_LISTEN",
            "GATEKEY_HEALTH_LISTEN",
            "GATEKEY_METRICS_LISTEN",
        ];
        match listen.iter().position(|it| *it == name) {
            Some(port) if value != "off" => {
                let (host, _) = value.rsplit_once(':').expect("a port");
                let host = if host == "[::]" { "[::1]" } else { "127.0.0.1" };
                format!("{host}:{}", self.ports[port])
            }
            _ => {
                let root = self.folder.path().display();
                let value = value.replace("/var/lib/gatekey", &format!("{root}/var/lib/gatekey"));
                value.replace("/etc/gatekey", &format!("{root}/etc/gatekey"))
            }
        }
    }

    /// Runs the program's own health check until it succeeds.
    fn wait_until_ready(&self, mut server: Server, release: &Release, values: &Json) {
        const LISTEN: &str = "GATEKEY_HEALTH_LISTEN";
        let mut check = Command::new(env!("CARGO_BIN_EXE_gatekey"));
        check.arg("health").env_clear().stderr(Stdio::null());
        check.env(
            LISTEN,
            self.rewritten(LISTEN, variable(release.server(), LISTEN)),
        );
        let mut stderr = server.0.stderr.take().expect("a pipe");
        let log = thread::spawn(move || {
            let mut log = String::new();
            std::io::Read::read_to_string(&mut stderr, &mut log).map(|_| log)
        });
        let begin = Instant::now();
        while !check
            .status()
            .expect("cargo has built the program")
            .success()
        {
            let ended = server.0.try_wait().expect("it is our child");
            if ended.is_some() || begin.elapsed() > DEADLINE {
                drop(server);
                panic!("not ready: {ended:?} with {values}\n{:?}", log.join());
            }
        }
    }
}

/// Writes the files of the volume `secrets`.
fn mount(release: &Release, folder: &Path) {
    let authority = Authority::new("own");
    let identity = authority.issue_server();
    for source in release.pod()["spec"]["volumes"][0]["projected"]["sources"]
        .as_array()
        .expect("sources")
    {
        let name = text(&source["secret"]["name"]);
        for item in source["secret"]["items"].as_array().expect("items") {
            let content = match (name, text(&item["key"])) {
                ("own-tls", "tls.crt") => identity.cert.clone().into_bytes(),
                ("own-tls", "tls.key") => identity.key.clone().into_bytes(),
                ("own-ca", _) => authority.pem.clone().into_bytes(),
                (_, key) => {
                    let data = &release.named("Secret", name)["data"];
                    BASE64_STANDARD.decode(text(&data[key])).expect("base64")
                }
            };
            fs::write(folder.join(text(&item["path"])), content).expect("the folder takes files");
        }
    }
}
