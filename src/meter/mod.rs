//! The cellar: what the house counts with, and how that is told to Prometheus.
//!
//! An instrument is declared where something is counted. To count is a relaxed increment in an
//! array that was made before: no label is looked up, no memory taken, no lock. Labels are given
//! when somebody reads ([`Tell`]), and come from closed lists: what a caller sends is in none.

mod limit;
mod page;
mod span;
mod tally;

pub use limit::LogLimit;
pub use page::{Format, Page, Told};
pub use span::child;
pub use tally::{Durations, Tally, thread_number};

use std::fmt;

/// What has instruments.
pub trait Tell: Send + Sync + 'static {
    /// Tells what they show now.
    ///
    /// # Errors
    /// When the page cannot be written, which is in memory.
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result;
}
