//! Settings, each available as a flag and as an environment variable.
//!
//! `Debug` redacts because a database URL may contain a password. An invalid setting stops the
//! startup with one line that names the variable, the value and the accepted values.

use std::{
    env, fmt, fs, io,
    net::{SocketAddr, ToSocketAddrs as _},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    parser::ValueSource,
};
use tracing::level_filters::LevelFilter;

use super::{environment, telemetry::LogFormat};
use crate::service::secret::HashCost;

/// The value of `GATEKEY_PEPPER_FILE` that disables peppers.
pub const NO_PEPPER: &str = "none";

/// Accepted lease durations. A shorter lease could not be renewed in time; a longer one would make
/// revocations wait too long for a lost replica.
const LEASES: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_hours(1);

/// Accepted maximum connection ages. A lower age would cause constant reconnects.
const AGES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(365 * 24);

/// Issues, lists, revokes and validates API keys over gRPC.
#[derive(Parser, Debug)]
#[command(name = "gatekey", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

/// The subcommand to run.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Command {
    /// Serve (also without a subcommand)
    Serve,
    /// Bring the store's schema up to date and exit
    Migrate {
        /// Forget which peppers the keys were made under, when those peppers are lost
        #[arg(long)]
        forget_peppers: bool,
        /// Give the database a new store_id, after it was restored from a backup
        #[arg(long)]
        restored: bool,
    },
    /// Ask a running server whether it is ready; exit 0 when it is
    Health,
}

/// The settings of a server.
#[derive(Args, Clone)]
pub struct Config {
    /// The address that gRPC is served on
    #[arg(long, env = "GATEKEY_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS:PORT", value_parser = parse_address, global = true)]
    pub listen: SocketAddr,

    /// The address that Prometheus reads `/metrics` from; `off` turns it off
    #[arg(
        long,
        env = "GATEKEY_METRICS_LISTEN",
        default_value = "127.0.0.1:9464",
        value_name = "ADDRESS:PORT",
        value_parser = parse_metrics_address,
        global = true
    )]
    pub metrics_listen: MetricsListen,
    /// A second address, of a plaintext port with `grpc.health.v1` alone: for probes, which cannot
    /// speak TLS [default: none]
    #[arg(long, env = "GATEKEY_HEALTH_LISTEN", value_name = "ADDRESS:PORT", value_parser = parse_address, global = true)]
    pub health_listen: Option<SocketAddr>,

    /// The store: `sqlite://<file>` or `postgres://<user>@<host>/<database>`
    #[arg(
        long,
        env = "GATEKEY_DATABASE_URL",
        default_value = "sqlite://gatekey.db",
        value_name = "URL",
        value_parser = parse_database_url,
        hide_env_values = true,
        global = true
    )]
    pub database_url: String,

    /// A file with the database URL in it, instead of the URL itself
    #[arg(
        long,
        env = "GATEKEY_DATABASE_URL_FILE",
        value_name = "FILE",
        global = true
    )]
    pub database_url_file: Option<PathBuf>,

    /// The credential that may do everything, 32 bytes or more. Made when missing on SQLite
    #[arg(
        long,
        env = "GATEKEY_ADMIN_TOKEN_FILE",
        default_value = "gatekey-admin.token",
        value_name = "FILE",
        global = true
    )]
    pub admin_token_file: PathBuf,

    /// Peppers, one `id:base64 of 32 bytes` a line, the first one current. Made when missing on
    /// SQLite; `none` runs without
    #[arg(
        long,
        env = "GATEKEY_PEPPER_FILE",
        default_value = "gatekey.pepper",
        value_name = "FILE",
        global = true
    )]
    pub pepper_file: PathBuf,

    /// The cost of hashing a new key's secret, which is random and needs no slow hash: the lowest,
    /// m=1024,t=1,p=1, is safe for it
    #[arg(long, env = "GATEKEY_ARGON2", default_value_t = HashCost::default(), value_name = "COST", global = true)]
    pub argon2: HashCost,

    /// Accept secret files (admin token, pepper, TLS key) that group or others can access, such as a
    /// Kubernetes secret that is mounted with `fsGroup`
    #[arg(
        long,
        env = "GATEKEY_ALLOW_READABLE_SECRETS",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true,
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        global = true
    )]
    pub allow_readable_secrets: bool,

    /// How many keys are held in memory
    #[arg(long, env = "GATEKEY_CACHE_KEYS", default_value_t = 1_000_000, value_name = "KEYS", value_parser = parse_count, global = true)]
    pub cache_keys: usize,

    /// How many of the most recently used keys are in memory before the server is ready
    #[arg(long, env = "GATEKEY_WARM_KEYS", default_value_t = 100_000, value_name = "KEYS", value_parser = parse_count_or_none, global = true)]
    pub warm_keys: usize,

    /// How long a replica that lost the store may still answer from memory, and the longest that a
    /// revocation waits for a lost replica; the same for all replicas
    #[arg(long, env = "GATEKEY_LEASE", default_value = "10s", value_name = "DURATION", value_parser = parse_lease, global = true)]
    pub lease: Duration,

    /// Serving threads [default: one a core]
    #[arg(long, env = "GATEKEY_WORKERS", value_name = "THREADS", value_parser = parse_count, global = true)]
    pub workers: Option<usize>,

    /// Whether Validate needs a credential; `none` lets anyone who reaches the port call it
    #[arg(
        long,
        env = "GATEKEY_VALIDATE_AUTH",
        default_value = "required",
        value_name = "WHO",
        global = true
    )]
    pub validate_auth: ValidateAuth,

    /// The server's certificate and those that lead to its CA, in PEM: `listen` speaks TLS. The
    /// files of TLS are read again when they change [default: plaintext]
    #[arg(
        long,
        env = "GATEKEY_TLS_CERT_FILE",
        value_name = "FILE",
        global = true
    )]
    pub tls_cert_file: Option<PathBuf>,

    /// The key of that certificate, in PEM
    #[arg(long, env = "GATEKEY_TLS_KEY_FILE", value_name = "FILE", global = true)]
    pub tls_key_file: Option<PathBuf>,

    /// The CAs of client certificates, in PEM: clients are asked for one [default: they are not]
    #[arg(
        long,
        env = "GATEKEY_TLS_CLIENT_CA_FILE",
        value_name = "FILE",
        global = true
    )]
    pub tls_client_ca_file: Option<PathBuf>,

    /// The rules for Envoy's external authorization by host, method and path, in YAML, for an Envoy
    /// whose routes have none. Read again when it changes [default: none]
    #[arg(long, env = "GATEKEY_ROUTES_FILE", value_name = "FILE", global = true)]
    pub routes_file: Option<PathBuf>,

    /// How old a connection gets, about, before its client is asked for another one, so that
    /// clients spread over new replicas
    #[arg(long, env = "GATEKEY_MAX_CONNECTION_AGE", default_value = "15m", value_name = "DURATION", value_parser = parse_age, global = true)]
    pub max_connection_age: Duration,

    /// Connections from one address, that is an IPv4 address or an IPv6 /64: raise it where all
    /// clients come through one proxy [default: half of all connections]
    #[arg(long, env = "GATEKEY_CONNECTIONS_PER_ADDRESS", value_name = "CONNECTIONS", value_parser = parse_count, global = true)]
    pub connections_per_address: Option<usize>,

    /// How long open calls may finish after SIGTERM
    #[arg(long, env = "GATEKEY_DRAIN", default_value = "20s", value_name = "DURATION", value_parser = parse_span, global = true)]
    pub drain: Duration,

    /// How much is logged: off, error, warn, info, debug or trace
    #[arg(long, env = "GATEKEY_LOG", default_value = "info", value_name = "LEVEL", value_parser = parse_level, global = true)]
    pub log: LevelFilter,

    /// How it is logged
    #[arg(
        long,
        env = "GATEKEY_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// The address that metrics are served on, or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricsListen {
    At(SocketAddr),
    Off,
}

/// The credential that Validate requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ValidateAuth {
    /// Whoever has a credential with the right to.
    Required,
    /// Anyone.
    None,
}

impl Config {
    /// Returns the number of serving threads.
    #[must_use]
    pub fn workers(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(cores)
    }

    /// Returns the database URL without the parts that may be secret.
    #[must_use]
    pub fn shown_database_url(&self) -> String {
        let Some((scheme, rest)) = self.database_url.split_once(':') else {
            return "…".to_owned();
        };
        if scheme == "sqlite" {
            return self.database_url.clone();
        }
        // The `?` may be part of a password, or the `@` part of the query.
        if rest
            .split_once('?')
            .is_some_and(|(_, query)| query.contains('@'))
        {
            return format!("{scheme}://…");
        }
        // A password may contain any character, including `@` and `?`. Without an `@`, the part
        // that looks like a port may be a password.
        let (secret, place) = match rest.rsplit_once('@') {
            Some((_, place)) => (false, place),
            None => (true, rest.trim_start_matches('/')),
        };
        let place = place.split('?').next().unwrap_or_default();
        let port = place
            .split('/')
            .next()
            .and_then(|host| host.rsplit_once(':'));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/[]".contains(c);
        let numeric = port.is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        if place.chars().all(plain) && (!secret || numeric) {
            format!("{scheme}://{place}")
        } else {
            format!("{scheme}://…")
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("metrics_listen", &self.metrics_listen)
            .field("health_listen", &self.health_listen)
            .field("database_url", &self.shown_database_url())
            .field("database_url_file", &self.database_url_file)
            .field("admin_token_file", &self.admin_token_file)
            .field("pepper_file", &self.pepper_file)
            .field("argon2", &self.argon2)
            .field("allow_readable_secrets", &self.allow_readable_secrets)
            .field("cache_keys", &self.cache_keys)
            .field("warm_keys", &self.warm_keys)
            .field("lease", &self.lease)
            .field("workers", &self.workers)
            .field("validate_auth", &self.validate_auth)
            .field("tls_cert_file", &self.tls_cert_file)
            .field("tls_key_file", &self.tls_key_file)
            .field("tls_client_ca_file", &self.tls_client_ca_file)
            .field("routes_file", &self.routes_file)
            .field("max_connection_age", &self.max_connection_age)
            .field("connections_per_address", &self.connections_per_address)
            .field("drain", &self.drain)
            .field("log", &self.log)
            .field("log_format", &self.log_format)
            .finish()
    }
}

/// Reads the settings from the command line and the environment.
///
/// # Errors
/// Returns the exit code after help, the version or the error has been printed.
pub fn parse() -> Result<(Command, Config), ExitCode> {
    let explain = |error| environment::explain(&Cli::command(), &error);
    let matches = environment::without_empty(Cli::command()).try_get_matches();
    let matches = matches.map_err(explain)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(explain)?;
    // clap assigns a flag after the subcommand to the subcommand.
    let inner = matches.subcommand().map_or(&matches, |(_, inner)| inner);
    let url = [&matches, inner].map(|matches| matches.value_source("database_url"));
    let url_given = url
        .iter()
        .flatten()
        .any(|source| *source != ValueSource::DefaultValue);
    if let Some(file) = &cli.config.database_url_file {
        cli.config.database_url = read_database_url(file, url_given).map_err(|why| {
            eprintln!(
                "gatekey: GATEKEY_DATABASE_URL_FILE is invalid: {}: {why}",
                file.display()
            );
            ExitCode::from(2)
        })?;
    }
    Ok((cli.command.unwrap_or(Command::Serve), cli.config))
}

/// Reads the database URL from this file. `url_given` is true if the URL itself is set as well.
fn read_database_url(file: &Path, url_given: bool) -> Result<String, String> {
    if url_given {
        return Err("GATEKEY_DATABASE_URL is set as well: set one of the two".to_owned());
    }
    let text = fs::read_to_string(file).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => "its content must be UTF-8".to_owned(),
        _ => error.to_string(),
    })?;
    let url = text.trim();
    if url.is_empty() || url.contains(char::is_whitespace) {
        return Err("the file must have one line, the URL".to_owned());
    }
    Ok(url.to_owned())
}

/// Returns the environment variables that look like settings but are not, each with the nearest
/// setting.
#[must_use]
pub fn unknown_variables() -> Vec<(String, String)> {
    environment::unknown(&Cli::command(), env::vars_os())
}

/// Returns the URL without surrounding white space, such as the line end that `echo` adds to a
/// secret.
fn parse_database_url(text: &str) -> Result<String, String> {
    let url = text.trim();
    if url.is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(url.to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let resolved = text
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next());
    resolved.ok_or_else(|| "must be an address and a port, such as 127.0.0.1:50051".to_owned())
}

fn parse_metrics_address(text: &str) -> Result<MetricsListen, String> {
    if text == "off" {
        return Ok(MetricsListen::Off);
    }
    let address = parse_address(text).map(MetricsListen::At);
    address.map_err(|_| "must be an address and a port, such as 127.0.0.1:9464, or off".to_owned())
}

fn parse_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "must be a duration with its unit, such as 500ms, 10s or 15m".to_owned())
}

fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = Some(parse_span(text)?).filter(|lease| LEASES.contains(lease));
    lease.ok_or_else(|| "must be between 500ms and 1h".to_owned())
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let age = Some(parse_span(text)?).filter(|age| AGES.contains(age));
    age.ok_or_else(|| "must be between 1s and 365days".to_owned())
}

fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "must be a number of 1 or more".to_owned())
}

fn parse_count_or_none(text: &str) -> Result<usize, String> {
    let count = text.parse();
    count.map_err(|_| "must be a number of 0 or more".to_owned())
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err("must be off, error, warn, info, debug or trace".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Config {
        Cli::try_parse_from([&["gatekey"], arguments].concat())
            .unwrap()
            .config
    }

    #[test]
    fn neither_debug_nor_the_shown_url_tell_a_password() {
        let url = "postgres://user:hunter2@db.example/keys?password=hunter3";
        let config = config(&["--database-url", url]);
        assert_eq!(config.shown_database_url(), "postgres://db.example/keys");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }

    #[test]
    fn settings_may_follow_the_subcommand() {
        assert_eq!(
            config(&["serve", "--drain", "3s"]).drain,
            Duration::from_secs(3)
        );
    }
}
