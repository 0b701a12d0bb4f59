//! SQLite: one file, one process, one writer and several read-only readers.
//!
//! Acknowledged changes survive a power failure because of WAL with `synchronous=FULL`. A lock file
//! beside the database keeps a second process from starting. Only the owner of these files can
//! access them.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    num::NonZero,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    thread,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Executor as _, SqliteConnection, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use rustix::fs::OFlags;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    OpenError, Store, StoreError, idle_connections::IdleConnections, instrumented::Instrumented,
    statements,
};
use crate::domain::token::KeyId;

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Sqlite;

/// Takes the write lock at once, so that a mutation never has to give up halfway.
const BEGIN: &str = "BEGIN IMMEDIATE";
const DIALECT: statements::Dialect = statements::SQLITE;
/// The function that returns the position of one text in another, or 0.
const POSITION: &str = "instr";

const READERS: u32 = 4;
/// The maximum number of reader connections that key loads keep while idle.
const LOADERS: usize = 2;
/// The timeout of a statement that waits for a connection or a lock.
const PATIENCE: Duration = Duration::from_secs(5);

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let writer = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(PATIENCE)
        .disable_statement_logging();
    let file = writer.get_filename().to_owned();
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(OpenError::InMemory);
    }
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        return Err(OpenError::NoDirectory(folder.to_owned()));
    }
    if file.is_dir() {
        return Err(OpenError::Refused(
            "it is a directory, not a file".to_owned(),
        ));
    }
    let file = create(&file)?;
    let lock = lock(&file)?;

    let reader = writer.clone().create_if_missing(false).read_only(true);
    let pool = SqlitePoolOptions::new()
        .acquire_timeout(PATIENCE)
        // A connection to a file does not break.
        .test_before_acquire(false);
    let writer = pool.clone().max_connections(1).connect_with(writer).await?;
    MIGRATIONS.run(&writer).await?;
    restrict(&file);
    // A read-only file or a full disk must be detected here, not with the first change.
    let mut probe = sql::Transaction::begin(&writer, BEGIN).await?;
    probe.connection().execute(statements::LOCK).await?;
    probe.commit().await?;
    // The only connection that has the row of the only member, in a temporary table.
    let pulse = pool
        .clone()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| {
            Box::pin(async {
                connection
                    .execute(statements::REPLICAS_OF_ONE_PROCESS)
                    .await
                    .map(drop)
            })
        })
        .connect_lazy_with(reader.clone());
    // A read occupies a CPU core here, so one core is left to cache hits.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let loads_at_once = cores.saturating_sub(1).clamp(1, READERS as usize - 1);
    let reader = pool.max_connections(READERS).connect_with(reader).await?;
    let store = sql::SqlStore {
        loaders: IdleConnections::new(reader.clone(), LOADERS),
        reader,
        writer,
        pulse,
        hints: Hints::default(),
        loads_at_once,
        begin: BEGIN.to_owned(),
        lock: Some(lock),
    };
    Ok(Instrumented::start(store, Arc::default()))
}

/// Returns a list of ids as [`DIALECT`] takes it: in JSON.
fn id_list(ids: &[KeyId]) -> String {
    let ids: Vec<_> = ids.iter().map(KeyId::as_bare).collect();
    format!("[\"{}\"]", ids.join("\",\""))
}

/// The file is locked for this process, which is therefore always the primary.
#[expect(clippy::unused_async, reason = "as the other engine has it")]
async fn admit(_: &mut SqliteConnection) -> Result<(), StoreError> {
    Ok(())
}

/// Notifications of changes within this process, the only one.
#[derive(Default)]
struct Hints(Notify);

#[expect(clippy::unused_async, reason = "as the other engine has it")]
impl Hints {
    async fn send(&self, _: &SqlitePool) {
        self.0.notify_one();
    }

    async fn next(&self, _: &SqlitePool) {
        self.0.notified().await;
    }

    async fn close(&self) {}
}

/// The mode of every file of the database. SQLite creates `-wal` and `-shm` with the mode of the
/// database file, regardless of the umask.
const MODE: u32 = 0o600;

/// Creates the database file if it is missing, and returns its real path, because a file with two
/// names must not have two locks.
fn create(file: &Path) -> Result<PathBuf, OpenError> {
    let created = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(file);
    let real = created.and_then(|opened| {
        if opened.metadata()?.nlink() > 1 {
            return Err(io::Error::other(
                "the file has several names (hard links), and each would have a lock of its own",
            ));
        }
        file.canonicalize()
    });
    real.map_err(unusable(file))
}

/// Removes access to the database for group and others, for files that an earlier version created.
fn restrict(file: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let path = beside(file, suffix);
        // No file is opened here, because closing it would drop SQLite's locks on it.
        let mode = fs::symlink_metadata(&path)
            .ok()
            .filter(fs::Metadata::is_file)
            .map(|metadata| metadata.permissions().mode());
        if mode.is_some_and(|mode| mode & 0o077 != 0)
            && let Err(error) = fs::set_permissions(&path, Permissions::from_mode(MODE))
        {
            warn!(%error, file = %path.display(), "group or others can access a database file");
        }
    }
}

/// Locks `<file>.lock` for as long as the returned file is open.
fn lock(file: &Path) -> Result<File, OpenError> {
    let path = beside(file, ".lock");
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .custom_flags(nofollow)
        .open(&path)
        .map_err(unusable(&path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(file.to_owned())),
        Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
    }
    // The lock file is empty, so a file of another owner is acceptable.
    let _ = lock.set_permissions(Permissions::from_mode(MODE));
    Ok(lock)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::File { path, source }
}
