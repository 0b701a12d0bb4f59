//! Telemetry: log lines to stderr, and traces over OTLP (gRPC) to an OpenTelemetry collector if,
//! and only if, the environment names one.
//!
//! This module contains only the exporters; spans and events are created in the code that they
//! describe. A collector that is slow or unavailable costs spans and one log line; it never delays
//! or fails a call or the startup.

use std::{
    env, io,
    io::IsTerminal as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{Sampler, SdkTracerProvider, SpanData},
};
use tonic::transport::ClientTlsConfig;
use tracing::{Metadata, Subscriber, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{
    Layer,
    filter::{FilterExt as _, Targets, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::api::trace::Tracing;

/// Maximum time that [`Telemetry::stop`] waits for the last spans to reach the collector.
const FLUSH: Duration = Duration::from_secs(5);

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people: one line, in colour on a terminal.
    Text,
    /// For machines: one object a line, `{"timestamp","level","fields":{"message",…},"target"}`.
    Json,
}

/// The reason why telemetry could not start. An unresponsive collector is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable has an invalid value.
    #[error("{variable} is invalid: {value}: must be {want}")]
    Setting {
        /// The variable's name.
        variable: &'static str,
        /// The value of the variable.
        value: String,
        /// The accepted values.
        want: &'static str,
    },
    /// The collector's address, or another setting of the exporter, is invalid.
    #[error("{variable} is invalid: {source}; must be a URL such as http://collector:4317")]
    Exporter {
        /// The variable's name.
        variable: &'static str,
        /// The exporter's own error.
        source: ExporterBuildError,
    },
    /// This process already has a logger.
    #[error("the log cannot start: {0}")]
    Log(#[from] TryInitError),
}

/// Running telemetry.
#[derive(Debug)]
#[must_use = "without `stop` the last spans are lost"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Starts the log and, if the environment names a collector, the traces.
///
/// `log` is the level of gatekey's own lines; dependencies log at most warnings. With a collector,
/// the caller must be inside the multi-threaded runtime, which from then on carries the exporter's
/// connection.
///
/// # Errors
/// Fails if a setting is invalid, or on a second call.
pub fn start(log: LevelFilter, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let collector = first(&[
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]);
    let provider = collector
        .map(|(variable, _)| provider(variable))
        .transpose()?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("gatekey"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            // A separate filter, so that a quiet log does not stop the traces.
            .with_filter(Targets::new().with_target("gatekey", LevelFilter::INFO))
    });
    tracing_subscriber::registry()
        .with(lines(log, format))
        .with(traces)
        .try_init()?;
    if let Some(provider) = &provider {
        global::set_tracer_provider(provider.clone());
    }
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Returns the tracer and sampler for the spans of calls; `None` without a collector, because
    /// the spans would have no receiver.
    #[must_use]
    pub fn tracing(&self) -> Option<Tracing> {
        self.provider.as_ref().map(|provider| Tracing {
            tracer: provider.tracer("gatekey"),
            sampler: sampler(),
        })
    }

    /// Sends the remaining spans, for at most five seconds, and ends the traces.
    ///
    /// Blocks while the runtime that [`start`] was called in sends the spans. A task on that
    /// runtime must use `spawn_blocking`.
    pub fn stop(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            warn!(%error, "the last spans did not reach the collector");
        }
    }
}

fn lines<S>(log: LevelFilter, format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    // Dependencies log at most warnings at any level, because lines of h2 at debug, or of sqlx at
    // trace, may contain headers and parameters, and these contain keys.
    let filter = Targets::new()
        .with_target("gatekey", log)
        // Its warning about an unknown parameter of a database URL repeats the input.
        .with_target("sqlx_postgres::options", LevelFilter::OFF)
        .with_default(log.min(LevelFilter::WARN))
        // Spans are only for traces; log lines do not contain them.
        .and(filter_fn(|it: &Metadata<'_>| it.is_event()).with_max_level_hint(log));
    let lines = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && first(&["NO_COLOR"]).is_none();
            lines.with_ansi(colour).with_filter(filter).boxed()
        }
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    }
}

/// Creates the exporter and its queue. The SDK itself reads most `OTEL_*` variables: headers,
/// timeout, batching (`OTEL_BSP_*`), limits. This function adds the rest.
fn provider(endpoint: &'static str) -> Result<SdkTracerProvider, TelemetryError> {
    check()?;
    let otlp = SpanExporter::builder()
        .with_tonic()
        // Only for https; without it the exporter would trust no certificate.
        .with_tls_config(ClientTlsConfig::new().with_enabled_roots())
        .build()
        .map_err(|source| TelemetryError::Exporter {
            variable: endpoint,
            source,
        })?;
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "gatekey"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ])
        // Last, because it takes precedence over a service.name in OTEL_RESOURCE_ATTRIBUTES; the
        // SDK's own order of detectors gets this wrong.
        .with_attributes(
            first(&["OTEL_SERVICE_NAME"]).map(|(_, it)| KeyValue::new("service.name", it)),
        );
    Ok(SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_sampler(sampler())
        .with_batch_exporter(Exporter {
            otlp,
            failing: AtomicBool::new(false),
        })
        .build())
}

/// Rejects values that the SDK would replace by a default. Its warning would be lost because it is
/// emitted before logging starts.
fn check() -> Result<(), TelemetryError> {
    type Rule = (&'static [&'static str], &'static str, fn(&str) -> bool);
    let rules: [Rule; 3] = [
        (
            &[
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ],
            "grpc",
            |it| it == "grpc",
        ),
        (
            &["OTEL_TRACES_SAMPLER"],
            "always_on, always_off or traceidratio, or one of these after parentbased_",
            |it| {
                let root = it.strip_prefix("parentbased_").unwrap_or(it);
                matches!(root, "always_on" | "always_off" | "traceidratio")
            },
        ),
        (&["OTEL_TRACES_SAMPLER_ARG"], "a number from 0 to 1", |it| {
            it.parse().is_ok_and(|it: f64| (0.0..=1.0).contains(&it))
        }),
    ];
    for (variables, want, good) in rules {
        if let Some((variable, value)) = first(variables)
            && !good(&value)
        {
            return Err(TelemetryError::Setting {
                variable,
                value,
                want,
            });
        }
    }
    Ok(())
}

/// Returns the sampler that the variables select, which [`check`] has validated.
fn sampler() -> Sampler {
    let name = first(&["OTEL_TRACES_SAMPLER"]);
    let name = name.map_or_else(|| "parentbased_always_on".to_owned(), |(_, it)| it);
    let ratio = first(&["OTEL_TRACES_SAMPLER_ARG"]).and_then(|(_, it)| it.parse().ok());
    let (parent_based, root) = match name.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, &*name),
    };
    let root = match root {
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio.unwrap_or(1.0)),
        _ => Sampler::AlwaysOn,
    };
    if parent_based {
        Sampler::ParentBased(Box::new(root))
    } else {
        root
    }
}

/// Returns the first of these variables that is set. An empty one counts as unset, as the
/// OpenTelemetry specification requires.
fn first(variables: &[&'static str]) -> Option<(&'static str, String)> {
    variables.iter().find_map(|&variable| {
        let value = env::var(variable).ok().filter(|it| !it.is_empty())?;
        Some((variable, value))
    })
}

/// The OTLP exporter. It logs once when spans are lost and once when they arrive again, instead of
/// an error for every batch.
#[derive(Debug)]
struct Exporter {
    otlp: SpanExporter,
    failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.otlp.export(batch).await;
        match (
            &result,
            self.failing.swap(result.is_err(), Ordering::Relaxed),
        ) {
            (Err(error), false) => warn!(%error, "traces are lost: the collector takes none"),
            (Ok(()), true) => info!("the collector takes traces again"),
            _ => {}
        }
        Ok(()) // an error is said above, once; the SDK would repeat it
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
