//! Throw-away PostgreSQL clusters: one shared by all tests of the process, and own ones for tests that stop the server.
//!
//! The server comes from the PATH, or from PyPI where there is none (or where `GATEKEY_TEST_POSTGRES=wheel`). fsync stays
//! on, for the crash tests rely on it. A cluster never outlives the test process, even one that is killed: a shell guards
//! it, reads from a pipe that this process holds, and stops PostgreSQL and removes its folder when that pipe closes.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::{fs::chown, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::tool;

/// Runs `$2...` until the pipe on stdin says a signal's name or closes. stderr is given up so that its end is
/// PostgreSQL's end; the signal is repeated because a server that is only just starting does not hear it yet.
const GUARD: &str = r#"
    folder=$1; shift
    "$@" &
    exec 2>/dev/null
    read -r signal
    while kill -"${signal:-QUIT}" $!; do sleep 0.05; done
    [ "$signal" ] || rm -rf "$folder"
"#;

/// Starts a program in this folder, which is removed with it, under a guard. To close the guard's stdin ends both.
pub fn guarded(folder: &Path, words: &[String]) -> Child {
    Command::new("sh")
        .args(["-c", GUARD, "guard"])
        .arg(folder)
        .args(words)
        .current_dir(folder)
        .process_group(0) // Ctrl-C is for the tests; the guard hears of it by the pipe
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh is on the PATH")
}

/// How PostgreSQL is stopped; the names are its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// As a crash would: no checkpoint, connections cut.
    Immediate,
    /// In order, but waits for nobody: transactions are undone, connections told.
    Fast,
}

/// A PostgreSQL server with its data; stopped and removed on drop.
pub struct Cluster {
    folder: PathBuf,
    binaries: PathBuf,
    account: Option<Account>,
    port: u16,
    guard: Mutex<Option<Child>>,
}

impl Cluster {
    /// Makes a new cluster and waits until it takes connections.
    pub fn start() -> Cluster {
        Cluster::initialise().launched()
    }

    /// Makes a streaming standby of this cluster and waits until it takes connections.
    pub fn standby(&self) -> Cluster {
        let cluster = Cluster::folder();
        let source = format!("--dbname={}", self.url("postgres"));
        let words = cluster.as_account(&cluster.beside_server("pg_basebackup"));
        let [program, words @ ..] = &words[..] else {
            unreachable!("a command has a first word")
        };
        tool::run(
            Command::new(program)
                .args(words)
                .arg(source)
                .args([
                    "--pgdata=data",
                    "--write-recovery-conf",
                    "--wal-method=stream",
                ])
                .args(["--checkpoint=fast", "--no-sync"])
                .current_dir(&cluster.folder),
        );
        cluster.launched()
    }

    fn launched(mut self) -> Cluster {
        let cluster = &mut self;
        for _ in 0..20 {
            // Below the ports the system hands out by itself, so that none of those takes it while we are stopped.
            cluster.port = rand::random_range(20_000..32_000);
            match cluster.launch() {
                Ok(()) => return self,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("PostgreSQL did not start:\n{log}"),
            }
        }
        panic!("PostgreSQL found no free port in 20 attempts");
    }

    /// Stops the server at once, as a crash would: no checkpoint, connections cut. The data stays.
    pub fn stop(&self) {
        self.stop_as(Stop::Immediate);
    }

    /// Stops the server in this way. The data stays.
    pub fn stop_as(&self, how: Stop) {
        let mut guard = self.guard().take().expect("the cluster was running");
        let mut pipe = guard.stdin.take().expect("the guard's stdin is a pipe");
        let signal: &[u8] = match how {
            Stop::Immediate => b"QUIT\n",
            Stop::Fast => b"INT\n",
        };
        pipe.write_all(signal).expect("the guard is reading");
        guard.wait().expect("the guard is our child");
    }

    /// Starts a stopped server again, on the same port and data, and waits until it takes connections.
    pub fn start_again(&self) {
        self.launch()
            .unwrap_or_else(|log| panic!("PostgreSQL did not start again:\n{log}"));
    }

    /// The address of one of its databases; `postgres` always exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it takes TCP connections.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The folder that holds the server's Unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// An empty folder for a cluster.
    fn folder() -> Cluster {
        let folder = tempfile::Builder::new()
            .prefix("gatekey-postgres-")
            .tempdir_in("/tmp") // not TMPDIR: a Unix socket's path must be short
            .expect("a folder in /tmp")
            .keep();
        let mut cluster = Cluster {
            account: Account::needed(),
            binaries: PathBuf::new(),
            port: 0,
            guard: Mutex::new(None),
            folder,
        };
        if let Some(account) = &cluster.account {
            chown(&cluster.folder, Some(account.user), Some(account.group))
                .expect("root may give a folder away");
        }
        cluster.binaries = binaries_on_path().unwrap_or_else(|| cluster.binaries_of_wheel());
        cluster
    }

    fn initialise() -> Cluster {
        let cluster = Cluster::folder();
        let [program, words @ ..] = &cluster.as_account("initdb")[..] else {
            unreachable!("a command has a first word")
        };
        tool::run(
            Command::new(program)
                .args(words)
                .arg("--pgdata=data")
                .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
                .args(["--no-locale", "--no-sync"]) // the server itself does sync
                .current_dir(&cluster.folder),
        );
        cluster
    }

    /// The wheel's binaries, copied to where the account can read them if we must run as another.
    fn binaries_of_wheel(&self) -> PathBuf {
        let binaries = tool::postgres_bin();
        if self.account.is_none() {
            return binaries;
        }
        // All of the wheel: its libraries are found by their place relative to the binaries.
        let mut parents = binaries.ancestors();
        let wheel = parents.nth(3).expect("PACKAGE/pginstall/bin is in it");
        let inside = binaries.strip_prefix(wheel).expect("it is in the wheel");
        let copy = self.folder.join("wheel");
        tool::run(Command::new("cp").arg("-R").arg(wheel).arg(&copy));
        tool::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&copy));
        copy.join(inside)
    }

    /// Starts the server under its guard; gives what it printed if it ends before it takes connections.
    fn launch(&self) -> Result<(), String> {
        let mut running = self.guard();
        assert!(running.is_none(), "the cluster is running already");
        let mut words = self.as_account("postgres");
        words.extend(["-D", "data", "-c", "listen_addresses=127.0.0.1"].map(String::from));
        words.extend(["-c", "max_connections=300", "-p"].map(String::from));
        words.extend([self.port.to_string(), "-k".to_owned()]);
        words.push(self.folder.display().to_string());
        let mut guard = guarded(&self.folder, &words);

        let mut stderr = BufReader::new(guard.stderr.take().expect("stderr is a pipe"));
        let mut log = String::new();
        while !log.contains("ready to accept") {
            if stderr.read_line(&mut log).expect("PostgreSQL logs UTF-8") == 0 {
                writeln!(guard.stdin.take().expect("stdin is a pipe"), "QUIT").ok();
                guard.wait().expect("the guard is our child");
                return Err(log);
            }
        }
        // A full pipe would block the server.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        *running = Some(guard);
        Ok(())
    }

    /// A client's program of the server's own version: links on the PATH may lead to the server alone.
    fn beside_server(&self, program: &str) -> String {
        let server = self.binaries.join("postgres").canonicalize();
        let server = server.expect("the server has been started");
        server.with_file_name(program).display().to_string()
    }

    /// The words that run one of PostgreSQL's programs as the account it must run as.
    fn as_account(&self, program: &str) -> Vec<String> {
        let program = self.binaries.join(program).display().to_string();
        match &self.account {
            None => vec![program],
            Some(Account { user, group, .. }) => vec![
                "setpriv".into(),
                format!("--reuid={user}"),
                format!("--regid={group}"),
                "--clear-groups".into(),
                program,
            ],
        }
    }

    fn guard(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.guard.lock().expect("nothing panics under this lock")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(Some(mut guard)) = self.guard.get_mut().map(Option::take) {
            guard.wait().ok(); // this closes its stdin first
        }
        fs::remove_dir_all(&self.folder).ok(); // a stopped cluster has no guard to do it
    }
}

/// Whom PostgreSQL and its pooler run as when we are root, as whom they refuse to run.
pub struct Account {
    pub name: &'static str,
    user: u32,
    group: u32,
}

impl Account {
    /// One that is not root's; none when we are not root.
    pub fn needed() -> Option<Account> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let id = |flag, name| {
            let output = Command::new("id").args([flag, name]).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        let account = |name| {
            Some(Account {
                name,
                user: id("-u", name)?,
                group: id("-g", name)?,
            })
        };
        let found = account("postgres").or_else(|| account("nobody"));
        assert!(
            found.is_some(),
            "this does not run as root, and there is no user postgres or nobody"
        );
        found
    }
}

fn binaries_on_path() -> Option<PathBuf> {
    if env::var_os("GATEKEY_TEST_POSTGRES").is_some_and(|choice| choice == "wheel") {
        return None;
    }
    env::split_paths(&env::var_os("PATH")?)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// An empty database, made for one test; it goes when its cluster does.
#[derive(Clone, Debug)]
pub struct Database {
    url: String,
}

impl Database {
    /// A fresh database in the cluster that all tests of this process share.
    pub async fn create() -> Database {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        let cluster = tokio::task::spawn_blocking(|| SHARED.get_or_init(Cluster::start))
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        Database::create_in(cluster).await
    }

    /// A fresh database in a cluster of the test's own.
    pub async fn create_in(cluster: &Cluster) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // template1 could be in use by another session, template0 never is.
        let statement = format!("CREATE DATABASE {name} TEMPLATE template0");
        connect(&cluster.url("postgres"))
            .await
            .execute(AssertSqlSafe(statement))
            .await
            .unwrap_or_else(|error| panic!("cannot create the database {name}: {error}"));
        Database {
            url: cluster.url(&name),
        }
    }

    /// A copy of the database at this URL, to which nobody may be connected: as a backup is restored.
    pub async fn copy_of(url: &str) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let (server, original) = url.rsplit_once('/').expect("it names a database");
        let name = format!("copy_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let statement = format!("CREATE DATABASE {name} TEMPLATE {original}");
        connect(&format!("{server}/postgres"))
            .await
            .execute(AssertSqlSafe(statement))
            .await
            .unwrap_or_else(|error| panic!("cannot copy the database {original}: {error}"));
        Database {
            url: format!("{server}/{name}"),
        }
    }

    /// The same database at another address: of a proxy or a pooler.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        let (_, name) = self.url.rsplit_once('/').expect("it names a database");
        format!("postgres://postgres@{addr}/{name}")
    }

    /// `postgres://postgres@127.0.0.1:PORT/NAME`
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// A connection of the test's own, to look at what the server wrote.
    pub async fn connect(&self) -> PgConnection {
        connect(&self.url).await
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url)
        .await
        .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"))
}
