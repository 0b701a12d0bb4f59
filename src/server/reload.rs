//! Notices that files have changed, by their content.
//!
//! Reading the content works for every way to replace a file, such as a symbolic link that
//! Kubernetes changes, on every file system.

use std::time::Duration;

use tokio::{task, time};

/// Interval between checks of the files. A change is applied once two consecutive checks read the
/// same content, because the writer has then finished.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The changes of files.
pub struct Changes {
    /// The digest of the content that was applied last.
    taken: blake3::Hash,
    /// The digest of the content that was read last.
    seen: blake3::Hash,
}

impl Changes {
    /// Waits for changes of the content with this digest.
    pub fn since(loaded: blake3::Hash) -> Self {
        Self {
            taken: loaded,
            seen: loaded,
        }
    }

    /// Waits for a change and returns what `read` read. Returns `None` during shutdown.
    pub async fn next<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> T + Clone + Send + 'static,
        digest: impl Fn(&T) -> blake3::Hash,
    ) -> Option<T> {
        loop {
            time::sleep(LOOK_EVERY).await;
            let content = task::spawn_blocking(read.clone()).await.ok()?;
            let digest = digest(&content);
            let settled = digest == self.seen;
            self.seen = digest;
            if digest != self.taken && settled {
                self.taken = digest;
                return Some(content);
            }
        }
    }
}
