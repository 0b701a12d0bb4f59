//! Serving threads: one single-threaded runtime per core.
//!
//! Each connection is assigned to the worker with the fewest connections, and stays there. gRPC
//! clients hold few long-lived connections, so a hash over them, as with SO_REUSEPORT, would leave
//! cores idle.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hyper_util::service::TowerToHyperService;
use tokio::{net::TcpStream, runtime, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admission::Admitted,
    connection::{self, Rules},
    streams::{Budget, Refusals},
    tls::{self, Tls},
};
use crate::api::{App, Peer};

/// A connection that is being passed to its thread.
type Given = (std::net::TcpStream, SocketAddr, Admitted);

/// The serving threads.
pub struct Workers {
    threads: Vec<Worker>,
}

struct Worker {
    connections: Arc<AtomicUsize>,
    give: mpsc::UnboundedSender<Given>,
    thread: thread::JoinHandle<()>,
}

impl Workers {
    /// Starts `count` threads. They accept connections until the rules' `stop` is cancelled, and
    /// serve open ones until `cut` is cancelled.
    ///
    /// # Errors
    /// Fails if a thread or a runtime cannot be created.
    pub fn start(
        count: usize,
        app: &App,
        tls: Option<&Tls>,
        rules: &Rules,
        refusals: &Arc<Refusals>,
        cut: &CancellationToken,
    ) -> io::Result<Self> {
        let threads = (0..count).map(|number| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let connections = Arc::new(AtomicUsize::new(0));
            let (give, given) = mpsc::unbounded_channel();
            let serving = Serving {
                app: app.clone(),
                connections: Arc::clone(&connections),
                tls: tls.cloned(),
                rules: rules.clone(),
                budget: Budget::share(count, refusals),
            };
            let cut = cut.clone();
            let thread = thread::Builder::new()
                .name(format!("serving-{number}"))
                .spawn(move || {
                    runtime.block_on(cut.run_until_cancelled(serving.run(given)));
                })?;
            Ok(Worker {
                connections,
                give,
                thread,
            })
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// Passes a connection to the worker with the fewest connections.
    pub fn give(&self, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
        let load = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let Some(least) = self.threads.iter().min_by_key(load) else {
            return;
        };
        // Deregistered from this runtime, to be registered with the worker's.
        if let Ok(stream) = stream.into_std() {
            least.connections.fetch_add(1, Ordering::Relaxed);
            // Fails only during shutdown.
            let _ = least.give.send((stream, peer, admitted));
        }
    }

    /// Waits until every thread has ended.
    pub fn join(self) {
        for worker in self.threads {
            drop(worker.give);
            // An error means that the thread panicked; the panic has been printed.
            let _ = worker.thread.join();
        }
    }
}

/// The state of a serving thread.
#[derive(Clone)]
struct Serving {
    app: App,
    connections: Arc<AtomicUsize>,
    /// `None` serves plaintext.
    tls: Option<Tls>,
    rules: Rules,
    budget: Budget,
}

impl Serving {
    async fn run(self, mut given: mpsc::UnboundedReceiver<Given>) {
        let (open, stop) = (TaskTracker::new(), &self.rules.stop);
        while let Some(Some((stream, peer, admitted))) =
            stop.run_until_cancelled(given.recv()).await
        {
            let serving = self.clone();
            open.spawn(async move {
                // The client reports a broken connection.
                let _ = serving.serve(stream, peer, admitted).await;
                serving.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        open.close();
        open.wait().await;
    }

    /// Serves one connection to its end.
    async fn serve(
        &self,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        admitted: Admitted,
    ) -> io::Result<()> {
        let stream = TcpStream::from_std(stream)?;
        let front = |name: Option<String>| {
            TowerToHyperService::new(self.app.front(Peer::new(peer.ip(), name)))
        };
        let (rules, budget) = (&self.rules, self.budget.clone());
        match &self.tls {
            None => {
                let plain = async |stream, _| Ok(stream);
                connection::serve(stream, admitted, plain, |_| front(None), rules, budget).await
            }
            Some(tls) => {
                let named = |stream: &_| front(tls::name(stream));
                let secure = async |stream, until| tls.accept(stream, until).await;
                connection::serve(stream, admitted, secure, named, rules, budget).await
            }
        }
    }
}
