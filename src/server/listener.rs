//! The accept loop of every port. It admits connections, and logs refused ones at a limited rate.

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::admission::{Admission, Admitted, Rejected};

/// Maximum number of connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after an accept error, such as no file descriptor being left.
const PAUSE: Duration = Duration::from_millis(50);
/// Minimum interval between log lines about refused connections on one port.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A bound port that does not accept connections yet. No other program can bind it.
pub struct Reserved(TcpSocket);

impl Reserved {
    /// Binds the port.
    ///
    /// # Errors
    /// Fails if another program uses the port, or the address does not belong to this machine.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections of an earlier process in TIME_WAIT do not block the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self(socket))
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Starts to listen for connections.
    ///
    /// # Errors
    /// Fails if another program that shares the reservation already listens.
    pub fn listen(self, admission: Arc<Admission>, name: &'static str) -> io::Result<Listener> {
        Ok(Listener {
            socket: self.0.listen(BACKLOG)?,
            admission,
            name,
        })
    }
}

/// A port that accepts connections.
pub struct Listener {
    socket: TcpListener,
    admission: Arc<Admission>,
    /// The purpose of the port, for the log.
    name: &'static str,
}

impl Listener {
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    /// Passes each admitted connection to `serve` until `stop` is cancelled.
    pub async fn accept(
        &self,
        stop: &CancellationToken,
        mut serve: impl FnMut(TcpStream, SocketAddr, Admitted),
    ) {
        let mut report = Report::new(self.name);
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = report.due() => {
                    report.write();
                    continue;
                }
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.admission.settle().await;
                    match self.admission.admit(peer.ip()) {
                        Ok(admitted) => serve(stream, peer, admitted),
                        Err(refused) => report.add(reason(refused)),
                    }
                }
                Err(error) => {
                    self.admission.refuse(Rejected::NotAccepted);
                    report.add(&error.to_string());
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn reason(refused: Rejected) -> &'static str {
    match refused {
        Rejected::Full => "all connections have open streams",
        Rejected::Network => "GATEKEY_CONNECTIONS_PER_ADDRESS is reached by open streams",
        Rejected::NotAccepted => "not accepted",
    }
}

/// Refused connections that have not been logged yet.
struct Report {
    port: &'static str,
    refused: u64,
    /// The reason of the latest refusal.
    reason: String,
    after: Instant,
}

impl Report {
    fn new(port: &'static str) -> Self {
        Self {
            port,
            refused: 0,
            reason: String::new(),
            after: Instant::now(),
        }
    }

    fn add(&mut self, reason: &str) {
        if self.reason != reason {
            reason.clone_into(&mut self.reason);
        }
        self.refused += 1;
    }

    /// Waits until there are refusals to log and the rate limit allows a log line.
    async fn due(&self) {
        if self.refused == 0 {
            pending::<()>().await;
        }
        time::sleep_until(self.after).await;
    }

    fn write(&mut self) {
        warn!(
            port = self.port,
            count = self.refused,
            reason = self.reason,
            "connections were refused"
        );
        self.refused = 0;
        self.after = Instant::now() + REPORT_EVERY;
    }
}
