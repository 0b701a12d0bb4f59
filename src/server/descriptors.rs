//! File descriptors: the limit of the process, and the connection limits of each port under it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::admission::Bounds;

/// Maximum number of connections of the main port, regardless of the file descriptor limit.
const CONNECTIONS_MAX: usize = 16_384;
/// Minimum number of connections of any port. The server does not work with fewer.
const CONNECTIONS_MIN: usize = 8;
const PROBES_MAX: usize = 256;
const READERS_MAX: usize = 32;
const CLOSING_MAX: usize = 256;
/// Descriptors that the process itself needs: database connections (SQLite: up to three each),
/// database files, secret files and TLS files while they are read, and the trace exporter.
const RESERVE: usize = 80;
/// Descriptors of the runtime of one serving thread.
const RESERVE_PER_WORKER: usize = 3;
/// Assumed limit where the kernel sets none.
const UNLIMITED: u64 = 1 << 20;

/// Raises the soft limit of file descriptors to the hard limit. Returns the resulting limit.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // The soft limit stays if it must not be raised.
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    usize::try_from(current.unwrap_or(UNLIMITED)).unwrap_or(usize::MAX)
}

/// The connection limits of all ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares {
    pub main: Bounds,
    pub probes: Bounds,
    pub readers: Bounds,
}

impl Shares {
    /// Divides this many file descriptors among the ports. `per_address` is the configured limit
    /// per address; the default is half of the main port's connections.
    pub fn of(descriptors: usize, workers: usize, per_address: Option<usize>) -> Self {
        let probes = port((descriptors / 16).clamp(CONNECTIONS_MIN, PROBES_MAX));
        let readers = port((descriptors / 32).clamp(CONNECTIONS_MIN, READERS_MAX));
        let closing = (descriptors / 16).clamp(CONNECTIONS_MIN, CLOSING_MAX);
        // A cut connection holds its descriptor for a moment longer.
        let others = RESERVE
            + RESERVE_PER_WORKER * workers
            + [probes, readers]
                .map(|bounds| bounds.max + 2 * bounds.closing)
                .iter()
                .sum::<usize>()
            + 2 * closing;
        let max = descriptors
            .saturating_sub(others)
            .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        let main = Bounds {
            max,
            per_network: per_address.unwrap_or(max / 2).clamp(1, max),
            closing,
        };
        Self {
            main,
            probes,
            readers,
        }
    }
}

/// Returns the limits of a port for probes or metrics, whose clients may all share one address.
fn port(max: usize) -> Bounds {
    Bounds {
        max,
        per_network: max,
        closing: (max / 8).max(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_all_ports_fit_the_descriptors() {
        for descriptors in [256, 1024, 4096, 20_000, 1 << 20] {
            for workers in [1, 2, 16] {
                let shares = Shares::of(descriptors, workers, None);
                let ports = [shares.main, shares.probes, shares.readers];
                let ports = ports.map(|bounds| bounds.max + 2 * bounds.closing);
                let used = RESERVE + RESERVE_PER_WORKER * workers + ports.iter().sum::<usize>();
                assert!(used <= descriptors, "{descriptors}: {shares:?}");
                assert!(shares.main.max >= 16, "{descriptors}: {shares:?}");
                assert_eq!(shares.main.per_network, shares.main.max / 2);
            }
        }
        assert_eq!(Shares::of(1 << 20, 2, None).main.max, CONNECTIONS_MAX);
        assert_eq!(
            Shares::of(1 << 20, 2, Some(1 << 20)).main.per_network,
            CONNECTIONS_MAX
        );
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let raised = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
        assert_eq!(Some(raised as u64), hard.or(Some(UNLIMITED)));
    }
}
