//! The real server binary as a child process: set up, started, watched through its log, stopped or killed.
//!
//! A [`Setup`] is what outlives a process (folder, database, settings); a [`Gatekey`] is a running one; a [`Stopped`] is
//! what is left of it and can be started again. Waiting is for a line of the log or for the end of the process, never
//! for time to pass; every wait has a deadline, and what it panics with shows all that the server printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::watch;

use super::Database;

/// How long a server may take to start, to stop, or to log what is waited for.
const DEADLINE: Duration = Duration::from_mins(1);

/// Where and with which settings a server runs. Two servers started from one setup are two replicas.
#[derive(Clone, Debug)]
pub struct Setup {
    folder: Arc<TempDir>,
    settings: BTreeMap<String, String>,
    descriptors: Option<u32>,
}

impl Setup {
    fn new(database_url: impl FnOnce(&Path) -> String) -> Setup {
        let folder = TempDir::with_prefix("gatekey-").expect("a temporary folder");
        let file = |name| folder.path().join(name).display().to_string();
        let settings = [
            ("GATEKEY_DATABASE_URL", database_url(folder.path())),
            ("GATEKEY_LISTEN", "127.0.0.1:0".into()),
            ("GATEKEY_METRICS_LISTEN", "off".into()),
            ("GATEKEY_ADMIN_TOKEN_FILE", file("gatekey-admin.token")),
            ("GATEKEY_PEPPER_FILE", file("gatekey.pepper")),
            // Argon2 is tested by itself; everything else is to spend its time elsewhere.
            ("GATEKEY_ARGON2", "m=1024,t=1,p=1".into()),
            ("GATEKEY_LOG", "trace".into()),
            ("GATEKEY_LOG_FORMAT", "json".into()),
        ];
        Setup {
            settings: settings.map(|(name, value)| (name.into(), value)).into(),
            folder: Arc::new(folder),
            descriptors: None,
        }
    }

    /// Limits the file descriptors of the server, as `ulimit -n` does.
    pub fn descriptors(mut self, limit: u32) -> Setup {
        self.descriptors = Some(limit);
        self
    }

    /// Adds a setting, or replaces one.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Setup {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Takes a setting away.
    pub fn unset(mut self, name: &str) -> Setup {
        self.settings.remove(name);
        self
    }

    /// The server's folder and working directory, removed with the last user of this setup.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The database that the server is told to use.
    pub fn database_url(&self) -> &str {
        &self.settings["GATEKEY_DATABASE_URL"]
    }

    /// Starts a server and waits until it serves.
    pub async fn start(&self) -> Gatekey {
        let started = self.try_start().await;
        started.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Starts a server and waits until it serves, or tells why it does not.
    pub async fn try_start(&self) -> Result<Gatekey, String> {
        let process = self.spawn();
        let serving = process.wait_for(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let fields = &line["fields"];
            let address = |name: &str| fields[name].as_str()?.parse().ok();
            (fields["message"] == "serving")
                .then(|| Some((address("listen")?, address("metrics_listen"))))?
        });
        let (addr, metrics) = serving
            .await
            .map_err(|why| format!("{why} before it served{process}"))?;
        Ok(Gatekey {
            setup: self.clone(),
            process,
            addr,
            metrics,
            stopping: AtomicBool::new(false),
        })
    }

    /// Starts a server that must give up by itself, and gives its exit status and what it wrote to stderr.
    pub async fn start_expecting_failure(&self) -> (ExitStatus, String) {
        let mut process = self.spawn();
        let status = process.exit().await;
        assert!(!status.success(), "it ended without an error{process}");
        (status, process.stderr.text())
    }

    fn spawn(&self) -> Process {
        let program = env!("CARGO_BIN_EXE_gatekey");
        let mut command = match self.descriptors {
            None => Command::new(program),
            Some(limit) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {limit} && exec \"$0\"");
                shell.args(["-c", &limited, program]);
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            let known = name.to_string_lossy();
            if known.starts_with("GATEKEY_") || known.starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .envs(&self.settings)
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo has built the server");
        Process {
            stdout: Output::collect(child.stdout.take().expect("stdout is a pipe")),
            stderr: Output::collect(child.stderr.take().expect("stderr is a pipe")),
            child,
        }
    }

    /// Writes the secret file that a setting names.
    fn write_secret(&self, setting: &str, content: &str) {
        write_secret(Path::new(&self.settings[setting]), content);
    }
}

/// Writes a file that only its owner can access, as the server demands of secrets.
pub fn write_secret(path: &Path, content: &str) {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// A running server; killed on drop.
pub struct Gatekey {
    setup: Setup,
    process: Process,
    addr: SocketAddr,
    metrics: Option<SocketAddr>,
    /// Whether it was asked to end: a second time, it ends at once.
    stopping: AtomicBool,
}

impl Gatekey {
    /// A server that keeps its keys in its own folder, and makes its admin token and pepper there by itself.
    pub fn sqlite() -> Setup {
        Setup::new(|folder| format!("sqlite://{}", folder.join("gatekey.db").display()))
    }

    /// A server on PostgreSQL, where admin token and pepper are given to it.
    pub fn postgres(database: &Database) -> Setup {
        let setup = Setup::new(|_| database.url());
        let token = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let pepper = BASE64_STANDARD.encode(rand::random::<[u8; 32]>());
        setup.write_secret("GATEKEY_ADMIN_TOKEN_FILE", &token);
        setup.write_secret("GATEKEY_PEPPER_FILE", &format!("p1:{pepper}\n"));
        setup
    }

    /// Where it listens for gRPC.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it tells its metrics, which the setup must ask for.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics.expect("GATEKEY_METRICS_LISTEN is an address")
    }

    /// Where it listens for probes; it must have been told to.
    pub fn health_addr(&self) -> SocketAddr {
        let logs = self.logs();
        let mut lines = logs.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["fields"]["health_listen"].as_str()?.parse().ok()
        });
        lines.next().expect("it has a port for probes")
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The admin token, as its file has it now.
    pub fn admin_token(&self) -> String {
        let path = &self.setup.settings["GATEKEY_ADMIN_TOKEN_FILE"];
        let token = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("no admin token in {path}: {error}"));
        token.trim().to_owned()
    }

    /// The setup it was started from.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Its folder and working directory.
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// All it has written to stderr so far: one JSON object a line.
    pub fn logs(&self) -> String {
        self.process.stderr.text()
    }

    /// All it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.process.stdout.text()
    }

    /// Waits until a line of the log contains `needle`; returns at once if one already does.
    pub async fn wait_for_log(&self, needle: &str) {
        let line = self
            .process
            .wait_for(|line| line.contains(needle).then_some(()));
        line.await
            .unwrap_or_else(|why| panic!("{why} before it logged {needle:?}{}", self.process));
    }

    /// Sends it a signal and does not wait.
    pub fn signal(&self, signal: Signal) {
        if matches!(signal, Signal::TERM | Signal::INT) {
            self.stopping.store(true, Ordering::Relaxed);
        }
        kill_process(Pid::from_child(&self.process.child), signal)
            .expect("a child that was not waited for can be signalled");
    }

    /// Kills it with SIGKILL, as a crash would, and waits until it is gone.
    pub fn kill9(mut self) -> Stopped {
        self.process.kill();
        self.stopped()
    }

    /// Asks it to end with SIGTERM, unless it was asked before, waits until it has, and asserts exit code 0.
    pub async fn stop(mut self) -> Stopped {
        if !self.stopping.load(Ordering::Relaxed) {
            self.signal(Signal::TERM);
        }
        let status = self.process.exit().await;
        assert!(
            status.success(),
            "it ended with {status} on SIGTERM{}",
            self.process
        );
        self.stopped()
    }

    fn stopped(self) -> Stopped {
        Stopped {
            logs: self.logs(),
            setup: self.setup,
        }
    }
}

/// What is left of a server that has ended.
pub struct Stopped {
    setup: Setup,
    logs: String,
}

impl Stopped {
    /// Starts it again on the same folder, database and settings, but another port.
    pub async fn start(&self) -> Gatekey {
        self.setup.start().await
    }

    /// The setup it ran with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// All it wrote to stderr until it ended.
    pub fn logs(&self) -> &str {
        &self.logs
    }
}

/// A child process and all it prints; killed on drop. Its `Display` is what it printed, for panics.
struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Process {
    /// The first thing `find` makes of a line of stderr, or why there will be none.
    async fn wait_for<T>(&self, find: impl FnMut(&str) -> Option<T>) -> Result<T, &'static str> {
        match tokio::time::timeout(DEADLINE, self.stderr.find(find)).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err("the server ended"),
            Err(_) => Err("the deadline passed"),
        }
    }

    /// Waits until it ends by itself, and until all it printed has been collected.
    async fn exit(&mut self) -> ExitStatus {
        let end = self.wait_for(|_| None::<()>).await;
        assert_eq!(end, Err("the server ended"), "it goes on running{self}");
        let status = self.child.wait().expect("it is our child");
        self.stdout.join();
        self.stderr.join();
        status
    }

    /// Ends it if it has not ended, and collects the rest of what it printed.
    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        self.stdout.join();
        self.stderr.join();
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        write!(f, "\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process writes to one pipe: a thread collects it, line by line, and tells those who wait.
struct Output {
    text: watch::Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn collect(pipe: impl Read + Send + 'static) -> Output {
        let (sender, text) = watch::channel(String::new());
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                sender.send_modify(|text| {
                    write!(text, "{}", String::from_utf8_lossy(&line)).expect("memory takes all");
                });
                line.clear();
            }
        });
        Output {
            text,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        self.text.borrow().clone()
    }

    /// The first thing `find` makes of a line, of the past or of the future; `None` when the pipe has ended without.
    async fn find<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let mut text = self.text.clone();
        let mut seen = 0;
        loop {
            let open = text.has_changed().is_ok();
            {
                let text = text.borrow_and_update();
                let found = text[seen..].lines().find_map(&mut find);
                if found.is_some() || !open {
                    return found;
                }
                seen = text.len();
            }
            text.changed().await.ok(); // an end is seen above, once the last lines have been
        }
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}
