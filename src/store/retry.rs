//! Retries interrupted statements and times out unanswered ones.

use std::time::Duration;

use tokio::time;

use super::StoreError;

/// The backoff before each retry. A statement that a restart interrupted gets a new connection; a
/// failover takes a moment.
const AGAIN_AFTER: [Duration; 3] = [
    Duration::from_millis(5),
    Duration::from_millis(50),
    Duration::from_millis(250),
];

/// The timeout of an unanswered statement: slightly longer than PostgreSQL lets one run.
pub(super) const SILENCE: Duration = Duration::from_secs(35);

/// Runs an operation that changes nothing, and retries it if it is interrupted or reaches a
/// read-only server.
pub(super) async fn again<T, F>(run: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for pause in AGAIN_AFTER {
        match in_time(run()).await {
            Err(StoreError::Interrupted(_) | StoreError::ReadOnly) => time::sleep(pause).await,
            answered => return answered,
        }
    }
    in_time(run()).await
}

/// Returns the response, or an error after [`SILENCE`]. Without the timeout, a call on a connection
/// whose peer is gone without closing it would wait until TCP gives up, after a quarter of an hour.
pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let answered = time::timeout(SILENCE, answer).await;
    answered.unwrap_or_else(|late| Err(StoreError::Unavailable(late.into())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_broken_off_is_tried_again_and_nothing_else() {
        let broken_off = || StoreError::Interrupted("the connection was lost".into());
        let silent = || StoreError::Unavailable("no answer".into());
        // Number of interruptions, whether the attempt after them fails, expected number of
        // attempts.
        let cases = [(0, false, 1), (2, false, 3), (9, false, 4), (1, true, 2)];
        for (breaks, fails, asked) in cases {
            let count = AtomicU32::new(0);
            let answered = again(|| async {
                match count.fetch_add(1, Ordering::Relaxed) {
                    nth if nth < breaks => Err(broken_off()),
                    _ if fails => Err(silent()),
                    _ => Ok(()),
                }
            });
            assert_eq!(answered.await.is_ok(), breaks < 4 && !fails);
            assert_eq!(count.into_inner(), asked);
        }
    }
}
