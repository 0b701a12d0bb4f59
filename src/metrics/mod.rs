//! Metrics instruments and their encoding for Prometheus, log limits, and child spans.
//!
//! Each instrument is declared next to the code that it measures. Recording is a relaxed increment
//! in a preallocated array: no label lookup, no allocation, no lock. Labels are attached at
//! collection time ([`Collect`]) and come from closed sets, which contain no input from callers.

mod encoder;
mod limit;
mod sharded;
mod span;

pub use encoder::{Encoded, Encoder, Format};
pub use limit::LogLimit;
pub use sharded::{Durations, ShardedCounter, thread_number};
pub use span::child;

use std::fmt;

/// A source of metrics.
pub trait Collect: Send + Sync + 'static {
    /// Writes the current values to `page`.
    ///
    /// # Errors
    /// Returns an error if writing to the page, which is in memory, fails.
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result;
}
