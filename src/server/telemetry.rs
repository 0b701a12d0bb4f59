//! What leaves the process about itself: log lines to stderr, and traces over OTLP (gRPC) to an
//! OpenTelemetry collector when, and only when, the environment names one.
//!
//! Exporters only: spans and events are made where things happen. A collector that is slow, gone
//! or never there costs spans and one log line; it never holds up or fails a call, or the start.

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

use crate::grpc::trace::Tracing;

/// The longest that [`Telemetry::stop`] waits for the last spans to reach the collector.
const FLUSH: Duration = Duration::from_secs(5);

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people: one line, in colour on a terminal.
    Text,
    /// For machines: one object a line, `{"timestamp","level","fields":{"message",…},"target"}`.
    Json,
}

/// Why telemetry could not start. Never a collector that does not answer.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable has an invalid value.
    #[error("{variable} is invalid: {value}: must be {want}")]
    Setting {
        /// The variable's name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What would be right.
        want: &'static str,
    },
    /// The collector's address, or another setting of the exporter, is invalid.
    #[error("{variable} is invalid: {source}; must be a URL such as http://collector:4317")]
    Exporter {
        /// The variable's name.
        variable: &'static str,
        /// The exporter's own description.
        source: ExporterBuildError,
    },
    /// Something in this process logs already.
    #[error("the log cannot start: {0}")]
    Log(#[from] TryInitError),
}

/// Telemetry under way.
#[derive(Debug)]
#[must_use = "without `stop` the last spans are lost"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Starts the log and, where the environment names a collector, the traces.
///
/// `log` is for gatekey's own lines; a dependency's are never more than warnings. With a collector
/// it must be called inside the multi-threaded runtime, which from then on carries the exporter's
/// connection.
///
/// # Errors
/// When a setting is invalid, or when it is called a second time.
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
            // Its own filter, so that a quiet log does not stop the traces.
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
    /// What makes the spans of calls; without a collector, making them would be for nothing.
    #[must_use]
    pub fn tracing(&self) -> Option<Tracing> {
        self.provider.as_ref().map(|provider| Tracing {
            tracer: provider.tracer("gatekey"),
            sampler: sampler(),
        })
    }

    /// Sends what is still held, for at most five seconds, and ends the traces.
    ///
    /// It blocks while the runtime that [`start`] was called in does the sending: not for a task
    /// on that runtime, unless by `spawn_blocking`.
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
    // Whatever the level, a dependency is held at warnings: a line of h2's at debug, or of
    // sqlx's at trace, may show headers and parameters, and these hold keys.
    let filter = Targets::new()
        .with_target("gatekey", log)
        // It warns of an unknown parameter of a database URL by repeating what it read.
        .with_target("sqlx_postgres::options", LevelFilter::OFF)
        .with_default(log.min(LevelFilter::WARN))
        // Spans are for traces; a log line stands alone.
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

/// The exporter and its queue. The SDK reads most `OTEL_*` variables by itself: headers, timeout,
/// batching (`OTEL_BSP_*`), limits; what stands here is the rest.
fn provider(endpoint: &'static str) -> Result<SdkTracerProvider, TelemetryError> {
    check()?;
    let otlp = SpanExporter::builder()
        .with_tonic()
        // Only for https; without it the exporter would trust no certificate at all.
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
        // Last, for it outranks a service.name in OTEL_RESOURCE_ATTRIBUTES; the SDK's own
        // order of detectors gets this wrong.
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

/// Refuses what the SDK would replace by a default, with a warning that nobody reads: it is made
/// before there is a log.
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

/// What decides which calls have spans, by the variables that [`check`] has seen.
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

/// The first of these variables that is set; an empty one counts as unset, as the specification
/// of OpenTelemetry's variables has it.
fn first(variables: &[&'static str]) -> Option<(&'static str, String)> {
    variables.iter().find_map(|&variable| {
        let value = env::var(variable).ok().filter(|it| !it.is_empty())?;
        Some((variable, value))
    })
}

/// The OTLP exporter, which says once that spans are lost and once that they arrive again,
/// instead of an error for every batch.
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
