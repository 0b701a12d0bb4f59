//! The routes file, reloaded when it changes.
//!
//! The table is replaced as a whole. A file that is invalid or missing leaves the previous table in
//! place, because without a table every request that needs it would be denied.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::{sync::watch, task};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{StartError, reload};
use crate::{
    api::ext_authz::{GatewayRules, RouteTable},
    metrics::{Collect, Encoder},
};

const ROUTES: &str = "GATEKEY_ROUTES_FILE";
/// Maximum size of the file in bytes.
const SIZE_MAX: u64 = 1024 * 1024;

/// The current routes.
pub struct RoutesFile {
    current: watch::Receiver<Arc<RouteTable>>,
    reloads: Arc<Reloads>,
    /// Stops the file watch on drop.
    _watching: Option<AbortOnDropHandle<()>>,
}

impl RoutesFile {
    /// Reads this file and watches it. Without a file there are no routes.
    ///
    /// # Errors
    /// An error that names the variable, the file and how to correct it.
    ///
    /// # Panics
    /// Panics outside a runtime.
    pub fn start(file: Option<&Path>) -> Result<Self, StartError> {
        let reloads = Arc::new(Reloads::default());
        let Some(file) = file else {
            return Ok(Self {
                current: watch::channel(Arc::default()).1,
                reloads,
                _watching: None,
            });
        };
        let wrong = |why| StartError::file(ROUTES, file, why);
        let text = read(file).map_err(wrong)?;
        let table = RouteTable::parse(&text).map_err(wrong)?;
        reloads.routes.store(table.len(), Ordering::Relaxed);
        let (sender, current) = watch::channel(Arc::new(table));
        let digest = blake3::hash(text.as_bytes());
        let watching = task::spawn(follow(
            file.to_owned(),
            digest,
            sender,
            Arc::clone(&reloads),
        ));
        Ok(Self {
            current,
            reloads,
            _watching: Some(AbortOnDropHandle::new(watching)),
        })
    }

    /// Returns the rules by these routes.
    pub fn rules(&self) -> GatewayRules {
        GatewayRules::new(self.current.clone())
    }

    /// Returns the counts of reloads.
    pub fn reloads(&self) -> Arc<Reloads> {
        Arc::clone(&self.reloads)
    }
}

/// Counts the routes and their reloads.
#[derive(Default)]
pub struct Reloads {
    routes: AtomicUsize,
    ok: AtomicU64,
    failed: AtomicU64,
}

impl Collect for Reloads {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        page.gauge(
            "gatekey_routes",
            "Routes of the routes file",
            self.routes.load(Ordering::Relaxed),
        )?;
        let counts = [("ok", &self.ok), ("failed", &self.failed)];
        let count = |(result, count): (_, &AtomicU64)| {
            ([("result", result)], count.load(Ordering::Relaxed))
        };
        page.counters(
            "gatekey_routes_reloads_total",
            "Changes of the routes file; a failed one leaves the previous routes in place",
            counts.map(count),
        )
    }
}

/// Applies the content of the file whenever it has changed.
async fn follow(
    file: PathBuf,
    loaded: blake3::Hash,
    current: watch::Sender<Arc<RouteTable>>,
    reloads: Arc<Reloads>,
) {
    let mut changes = reload::Changes::since(loaded);
    let file = Arc::new(file);
    loop {
        let read = {
            let file = Arc::clone(&file);
            move || read(&file)
        };
        let digest = |read: &Result<String, String>| match read {
            Ok(text) | Err(text) => blake3::hash(text.as_bytes()),
        };
        // Ends only during shutdown.
        let Some(read) = changes.next(read, digest).await else {
            return;
        };
        match read.and_then(|text| RouteTable::parse(&text)) {
            Ok(table) => {
                let routes = table.len();
                current.send_replace(Arc::new(table));
                reloads.routes.store(routes, Ordering::Relaxed);
                reloads.ok.fetch_add(1, Ordering::Relaxed);
                info!(routes, "routes file reloaded");
            }
            Err(why) => {
                reloads.failed.fetch_add(1, Ordering::Relaxed);
                let error = StartError::file(ROUTES, &file, why);
                warn!(%error, "reload of the routes file failed; keeping the previous routes");
            }
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = fs::File::open(file).map_err(|error| error.to_string())?;
    let read = opened.take(SIZE_MAX + 1).read_to_string(&mut text);
    let length = read.map_err(|error| error.to_string())?;
    if length as u64 > SIZE_MAX {
        return Err("it must have at most 1 MiB".to_owned());
    }
    Ok(text)
}
