//! File descriptors: the process's limit, and how many connections each port may hold under it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::admission::Bounds;

/// The most connections of the main port, however many file descriptors there are.
const CONNECTIONS_MAX: usize = 16_384;
/// The fewest connections of any port: with less than this, nothing works.
const CONNECTIONS_MIN: usize = 8;
const PROBES_MAX: usize = 256;
const READERS_MAX: usize = 32;
const CLOSING_MAX: usize = 256;
/// Descriptors that the process itself needs: database connections (SQLite: up to three each), the
/// database's files, secret files and TLS files while they are read, the exporter of traces.
const RESERVE: usize = 80;
/// Those of a serving thread's runtime.
const RESERVE_PER_WORKER: usize = 3;
/// What is assumed where the kernel sets no limit.
const UNLIMITED: u64 = 1 << 20;

/// Raises the soft limit of file descriptors to the hard limit, and returns what it is then.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where that is not allowed, the soft limit stays.
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    usize::try_from(current.unwrap_or(UNLIMITED)).unwrap_or(usize::MAX)
}

/// The bounds of all ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares {
    pub main: Bounds,
    pub probes: Bounds,
    pub readers: Bounds,
}

impl Shares {
    /// Divides so many file descriptors. `per_address` is what the settings say, by default half of
    /// the main port's connections.
    pub fn of(descriptors: usize, workers: usize, per_address: Option<usize>) -> Self {
        let probes = port((descriptors / 16).clamp(CONNECTIONS_MIN, PROBES_MAX));
        let readers = port((descriptors / 32).clamp(CONNECTIONS_MIN, READERS_MAX));
        let closing = (descriptors / 16).clamp(CONNECTIONS_MIN, CLOSING_MAX);
        // One that is cut holds its descriptor for a moment more.
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

/// The bounds of a port for probes or metrics, whose clients may all share one address.
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
