//! The page that Prometheus reads, in either of its text formats, written by Prometheus' own library.
//!
//! The library writes OpenMetrics. The classic format differs from it in two things that matter
//! here: a counter is called by the name of its samples, with `_total`, and no `# EOF` is written.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Durations, Tell};

/// A text format of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Prometheus' text format
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
    Classic,
    /// OpenMetrics (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    OpenMetrics,
}

impl Format {
    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The page, to be told to.
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
    format: Format,
}

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Page<'_> {
    /// Tells a count, whose name ends with `_total`.
    ///
    /// # Errors
    /// See [`Tell::tell`], for all of these.
    #[expect(clippy::needless_pass_by_value, reason = "it is a number")]
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        count: impl EncodeCounterValue + EncodeGaugeValue,
    ) -> fmt::Result {
        let format = self.format;
        let mut metric = self.begin_counter(name, help)?;
        encode_count(&mut metric, format, &count)
    }

    /// Tells counts that differ by labels.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let format = self.format;
        let mut family = self.begin_counter(name, help)?;
        for (labels, count) in counts {
            encode_count(&mut family.encode_family(&labels)?, format, &count)?;
        }
        Ok(())
    }

    /// Tells a value that goes up and down.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    #[expect(clippy::needless_pass_by_value, reason = "it is a number")]
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    /// Tells such values that differ by labels.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l, N>, impl EncodeGaugeValue)>,
    ) -> fmt::Result {
        let mut family = self.begin(name, help, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Tells how long something took.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn duration(&mut self, name: &str, help: &str, durations: &Durations) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Histogram)?;
        encode(&mut metric, durations)
    }

    /// Tells how long things took that differ by labels.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn durations<'l, 'd, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Labels<'l, N>, &'d Durations)>,
    ) -> fmt::Result {
        let mut family = self.begin(name, help, MetricType::Histogram)?;
        for (labels, durations) in all {
            encode(&mut family.encode_family(&labels)?, durations)?;
        }
        Ok(())
    }

    fn begin_counter<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
    ) -> Result<Metric<'s>, fmt::Error> {
        let name = match self.format {
            Format::Classic => name,
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        };
        self.begin(name, help, MetricType::Counter)
    }

    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<Metric<'s>, fmt::Error> {
        // The library ends each help by a full stop of its own.
        self.encoder.encode_descriptor(name, help, None, kind)
    }
}

type Metric<'a> = prometheus_client::encoding::MetricEncoder<'a>;

fn encode_count(
    metric: &mut Metric<'_>,
    format: Format,
    count: &(impl EncodeCounterValue + EncodeGaugeValue),
) -> fmt::Result {
    match format {
        // The library adds `_total` to a counter's name and nothing to a gauge's.
        Format::Classic => metric.encode_gauge(count),
        Format::OpenMetrics => metric.encode_counter::<[(&str, &str); 0], _, u64>(count, None),
    }
}

fn encode(metric: &mut Metric<'_>, durations: &Durations) -> fmt::Result {
    let (sum, buckets) = durations.read();
    // Counted once, so that it agrees with the last bucket whatever is counted meanwhile.
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)
}

/// All that has instruments, ready to be told.
pub struct Told {
    classic: Registry,
    openmetrics: Registry,
}

impl Told {
    /// What these have, in this order.
    #[must_use]
    pub fn new(parts: &[Arc<dyn Tell>]) -> Self {
        let registry = |format| {
            let (mut registry, parts) = (Registry::default(), parts.to_vec());
            registry.register_collector(Box::new(Parts { parts, format }));
            registry
        };
        Self {
            classic: registry(Format::Classic),
            openmetrics: registry(Format::OpenMetrics),
        }
    }

    /// What they show now.
    ///
    /// # Errors
    /// See [`Tell::tell`].
    pub fn page(&self, format: Format) -> Result<String, fmt::Error> {
        let mut page = String::new();
        match format {
            Format::Classic => text::encode_registry(&mut page, &self.classic)?,
            Format::OpenMetrics => text::encode(&mut page, &self.openmetrics)?,
        }
        Ok(page)
    }
}

struct Parts {
    parts: Vec<Arc<dyn Tell>>,
    format: Format,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parts").field(&self.parts.len()).finish()
    }
}

impl Collector for Parts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let format = self.format;
        let mut page = Page { encoder, format };
        self.parts.iter().try_for_each(|part| part.tell(&mut page))
    }
}
