//! Metrics instruments and their encoding for Prometheus, log limits, and child spans.
//!
//! Each instrument is declared next to the code that it measures. Recording is a relaxed increment
//! in a preallocated array: no label lookup, no allocation, no lock. Labels are attached at
//! collection time ([`Tell`]) and come from closed sets, which contain no input from callers.

mod limit;
mod page;
mod span;
mod tally;

pub use limit::LogLimit;
pub use page::{Format, Page, Told};
pub use span::child;
pub use tally::{Durations, Tally, thread_number};

use std::fmt;

/// A source of metrics.
pub trait Tell: Send + Sync + 'static {
    /// Writes the current values to `page`.
    ///
    /// # Errors
    /// Returns an error if writing to the page, which is in memory, fails.
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result;
}
