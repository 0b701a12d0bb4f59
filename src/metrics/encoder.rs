//! Encodes metrics in either of the Prometheus text formats, by the `prometheus_client` library.
//!
//! The library writes OpenMetrics. The classic format differs in two relevant points: a counter has
//! the name of its samples, which ends with `_total`, and there is no `# EOF` line.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Collect, Durations};

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
    /// Returns the value of the `Content-Type` header.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// An encoder for one metrics page.
pub struct Encoder<'a> {
    encoder: DescriptorEncoder<'a>,
    format: Format,
}

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Encoder<'_> {
    /// Writes a counter, whose name ends with `_total`.
    ///
    /// # Errors
    /// See [`Collect::collect`], for this method and the following ones.
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

    /// Writes a family of counters that differ by labels.
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

    /// Writes a gauge.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    #[expect(clippy::needless_pass_by_value, reason = "it is a number")]
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    /// Writes a family of gauges that differ by labels.
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

    /// Writes a histogram of durations.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn duration(&mut self, name: &str, help: &str, durations: &Durations) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Histogram)?;
        encode(&mut metric, durations)
    }

    /// Writes a family of histograms of durations that differ by labels.
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
        // The library appends a full stop to each help text.
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
        // The library adds `_total` to the name of a counter, but nothing to that of a gauge.
        Format::Classic => metric.encode_gauge(count),
        Format::OpenMetrics => metric.encode_counter::<[(&str, &str); 0], _, u64>(count, None),
    }
}

fn encode(metric: &mut Metric<'_>, durations: &Durations) -> fmt::Result {
    let (sum, buckets) = durations.read();
    // The sum of the buckets is the total, so that it matches them despite concurrent increments.
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)
}

/// A registry of all metrics sources.
pub struct Encoded {
    classic: Registry,
    openmetrics: Registry,
}

impl Encoded {
    /// Registers the sources, which are encoded in this order.
    #[must_use]
    pub fn new(parts: &[Arc<dyn Collect>]) -> Self {
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

    /// Returns the current values as text.
    ///
    /// # Errors
    /// See [`Collect::collect`].
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
    parts: Vec<Arc<dyn Collect>>,
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
        let mut page = Encoder { encoder, format };
        self.parts
            .iter()
            .try_for_each(|part| part.collect(&mut page))
    }
}
