//! A rate limit for log lines, for events that any client can cause at any rate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{self, Instant};

/// The maximum number of lines in one window.
const LINES_MAX: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Limits the log lines about one kind of event and reports the number of suppressed lines.
pub struct LogLimit {
    window: Mutex<Window>,
    report: fn(u64),
}

#[derive(Default)]
struct Window {
    ends: Option<Instant>,
    events: u64,
}

impl LogLimit {
    /// Creates a limit that calls `report` at the end of each window in which lines were
    /// suppressed.
    #[must_use]
    pub fn new(report: fn(u64)) -> Arc<Self> {
        Arc::new(Self {
            window: Mutex::default(),
            report,
        })
    }

    /// Returns whether to write a log line about this event.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    pub fn admit(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = match window.ends {
            Some(ends) if now < ends => ends,
            _ => {
                self.close(&mut window);
                *window.ends.insert(now + WINDOW)
            }
        };
        window.events += 1;
        if window.events == LINES_MAX + 1 {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                time::sleep_until(ends).await;
                let mut window = this.window.lock().unwrap_or_else(PoisonError::into_inner);
                // A newer window may have started and closed this one.
                if window.ends == Some(ends) {
                    this.close(&mut window);
                }
            });
        }
        window.events <= LINES_MAX
    }

    fn close(&self, window: &mut Window) {
        let suppressed = std::mem::take(window).events.saturating_sub(LINES_MAX);
        if suppressed > 0 {
            (self.report)(suppressed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_events_a_window_are_admitted_and_the_others_counted() {
        static REPORTED: AtomicU64 = AtomicU64::new(0);
        let limit = LogLimit::new(|count| {
            REPORTED.fetch_add(count, Ordering::Relaxed);
        });
        let admitted = |events: u32| (0..events).filter(|_| limit.admit()).count();
        assert_eq!(admitted(10), 10);
        time::sleep(WINDOW * 2).await;
        assert_eq!(REPORTED.load(Ordering::Relaxed), 0, "no line was left out");
        assert_eq!(admitted(7), 7);
        time::sleep(WINDOW / 2).await;
        assert_eq!(admitted(15), 3);
        // The report does not depend on a further event.
        time::sleep(WINDOW).await;
        assert_eq!(REPORTED.load(Ordering::Relaxed), 12);
        assert_eq!(admitted(11), 10);
        time::advance(WINDOW).await;
        assert_eq!(admitted(1), 1);
        assert_eq!(REPORTED.load(Ordering::Relaxed), 13, "reported once");
        time::sleep(WINDOW).await;
        assert_eq!(REPORTED.load(Ordering::Relaxed), 13, "reported once");
    }
}
