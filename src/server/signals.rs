//! SIGTERM and SIGINT: the first signal starts a graceful stop, the second ends the process.

use std::{
    io, process,
    sync::{Arc, OnceLock},
    thread,
};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// The offset that a shell adds to the number of the signal that ended a program.
const EXIT_CODE_BASE: i32 = 128;

/// The SIGTERM and SIGINT signals of this process.
pub struct Signals {
    asked: CancellationToken,
    first: Arc<OnceLock<&'static str>>,
}

impl Signals {
    /// Starts to receive signals on a separate thread, so that it does not depend on other threads.
    ///
    /// # Errors
    /// Fails if no thread can be created, or no handler can be installed.
    pub fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (terminate, interrupt) = {
            let _entered = runtime.enter();
            let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
            (signal(terminate)?, signal(interrupt)?)
        };
        let this = Self {
            asked: CancellationToken::new(),
            first: Arc::default(),
        };
        let (asked, first) = (this.asked.clone(), Arc::clone(&this.first));
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(receive(terminate, interrupt, &asked, &first)))?;
        Ok(this)
    }

    /// Waits for the first signal and returns its name.
    pub async fn first(&self) -> &'static str {
        self.asked.cancelled().await;
        self.first.get().copied().unwrap_or("none")
    }
}

async fn receive(
    mut terminate: Signal,
    mut interrupt: Signal,
    asked: &CancellationToken,
    first: &OnceLock<&'static str>,
) {
    loop {
        let (name, kind) = tokio::select! {
            _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        };
        if first.set(name).is_err() {
            eprintln!("gatekey: a second signal ({name}): ended without waiting for open calls");
            process::exit(EXIT_CODE_BASE + kind.as_raw_value());
        }
        asked.cancel();
    }
}
