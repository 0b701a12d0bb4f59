//! The one accept loop, for each port: it admits connections, and reports refused ones at a
//! bounded rate.

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::admission::{Admission, Admitted, Refused};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// How long accepting pauses after an error, such as no file descriptor being left.
const PAUSE: Duration = Duration::from_millis(50);
/// At most one log line about refused connections is written per port in this time.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A port that is reserved, so that no other program can take it, and does not accept yet.
pub struct Reserved(TcpSocket);

impl Reserved {
    /// Reserves the port.
    ///
    /// # Errors
    /// When another program has it, or the address is not one of this machine.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections of an earlier process that are in TIME_WAIT do not keep the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self(socket))
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Starts to accept.
    ///
    /// # Errors
    /// When another program that shares the reservation listens already.
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
    /// The port's purpose, for the log.
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

    /// Passes each admitted connection to `serve`, until `stop`.
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
                    self.admission.refuse(Refused::NotAccepted);
                    report.add(&error.to_string());
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn reason(refused: Refused) -> &'static str {
    match refused {
        Refused::Full => "all connections have open streams",
        Refused::Network => "GATEKEY_CONNECTIONS_PER_ADDRESS is reached by open streams",
        Refused::NotAccepted => "not accepted",
    }
}

/// Refused connections that have not been logged yet.
struct Report {
    port: &'static str,
    refused: u64,
    /// Why the last one was refused.
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

    /// Waits until there is something to write, and it may be written.
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
