//! The three ports: gRPC, health probes and metrics.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use super::{
    StartError,
    admission::{Admission, Bounds},
    config::{Config, MetricsListen},
    descriptors::{self, Shares},
    listener::{Listener, Reserved},
};
use crate::metrics::{Collect, Encoder};

/// A setting that names a port, and the name of the port in metrics and in the log.
type Name = (&'static str, &'static str);

const MAIN: Name = ("GATEKEY_LISTEN", "main");
const PROBES: Name = ("GATEKEY_HEALTH_LISTEN", "health");
const READERS: Name = ("GATEKEY_METRICS_LISTEN", "metrics");

/// The bound ports, which do not accept connections yet.
pub struct Reservations {
    main: Reserved,
    probes: Option<Reserved>,
    readers: Option<Reserved>,
}

/// The ports that accept connections.
pub struct Ports {
    pub main: Listener,
    pub probes: Option<Listener>,
    pub readers: Option<Listener>,
}

impl Reservations {
    /// Binds the ports that the settings name.
    ///
    /// # Errors
    /// An error that names the variable, the address and the cause.
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        let probes = config.health_listen;
        let readers = match config.metrics_listen {
            MetricsListen::At(address) => Some(address),
            MetricsListen::Off => None,
        };
        Ok(Self {
            main: bind(MAIN, config.listen)?,
            probes: probes.map(|address| bind(PROBES, address)).transpose()?,
            readers: readers.map(|address| bind(READERS, address)).transpose()?,
        })
    }

    /// Starts to accept connections, as many as the file descriptor limit of the process allows.
    ///
    /// # Errors
    /// As [`Reservations::bind`].
    pub fn listen(self, config: &Config) -> Result<Ports, StartError> {
        let descriptors = descriptors::raise_limit();
        let per_address = config.connections_per_address;
        let shares = Shares::of(descriptors, config.workers(), per_address);
        let optional = |name, port: Option<Reserved>, bounds| {
            port.map(|port| listen(name, port, bounds)).transpose()
        };
        Ok(Ports {
            main: listen(MAIN, self.main, shares.main)?,
            probes: optional(PROBES, self.probes, shares.probes)?,
            readers: optional(READERS, self.readers, shares.readers)?,
        })
    }
}

/// The addresses of the ports, with the port numbers that the kernel has chosen.
pub struct Addresses {
    pub main: SocketAddr,
    pub probes: Option<SocketAddr>,
    pub readers: Option<SocketAddr>,
}

impl Ports {
    /// Returns the addresses of the ports.
    ///
    /// # Errors
    /// Fails if the kernel does not provide them.
    pub fn addresses(&self) -> io::Result<Addresses> {
        let optional = |port: &Option<Listener>| port.as_ref().map(Listener::address).transpose();
        Ok(Addresses {
            main: self.main.address()?,
            probes: optional(&self.probes)?,
            readers: optional(&self.readers)?,
        })
    }

    /// Returns the connection metrics of all ports.
    pub fn connections(&self) -> Connections {
        let ports = [
            Some(&self.main),
            self.probes.as_ref(),
            self.readers.as_ref(),
        ];
        let ports = ports.into_iter().flatten();
        Connections(ports.map(|port| (port.name(), port.admission())).collect())
    }
}

fn bind(name: Name, address: SocketAddr) -> Result<Reserved, StartError> {
    Reserved::bind(address).map_err(|error| unusable(name, address.to_string(), &error))
}

fn listen(name: Name, port: Reserved, bounds: Bounds) -> Result<Listener, StartError> {
    let address = port.address()?;
    let listener = port.listen(Admission::new(bounds), name.1);
    listener.map_err(|error| unusable(name, address.to_string(), &error))
}

fn unusable((variable, _): Name, value: String, error: &io::Error) -> StartError {
    StartError::Setting {
        variable,
        value,
        why: error.to_string(),
    }
}

/// The connection metrics of all ports.
pub struct Connections(Vec<(&'static str, Arc<Admission>)>);

impl Collect for Connections {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let ports = || self.0.iter().map(|(port, admission)| (*port, admission));
        page.gauges(
            "gatekey_connections",
            "Open connections",
            ports().map(|(port, admission)| ([("port", port)], admission.open() as u64)),
        )?;
        page.gauges(
            "gatekey_connections_max",
            "The most connections that may be open, from the limit of file descriptors",
            ports().map(|(port, admission)| ([("port", port)], admission.bounds().max as u64)),
        )?;
        page.counters(
            "gatekey_connections_accepted_total",
            "Connections that were accepted",
            ports().map(|(port, admission)| ([("port", port)], admission.accepted())),
        )?;
        page.counters(
            "gatekey_connections_refused_total",
            "Connections that were refused because the port or the address has its maximum, or not accepted",
            ports().flat_map(|(port, admission)| {
                let counts = admission.refusals();
                counts.map(move |(why, count)| ([("port", port), ("reason", why)], count))
            }),
        )?;
        page.counters(
            "gatekey_connections_closed_total",
            "Connections that were closed, by reason",
            ports().flat_map(|(port, admission)| {
                let counts = admission.closes();
                counts.map(move |(why, count)| ([("port", port), ("reason", why)], count))
            }),
        )
    }
}
