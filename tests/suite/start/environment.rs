//! Variables of the environment that are empty, or that are no setting.

use rustix::process::Signal;
use tempfile::TempDir;

use super::settings::SETTINGS;
use crate::program::{Program, Running};

/// Settings without a default, and what OpenTelemetry defines.
const OPTIONAL: [&str; 13] = [
    "GATEKEY_HEALTH_LISTEN",
    "GATEKEY_WORKERS",
    "GATEKEY_TLS_CERT_FILE",
    "GATEKEY_TLS_KEY_FILE",
    "GATEKEY_TLS_CLIENT_CA_FILE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_BSP_SCHEDULE_DELAY",
];

#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = Program::bare(
        folder.path(),
        &["--listen", "127.0.0.1:0", "--metrics-listen", "off"],
    );
    let settings = SETTINGS.iter().map(|(_, variable, _)| *variable);
    let program = settings
        .chain(OPTIONAL)
        .fold(program, |program, variable| program.env(variable, ""));
    let mut server = program.start();
    server.serving().await;
    assert!(folder.path().join("gatekey.db").is_file());
    assert_eq!(warnings(server).await, [""; 0]);
}

#[tokio::test]
async fn a_variable_that_is_no_setting_is_reported_with_the_nearest_one_and_without_its_value() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut server = Program::bare(folder.path(), &[])
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "off")
        .env("GATEKEY_DB_URL", "postgres://ada:hunter2@db/keys")
        .env("GATEKEY_LISEN", "")
        .env("GATEKEY_PORT", "hunter2")
        .env("GATEKEY_TOKEN_FILE", "hunter2")
        // What Kubernetes sets because of a Service called gatekey.
        .env("GATEKEY_SERVICE_HOST", "10.0.0.7")
        .env("GATEKEY_SERVICE_PORT", "50051")
        .env("GATEKEY_SERVICE_PORT_GRPC", "50051")
        .env("GATEKEY_PORT_50051_TCP", "tcp://10.0.0.7:50051")
        .env("GATEKEY_PORT_50051_TCP_ADDR", "10.0.0.7")
        .env("GATEKEY_METRICS_PORT", "tcp://10.0.0.8:9464")
        .env("NOT_GATEKEY_LISTEN", "1")
        .start();
    server.serving().await;
    let warnings = warnings(server).await;
    let reported: Vec<_> = warnings
        .iter()
        .filter_map(|line| {
            let (variable, nearest) =
                line.split_once(" is not a setting of gatekey; the nearest setting is ")?;
            Some((variable.rsplit(' ').next()?, nearest))
        })
        .collect();
    let near_port = reported[2].1;
    assert_eq!(
        reported,
        [
            ("GATEKEY_DB_URL", "GATEKEY_DATABASE_URL"),
            ("GATEKEY_LISEN", "GATEKEY_LISTEN"),
            ("GATEKEY_PORT", near_port),
            ("GATEKEY_TOKEN_FILE", "GATEKEY_ADMIN_TOKEN_FILE"),
        ]
    );
    assert_eq!(warnings.len(), reported.len(), "{warnings:?}");
    assert!(!warnings.concat().contains("hunter2"), "{warnings:?}");
}

/// Stops a server, and returns the warnings that it logged until it served.
async fn warnings(server: Running) -> Vec<String> {
    let log = server.log().to_owned();
    let (status, _) = server.end_by(Signal::TERM).await;
    assert!(status.success(), "{status}");
    let lines = log.lines().filter(|line| line.contains(" WARN "));
    lines.map(str::to_owned).collect()
}
