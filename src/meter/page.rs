//! The page that Prometheus reads, written by Prometheus' own library.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Durations, Tell};

/// The page, to be told to.
pub struct Page<'a>(DescriptorEncoder<'a>);

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
        count: impl EncodeCounterValue,
    ) -> fmt::Result {
        let mut metric = self.begin(counter_name(name), help, MetricType::Counter)?;
        metric.encode_counter::<[(&str, &str); 0], _, u64>(&count, None)
    }

    /// Tells counts that differ by labels.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    pub fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut family = self.begin(counter_name(name), help, MetricType::Counter)?;
        for (labels, count) in counts {
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<[(&str, &str); 0], _, u64>(&count, None)?;
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

    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<Metric<'s>, fmt::Error> {
        // The library ends each help by a full stop of its own.
        self.0.encode_descriptor(name, help, None, kind)
    }
}

type Metric<'a> = prometheus_client::encoding::MetricEncoder<'a>;

/// The library adds the ending by itself.
fn counter_name(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

fn encode(metric: &mut Metric<'_>, durations: &Durations) -> fmt::Result {
    let (sum, buckets) = durations.read();
    // Counted once, so that it agrees with the last bucket whatever is counted meanwhile.
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)
}

/// All that has instruments, ready to be told.
pub struct Told(Registry);

impl Told {
    /// The form that [`Told::page`] is written in.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// What these have, in this order.
    #[must_use]
    pub fn new(parts: Vec<Arc<dyn Tell>>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Parts(parts)));
        Self(registry)
    }

    /// What they show now.
    ///
    /// # Errors
    /// See [`Tell::tell`].
    pub fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.0)?;
        Ok(page)
    }
}

struct Parts(Vec<Arc<dyn Tell>>);

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parts").field(&self.0.len()).finish()
    }
}

impl Collector for Parts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.0.iter().try_for_each(|part| part.tell(&mut page))
    }
}
